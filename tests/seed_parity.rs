//! Every row of `seed_parity.md` names a test that exists, and every row has a number of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic, and so may what its tests share")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The names of all functions that are tests: after `#[test]` and its like, or in a module of tests for every backend.
fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        sources(&root.join(folder), &mut files);
    }
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            let name = line
                .trim_start_matches("pub ")
                .trim_start_matches("async ")
                .strip_prefix("fn ")
                .and_then(|rest| rest.split_once('('));
            match name {
                Some((name, rest)) if is_test || rest.starts_with("backend)") => {
                    names.insert(name.to_owned());
                    is_test = false;
                }
                Some(_) => is_test = false,
                None if line.starts_with("#[test]") || line.starts_with("#[tokio::test") => is_test = true,
                None => {}
            }
        }
    }
    names
}

#[test]
fn every_row_names_a_test_that_exists() {
    let tests = tests();
    assert!(tests.len() > 300, "the tests were not found: {}", tests.len());
    let table =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seed_parity.md")).unwrap();
    let mut rows = BTreeSet::new();
    let mut missing = Vec::new();
    for line in table.lines().filter(|line| line.starts_with("| S") || line.starts_with("| I")) {
        let cells: Vec<_> = line.replace("\\|", "").split('|').map(|cell| cell.trim().to_owned()).collect();
        let [_, row, says, rust, shown, _] = &cells[..] else { panic!("not four cells: {line}") };
        assert!(rows.insert(row.clone()), "{row} stands there twice");
        assert!(!says.is_empty() && !rust.is_empty(), "{row} says nothing");
        let shown = shown.trim_matches('`');
        if !tests.contains(shown) {
            missing.push(format!("{row}: {shown}"));
        }
    }
    assert!(missing.is_empty(), "no such test: {missing:#?}");
    assert!(rows.len() >= 65, "rows were lost: {}", rows.len());
}
