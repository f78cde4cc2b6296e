//! `c-header/` as a C or C++ program meets it: numbers, layouts, and the parsers' answers.
//!
//! The programs in `abi/` are compiled here with every compiler at hand, so that a header that
//! only one of them accepts, or only in one order of inclusion, fails the build it would break.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use kcm_mux::bpf::{CB_WORDS, Env, Program};
use kcm_tests::guest;

/// Exit status of `abi/parsers.c` where the kernel lets this user load no program.
const CANNOT_LOAD: i32 = 77;

/// A compiler with a language standard. The first of each language must exist, others may.
struct Compiler {
    command: &'static str,
    options: &'static [&'static str],
    required: bool,
}

const COMPILERS: &[Compiler] = &[
    Compiler {
        command: "cc",
        options: &["-std=c99"],
        required: true,
    },
    Compiler {
        command: "cc",
        options: &["-std=gnu17"],
        required: true,
    },
    Compiler {
        command: "c++",
        options: &["-x", "c++", "-std=c++11"],
        required: true,
    },
    Compiler {
        command: "c++",
        options: &["-x", "c++", "-std=c++20"],
        required: true,
    },
    Compiler {
        command: "clang",
        options: &["-std=c99"],
        required: false,
    },
    Compiler {
        command: "clang++",
        options: &["-x", "c++", "-std=c++11"],
        required: false,
    },
];

const STRICT: &[&str] = &["-pedantic", "-Wall", "-Wextra", "-Werror", "-O1"];

/// Values of the kernel's interface: `docs` of each are in the header itself.
const NUMBERS: &str = "\
AF_KCM 41
PF_KCM 41
SOL_KCM 281
MSG_BATCH 262144
KCMPROTO_CONNECTED 0
KCM_RECV_DISABLE 1
SIOCKCMATTACH 35296
SIOCKCMUNATTACH 35297
SIOCKCMCLONE 35298
sizeof(struct kcm_attach) 8
offsetof(struct kcm_attach, fd) 0
offsetof(struct kcm_attach, bpf_fd) 4
sizeof(struct kcm_unattach) 4
offsetof(struct kcm_unattach, fd) 0
sizeof(struct kcm_clone) 4
offsetof(struct kcm_clone, fd) 0
";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the workspace")
}

fn exists(command: &str) -> bool {
    Command::new(command)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Compiles `abi/SOURCE` and returns the program, or fails with the compiler's words.
fn compile(compiler: &Compiler, source: &str, defines: &[&str]) -> PathBuf {
    let program = fresh_path();
    let output = Command::new(compiler.command)
        .args(compiler.options)
        .args(STRICT)
        .args(defines.iter().map(|define| format!("-D{define}")))
        .arg("-I")
        .arg(root().join("c-header"))
        .arg(root().join("tests/abi").join(source))
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", compiler.command));
    assert!(
        output.status.success(),
        "{} {:?} {defines:?} {source}:\n{}",
        compiler.command,
        compiler.options,
        String::from_utf8_lossy(&output.stderr)
    );
    program
}

/// A path for one build: tests run at once, and a running program cannot be written over.
fn fresh_path() -> PathBuf {
    static BUILDS: AtomicUsize = AtomicUsize::new(0);
    let name = format!("c_header-{}", BUILDS.fetch_add(1, Ordering::Relaxed));
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn compilers() -> impl Iterator<Item = &'static Compiler> {
    COMPILERS
        .iter()
        .filter(|compiler| compiler.required || exists(compiler.command))
}

fn run(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The header alone, with `<linux/kcm.h>` before and behind it, and that one alone as the judge.
#[test]
fn numbers_and_layouts_equal_the_kernels() {
    let linux = Path::new("/usr/include/linux/kcm.h").exists();
    let orders: &[&str] = if linux {
        &["KCM_ONLY", "KCM_FIRST", "LINUX_FIRST", "LINUX_ONLY"]
    } else {
        &["KCM_ONLY"]
    };
    for compiler in compilers() {
        for order in orders {
            let output = run(&compile(compiler, "numbers.c", &[order]), &[]);
            assert_eq!(text(&output), NUMBERS, "{} {order}", compiler.command);
        }
    }
}

/// C and C++ compilers make the same instructions of the parser header.
#[test]
fn every_compiler_builds_the_same_programs() {
    let mut first: Option<String> = None;
    for compiler in compilers() {
        let output = run(&compile(compiler, "parsers.c", &[]), &[]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let programs = text(&output);
        assert!(
            programs.lines().count() > 2000,
            "{}",
            programs.lines().count()
        );
        match &first {
            None => first = Some(programs),
            Some(first) => assert!(*first == programs, "{} differs", compiler.command),
        }
    }
}

/// The kernel's verifier accepts each parser, and each gives the length the table asks for.
#[test]
fn parsers_agree_with_the_kernel() {
    let program = compile(&COMPILERS[0], "parsers.c", &[]);
    let output = run(&program, &["kernel"]);
    let words = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => assert!(
            text(&output).ends_with(" cases, 0 wrong\n"),
            "{}",
            text(&output)
        ),
        // Without the right to load programs the first load must be what failed, and how.
        Some(CANNOT_LOAD) => assert!(
            words.contains("Operation not permitted") || words.contains("not implemented"),
            "{words}"
        ),
        _ => panic!("{}{words}", text(&output)),
    }
}

/// Our own verifier accepts each parser, as it must where the kernel loads nothing, and our VM
/// gives the same answers from the same table.
#[test]
fn parsers_agree_with_the_shims_vm() {
    let listing = text(&run(&compile(&COMPILERS[0], "parsers.c", &[]), &[]));
    let (mut parser, mut cases) = (None, 0);
    for line in listing.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["program", name, code] => {
                let program = Program::verify(&unhex(code), &|_map_fd| None);
                parser = Some((
                    name,
                    program.unwrap_or_else(|error| panic!("{name}: {error:?}")),
                ));
            }
            ["case", data, answer] => {
                let (name, program) = parser.as_ref().expect("cases follow their program");
                let result = program.run(&unhex(data)[..], &mut [0; CB_WORDS], &Env::default());
                assert_eq!((result as i32).to_string(), answer, "{name} {data}");
                cases += 1;
            }
            _ => panic!("{line}"),
        }
    }
    assert!(cases > 2000, "{cases}");
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at| text.get(at..at + 2).expect("two digits a byte");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(digits(at), 16).expect("hex digits"))
        .collect()
}

