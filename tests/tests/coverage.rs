//! Every function of the running glibc is judged, and the library exports what it says it hooks.
//!
//! A shared library says nothing about types, so "takes a descriptor" cannot be read off it. Instead
//! each exported function has to stand in `shim/exports.txt`, with what it is to us, or be matched by
//! `shim/exports-inert.txt`, the reviewed list of those that have nothing to do with descriptors. A
//! function that a later glibc adds stands in neither and fails the test until somebody judges it.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "coverage/elf.rs"]
mod elf;

/// The judgement on a symbol; see the head of `exports.txt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Hooked,
    Passes,
    Beyond,
}

#[derive(Debug)]
struct Judged {
    class: Class,
    family: String,
}

fn shim(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shim")
        .join(file)
}

/// Lines that are neither empty nor comments.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn judged() -> BTreeMap<String, Judged> {
    let text = fs::read_to_string(shim("exports.txt")).unwrap();
    let mut symbols = BTreeMap::new();
    for line in lines(&text) {
        let (symbol, rest) = field(line);
        let (class, rest) = field(rest);
        let (family, reason) = field(rest);
        let class = match class {
            "hooked" => Class::Hooked,
            "passes" => Class::Passes,
            "beyond" => Class::Beyond,
            other => panic!("{symbol}: no such class: {other}"),
        };
        assert!(reason.len() > 10, "{symbol}: no reason");
        let family = family.to_owned();
        let before = symbols.insert(symbol.to_owned(), Judged { class, family });
        assert!(before.is_none(), "{symbol} is judged twice");
    }
    symbols
}

/// The first word of a line, and the rest.
fn field(line: &str) -> (&str, &str) {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    (word, rest.trim_start())
}

fn inert() -> Vec<String> {
    let text = fs::read_to_string(shim("exports-inert.txt")).unwrap();
    lines(&text)
        .flat_map(str::split_ascii_whitespace)
        .map(str::to_owned)
        .collect()
}

/// Whether `name` is what `pattern` describes, in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|skipped| matches(tail, rest.get(skipped..).unwrap_or("")))
        }),
    }
}

/// The glibc that this test runs on, as the loader mapped it.
fn libc() -> elf::Library {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps
        .split_ascii_whitespace()
        .find(|word| word.ends_with("/libc.so.6"))
        .expect("the test is linked with glibc");
    elf::Library::read(Path::new(path))
}

/// The preload library, built from this tree by the cargo that runs the test.
fn preload_library() -> elf::Library {
    // target/PROFILE/deps/coverage-HASH
    let test = env::current_exe().unwrap();
    let profile_dir = test.parent().and_then(Path::parent).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package", "kcmshim"]);
    cargo.arg("--target-dir").arg(profile_dir.parent().unwrap());
    if profile_dir.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(cargo.status().unwrap().success(), "kcmshim does not build");
    elf::Library::read(&profile_dir.join("libkcmshim.so"))
}

#[test]
fn every_function_of_glibc_is_judged_once() {
    let (judged, inert) = (judged(), inert());
    let mut strangers = BTreeSet::new();
    for function in libc().functions() {
        let listed = judged.contains_key(&function.name);
        let about = inert
            .iter()
            .find(|pattern| matches(pattern, &function.name));
        match about {
            Some(pattern) if listed => panic!("{pattern} also matches {}", function.name),
            // No program can bind to a name of glibc's own, whatever it does.
            None if !listed && !function.private => drop(strangers.insert(function.name)),
            _ => {}
        }
    }
    assert!(
        strangers.is_empty(),
        "new in this glibc, not judged yet: {strangers:?}"
    );
}

#[test]
fn every_entry_says_something() {
    let judged = judged();
    let inert = inert();
    let unique: BTreeSet<&String> = inert.iter().collect();
    assert_eq!(
        unique.len(),
        inert.len(),
        "a name or pattern stands twice in exports-inert.txt"
    );
    // What older or newer releases, or other machines, lack says nothing about the lists.
    if !cfg!(target_arch = "x86_64") || !libc().versions().any(|name| name == "GLIBC_2.36") {
        return;
    }
    let names: BTreeSet<String> = libc().functions().map(|function| function.name).collect();
    let unknown: Vec<_> = judged
        .keys()
        .filter(|name| !names.contains(*name))
        .collect();
    assert!(unknown.is_empty(), "not exported by glibc: {unknown:?}");
    let idle: Vec<_> = inert
        .iter()
        .filter(|pattern| !names.iter().any(|name| matches(pattern, name)))
        .collect();
    assert!(idle.is_empty(), "match nothing: {idle:?}");
}

#[test]
fn every_family_says_how_its_hooks_behave() {
    let text = fs::read_to_string(shim("exports.txt")).unwrap();
    let described: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# ")?.split_once(": "))
        .map(|(family, _)| family)
        .collect();
    for (symbol, judged) in judged() {
        assert!(
            described.contains(judged.family.as_str()),
            "{symbol}: family {}",
            judged.family
        );
    }
}

/// What other preload libraries hook, and what programs call that none of them hooks: the two lists
/// that a survey of nine libraries gave. Each is judged here, whatever the judgement.
#[test]
fn what_other_libraries_hook_or_miss_is_judged() {
    let judged = judged();
    for list in ["hooked-by-others.txt", "missed-by-others.txt"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/coverage")
            .join(list);
        let text = fs::read_to_string(path).unwrap();
        let missing: Vec<_> = lines(&text)
            .flat_map(str::split_ascii_whitespace)
            .filter(|name| !judged.contains_key(*name))
            .collect();
        assert!(missing.is_empty(), "{list}: {missing:?}");
    }
}

#[test]
fn the_library_exports_what_is_hooked_and_nothing_else() {
    let hooked: BTreeSet<String> = judged()
        .into_iter()
        .filter(|(_, judged)| judged.class == Class::Hooked)
        .map(|(symbol, _)| symbol)
        .collect();
    let exported: BTreeSet<String> = preload_library().symbols().map(|s| s.name).collect();
    let missing: Vec<_> = hooked.difference(&exported).collect();
    let stray: Vec<_> = exported.difference(&hooked).collect();
    assert!(
        missing.is_empty(),
        "hooked says exports.txt, but not exported: {missing:?}"
    );
    assert!(
        stray.is_empty(),
        "exported, but not hooked says exports.txt: {stray:?}"
    );
}
