//! Packet scripts: each `*.pkt` beside this file is one story about one clause, told packet by
//! packet against a single stack in virtual time. `format.md` describes the language.

mod run;
mod table;
mod wire;

use std::path::PathBuf;

/// Every script, in order of name, so that a failure names the first.
fn scripts() -> Vec<PathBuf> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts");
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .expect("script directory")
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "pkt"))
        .collect();
    found.sort();
    found
}

#[test]
fn every_script_plays_as_written() {
    let only = std::env::var("SCRIPT").ok();
    let mut failures = Vec::new();
    let all = scripts();
    assert!(all.len() >= 180, "only {} scripts found", all.len());
    for path in &all {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if only.as_ref().is_some_and(|o| !name.contains(o.as_str())) {
            continue;
        }
        let text = std::fs::read_to_string(path).expect("readable script");
        assert!(
            text.starts_with("# RFC") || text.starts_with("# Linux"),
            "{name}: the first line names the clause"
        );
        if let Err(e) = run::run(&text) {
            failures.push(format!("{name}:{e}"));
        }
    }
    assert!(
        failures.is_empty(),
        "{} scripts failed\n{}",
        failures.len(),
        failures.join("\n")
    );
}
