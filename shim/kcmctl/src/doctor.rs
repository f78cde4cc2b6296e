//! `kcmctl doctor`: this machine in a page; whether a program can run under the library; whether a device
//! is faster than the kernel's stack.

use std::env;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::elf::Elf;
use crate::measure::{self, Subject};
use crate::out::clean;
use crate::settings::Sources;
use crate::{Outcome, Problem, machine, out};

/// Larger files are not looked into.
const PROGRAM_MAX: u64 = 1 << 30;
/// `#!` lines that lead to another `#!` line: the kernel's own bound.
const SCRIPTS_MAX: usize = 5;
/// What every function of glibc that touches descriptors is to the library.
const EXPORTS: &str = include_str!("../../exports.txt");

/// What to look at.
pub(crate) enum Patient<'a> {
    Machine,
    Program(&'a Path),
    /// The devices of these settings, or the usual one, by measuring them.
    Devices(Sources),
}

pub(crate) fn doctor(patient: &Patient<'_>, as_json: bool) -> Outcome<()> {
    match patient {
        Patient::Program(program) => examine(program, as_json),
        Patient::Machine => machine_page(as_json),
        Patient::Devices(settings) => {
            let subjects = match settings.interfaces() {
                Ok(none) if none.is_empty() => vec![Subject::usual()],
                Ok(interfaces) => interfaces.iter().map(Subject::of).collect(),
                Err(problems) => return Err(Problem(problems.join("; "))),
            };
            measure::measure(&subjects, as_json)
        }
    }
}

fn machine_page(as_json: bool) -> Outcome<()> {
    let findings = machine::findings();
    if as_json {
        let all = findings.iter().map(|f| (f.topic.to_owned(), json!(f.what)));
        return out::print_json(&Value::Object(all.collect::<Map<_, _>>()));
    }
    let columns = out::columns();
    let lines = findings
        .iter()
        .map(|f| out::wrapped(&format!("{:<16} {}", f.topic, f.what), 17, columns));
    out::print(&lines.collect::<String>())
}

/// What was found out about a program.
#[derive(Default)]
pub(crate) struct Diagnosis {
    /// The file that is really run: a script's interpreter.
    file: PathBuf,
    /// Each a sentence; while there is one, the library is not loaded or sees nothing.
    pub(crate) obstacles: Vec<String>,
    notes: Vec<String>,
    hooked: Vec<String>,
    beyond: Vec<(String, String)>,
}