/// Every ready-made parser cuts a stream, written in pieces of random size, into its messages.
#[test]
fn parsers_frame_a_stream_under_the_shim() {
    let program = compile(&COMPILERS[1], "framing.c", &[]);
    let output = Command::new(program)
        .arg("stream")
        .env("LD_PRELOAD", guest::library())
        .output()
        .expect("the program starts");
    let words = text(&output) + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    assert_eq!(words.matches(": 200 messages, ").count(), 10, "{words}");
}

/// `kcm_monitor` prints what its first comment promises, word for word: each fault of a
/// connection is noticed, named and survived.
#[test]
fn monitor_keeps_its_promise_under_the_shim() {
    let source = root().join("examples-c/kcm_monitor.c");
    let promise: String = std::fs::read_to_string(&source)
        .expect("kcm_monitor.c")
        .lines()
        .skip_while(|line| !line.contains("Expected output"))
        .filter_map(|line| line.strip_prefix(" *     "))
        .take(7)
        .map(|line| line.to_owned() + "\n")
        .collect();
    let output = Command::new(build_example(&source))
        .env("LD_PRELOAD", guest::library())
        .output()
        .expect("the program starts");
    assert_eq!(
        text(&output),
        promise,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// `kcm.pc.in`, filled in as its first lines say, names the folder of the headers and the library.
#[test]
fn pkg_config_template_fills_in() {
    let template = std::fs::read_to_string(root().join("c-header/kcm.pc.in")).expect("kcm.pc.in");
    let filled: String = template
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            line.replace("@PREFIX@", "/usr/local")
                .replace("@LIBDIR@", "lib")
                .replace("@VERSION@", "0.1.0")
                + "\n"
        })
        .collect();
    assert!(!filled.contains('@'), "{filled}");
    assert!(
        filled.starts_with(
            "prefix=/usr/local\nincludedir=${prefix}/include\n\
             preload=${prefix}/lib/libkcmshim.so\n"
        ),
        "{filled}"
    );
    assert!(
        filled.contains("\nVersion: 0.1.0\nCflags: -I${includedir}\n"),
        "{filled}"
    );
}

/// Each example builds by the line its first comment gives, and states its output.
#[test]
fn examples_build_with_cc_alone() {
    let mut built = 0;
    for entry in std::fs::read_dir(root().join("examples-c")).expect("examples-c") {
        let source = entry.expect("examples-c").path();
        if source.extension().is_none_or(|extension| extension != "c") {
            continue;
        }
        build_example(&source);
        let stem = source
            .file_stem()
            .expect("a file name")
            .to_string_lossy()
            .into_owned();
        let words = std::fs::read_to_string(&source).expect("an example");
        for promise in [
            format!("cc -O2 {stem}.c -o {stem} -pthread"),
            "Expected output".into(),
        ] {
            assert!(words.contains(&promise), "{stem} lacks {promise:?}");
        }
        built += 1;
    }
    assert!(built >= 7, "{built} examples");
}

/// Plain `cc`, and not a warning.
fn build_example(source: &Path) -> PathBuf {
    let program = fresh_path();
    let output = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-Werror"])
        .arg(source)
        .arg("-o")
        .arg(&program)
        .arg("-pthread")
        .output()
        .expect("cc");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}:\n{words}", source.display());
    program
}
