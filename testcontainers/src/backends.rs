//! Which brokers a test run really used: one line per start, in the file that `DTKAFKA_BACKENDS_FILE` names
//! (`tests/run` sets it and prints the sum). Does nothing without it.

use std::{env, fs::OpenOptions, io::Write as _};

/// Notes that a backend was started, or with which words it was left out.
pub fn note_backend(what: &str) {
    let Some(path) = env::var_os("DTKAFKA_BACKENDS_FILE") else { return };
    let line = format!("{}\n", what.replace('\n', " "));
    // One short write in append mode: lines of several test processes do not mix. A file that cannot be written is
    // seen in the sum, which then names no backend.
    if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path) {
        let _ = file.write_all(line.as_bytes());
    }
}