/// The file that a shell would run for this name.
pub(crate) fn find(program: &Path) -> Outcome<PathBuf> {
    let shown = clean(program.as_os_str().as_encoded_bytes());
    if program.components().count() > 1 || program.is_absolute() || shown.starts_with("./") {
        return match fs::metadata(program) {
            Ok(_) => Ok(program.to_owned()),
            Err(err) => Err(Problem(format!("{shown}: {err}"))),
        };
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let runs = |file: &PathBuf| {
        fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    let found = env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(runs);
    found.ok_or_else(|| Problem(format!("{shown}: not found in PATH")))
}

/// Looks into a program's file, and into its interpreter's if it is a script.
pub(crate) fn diagnose(program: &Path) -> Outcome<Diagnosis> {
    let mut found = Diagnosis {
        file: find(program)?,
        ..Diagnosis::default()
    };
    for _ in 0..SCRIPTS_MAX {
        let bytes = read(&found.file)?;
        let Some(line) = bytes.strip_prefix(b"#!") else {
            look_into(&bytes, &mut found);
            return Ok(found);
        };
        let line = clean(line.split(|byte| *byte == b'\n').next().unwrap_or(&[]));
        let mut words = line.split_ascii_whitespace();
        let mut interpreter = words.next().unwrap_or_default();
        if interpreter.ends_with("/env") {
            interpreter = words
                .find(|word| !word.starts_with('-'))
                .unwrap_or(interpreter);
        }
        found
            .notes
            .push(format!("It is a script, run by {interpreter}."));
        found.file = find(Path::new(interpreter))?;
    }
    Err(Problem::new("scripts that lead to scripts"))
}

fn read(file: &Path) -> Outcome<Vec<u8>> {
    let name = || clean(file.as_os_str().as_encoded_bytes());
    let failed = |err: std::io::Error| Problem(format!("{}: {err}", name()));
    let meta = fs::metadata(file).map_err(failed)?;
    if !meta.is_file() {
        return Err(Problem(format!("{}: not a file", name())));
    }
    let mut bytes = Vec::new();
    let opened = fs::File::open(file).map_err(failed)?;
    opened
        .take(PROGRAM_MAX)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

fn look_into(bytes: &[u8], found: &mut Diagnosis) {
    let mut obstacle = |sentence: &str| found.obstacles.push(sentence.to_owned());
    if let Ok(meta) = fs::metadata(&found.file) {
        if meta.mode() & 0o6000 != 0 {
            obstacle("It is set-user-ID or set-group-ID: the loader ignores LD_PRELOAD.");
        }
        if meta.mode() & 0o111 == 0 {
            obstacle("It is not executable.");
        }
    }
    let Some(elf) = Elf::new(bytes) else {
        obstacle("It is not an ELF program.");
        return;
    };
    if !elf.is_native() {
        obstacle("It is built for another machine or word size than the library.");
        return;
    }
    if elf.is_go() {
        obstacle("It is a Go program: its system calls do not go through libc.");
    }
    if !elf.is_dynamic() || elf.interpreter().is_none() {
        obstacle("It is statically linked: no loader runs, so no library is preloaded.");
        return;
    }
    match elf.interpreter() {
        Some(loader) if loader.contains("musl") => {
            obstacle("Its C library is musl; the library is built for glibc.")
        }
        _ => {}
    }
    let Some(imports) = elf.imports() else {
        found.notes.push("Its imports cannot be read.".to_owned());
        return;
    };
    for line in EXPORTS.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(class), Some(_)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        if imports.binary_search_by(|i| i.as_str().cmp(name)).is_err() {
            continue;
        }
        match class {
            "hooked" => found.hooked.push(name.to_owned()),
            "beyond" => {
                let reason = words.collect::<Vec<_>>().join(" ");
                found.beyond.push((name.to_owned(), reason));
            }
            _ => {}
        }
    }
    if imports.iter().any(|name| name == "dlopen") {
        let note = "It loads libraries at run time, whose imports are not listed here.";
        found.notes.push(note.to_owned());
    }
}

fn examine(program: &Path, as_json: bool) -> Outcome<()> {
    let found = diagnose(program)?;
    let file = clean(found.file.as_os_str().as_encoded_bytes());
    if as_json {
        let beyond = found
            .beyond
            .iter()
            .map(|(name, why)| (name.clone(), json!(why)));
        return out::print_json(&json!({
            "file": file,
            "can_be_preloaded": found.obstacles.is_empty(),
            "obstacles": found.obstacles,
            "notes": found.notes,
            "hooked": found.hooked,
            "beyond": Value::Object(beyond.collect::<Map<_, _>>()),
        }));
    }
    let mut text = match found.obstacles.is_empty() {
        true => format!("{file}: can run under kcmshim\n"),
        false => format!("{file}: cannot run under kcmshim\n"),
    };
    for sentence in found.obstacles.iter().chain(&found.notes) {
        text += &format!("  {sentence}\n");
    }
    if !found.hooked.is_empty() {
        text += "imports that the library answers for KCM descriptors:\n";
        text += &wrap(&found.hooked, out::columns().unwrap_or(100));
    }
    for (name, why) in &found.beyond {
        text += &format!("beyond a preload library: {name}: {why}\n");
    }
    out::print(&text)
}

/// Words in lines of at most `columns`, indented.
fn wrap(words: &[String], columns: usize) -> String {
    let (mut text, mut line) = (String::new(), String::from(" "));
    for word in words {
        if line.len() + 1 + word.len() > columns && line.len() > 1 {
            text += &format!("{line}\n");
            line = String::from(" ");
        }
        line += &format!(" {word}");
    }
    text + &line + "\n"
}
