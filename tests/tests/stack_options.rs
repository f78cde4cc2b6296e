//! `tests/notes/stack-options.md` says what is so: each option is asked and set on sockets of the stack
//! and of the kernel, and the table's word for it is checked.

use std::collections::BTreeMap;
use std::fs;

use kcm_tests::lab::{self, Side};
use kcm_tests::{guest, program};

/// What a program printed for a socket (`tcp4`, `udp6`, …) and an option: what getsockopt said, and what
/// setsockopt said to that value and to 1, and the value after another was set before bind.
type Answers = BTreeMap<(String, String), [String; 4]>;

fn answers(side: Side, program: &std::path::Path) -> Answers {
    let output = program::run(&mut lab::command(side, program));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let entry = |line: &str| {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let [socket, option, _, get, _, default, _, one, _, before] = &words[..] else {
            panic!("{line}");
        };
        let said = [get, default, one, before].map(String::clone);
        ((socket.clone(), option.clone()), said)
    };
    text.lines().map(entry).collect()
}

/// The table: option, and the words for TCP and UDP.
fn table() -> BTreeMap<String, [String; 2]> {
    let path = guest::tests_dir().join("notes/stack-options.md");
    let text = fs::read_to_string(path).expect("the notes are there");
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        match &cells[..] {
            [option, tcp, udp] if option.contains('_') => {
                Some((option.to_string(), [tcp.to_string(), udp.to_string()]))
            }
            _ => None,
        }
    });
    rows.collect()
}

/// Whether the answers of a socket are what the table's word promises.
fn holds(word: &str, kernel: &[String; 4], stack: &[String; 4]) -> bool {
    let [value, default, one, before] = stack;
    match word {
        "yes" | "kept" | "none" => stack == kernel,
        "default" => {
            let refused = one == "ENOPROTOOPT" || value == "1";
            let is_said = before == "-" || before == value;
            stack == kernel || value == &kernel[0] && default == "ok" && refused && is_said
        }
        "own" => !value.starts_with('E') || stack == kernel,
        errno => stack == kernel || stack.iter().take(3).all(|said| said == errno),
    }
}

#[test]
fn every_option_answers_as_the_table_says() {
    let program = program::build("stack_options", &[]);
    let kernel = answers(Side::Kernel, &program);
    let stack = answers(Side::Stack, &program);
    let table = table();
    assert!(table.len() > 100, "{} options in the table", table.len());
    let mut wrong = Vec::new();
    for ((socket, option), said) in &stack {
        let Some([tcp, udp]) = table.get(option) else {
            wrong.push(format!("{option} is not in the table"));
            continue;
        };
        let word = if socket.starts_with("tcp") { tcp } else { udp };
        let theirs = &kernel[&(socket.clone(), option.clone())];
        if !holds(word, theirs, said) {
            wrong.push(format!(
                "{socket} {option}: {word}: kernel {theirs:?}, stack {said:?}"
            ));
        }
    }
    for option in table.keys() {
        if !stack.keys().any(|(_, known)| known == option) {
            wrong.push(format!("{option} is not asked by the program"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn congestion_controls_go_by_their_names() {
    let program = program::build("stack_options", &[]);
    let said = |side, names: &[&str]| {
        let output = program::run(lab::command(side, &program).args(names));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let stack = said(
        Side::Stack,
        &["reno", "cubic", "bbr", "vegas", "bb", "bbr2"],
    );
    let expected = "reno set ok get reno 16\n\
                    cubic set ok get cubic 16\n\
                    bbr set ok get bbr 16\n\
                    vegas set ENOENT get cubic 16\n\
                    bb set ENOENT get cubic 16\n\
                    bbr2 set ENOENT get cubic 16\n";
    assert_eq!(stack, expected);
    // Every kernel has this one; the others are modules.
    assert_eq!(said(Side::Kernel, &["reno"]), "reno set ok get reno 16\n");
}
