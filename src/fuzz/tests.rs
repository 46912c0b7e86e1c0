//! The stable runner: seeded mutations of the corpus, each target in a process of its own, so that an abort, a hang and what
//! is allocated can be told apart from the other tests.
//!
//! `DTKAFKA_FUZZ_SECONDS` makes it run long (`just fuzz`), with a seed of its own unless `DTKAFKA_FUZZ_SEED` names one;
//! `DTKAFKA_FUZZ_INPUTS` says how many inputs instead, `DTKAFKA_FUZZ_TARGET` which target alone.

use std::{
    alloc::System,
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use super::*;
use crate::time::{Rng, now};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Inputs of a target in an ordinary test run, and the time they may take.
const INPUTS: u64 = 2_500;
const TIME: Duration = Duration::from_secs(1);
const LARGEST: usize = 8 << 10;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The committed corpus of a target, in order, and the fixtures that suit it.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = fs::read_dir(root().join("fuzz/corpus").join(target))
        .map(|folder| folder.map(|entry| entry.unwrap().path()).collect())
        .unwrap_or_default();
    files.sort();
    let mut inputs: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(!inputs.is_empty(), "no corpus of {target}");
    inputs.push(Vec::new());
    inputs
}

/// An input, from the seed and its number alone.
fn input(corpus: &[Vec<u8>], seed: u64, number: u64) -> Vec<u8> {
    const BYTES: [u8; 8] = [0, 1, 2, 0x0f, 0x7f, 0x80, 0xfe, 0xff];
    const NUMBERS: [i32; 8] = [-1, -2, i32::MIN, i32::MAX, 0x7fff, 0xffff, 1 << 24, 0];
    let mut rng = Rng::new(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut input = corpus[rng.below(corpus.len())].clone();
    for _ in 0..=rng.below(6) {
        let at = rng.below(input.len() + 1);
        let length = rng.below(9).min(input.len() - at);
        match rng.below(10) {
            0 if at < input.len() => input[at] ^= 1 << rng.below(8),
            1 | 2 if at < input.len() => input[at] = BYTES[rng.below(8)],
            3 if at + 4 <= input.len() => {
                input[at..at + 4].copy_from_slice(&NUMBERS[rng.below(8)].to_be_bytes())
            }
            4 => {
                drop(input.splice(at..at, (0..rng.below(9)).map(|_| BYTES[rng.below(8)]).collect::<Vec<_>>()))
            }
            5 => drop(input.drain(at..at + length)),
            6 => {
                let part = input[at..at + length].to_vec();
                drop(input.splice(at..at, part.repeat(1 + rng.below(4))));
            }
            7 => {
                let other = &corpus[rng.below(corpus.len())];
                let from = rng.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            8 => input.truncate(at),
            _ if at < input.len() => input[at] = input[at].wrapping_add(rng.below(3) as u8).wrapping_sub(1),
            _ => {}
        }
    }
    input.truncate(LARGEST);
    input
}

/// The first inputs are the corpus as it is.
fn numbered(corpus: &[Vec<u8>], seed: u64, number: u64) -> Vec<u8> {
    corpus.get(number as usize).cloned().unwrap_or_else(|| input(corpus, seed, number))
}

#[test]
fn no_input_makes_a_reader_panic_hang_or_take_more_memory_than_it_may() {
    let long = setting("DTKAFKA_FUZZ_SECONDS");
    let own = || RandomState::new().hash_one("seed");
    let seed = setting("DTKAFKA_FUZZ_SEED").unwrap_or_else(|| if long.is_some() { own() } else { 1 });
    let only = std::env::var("DTKAFKA_FUZZ_TARGET").ok();
    let folder = std::env::temp_dir().join(format!("dtkafka-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for target in TARGETS.iter().filter(|target| only.as_ref().is_none_or(|only| only == target.name)) {
        let progress = folder.join(target.name);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fuzz::tests::reads_inputs_alone", "--ignored", "--nocapture"])
            .env("DTKAFKA_FUZZ_CHILD", target.name)
            .env("DTKAFKA_FUZZ_SEED", seed.to_string())
            .env("DTKAFKA_FUZZ_PROGRESS", &progress)
            .spawn()
            .unwrap();
        let (mut last, mut since) = (String::new(), now());
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status.to_string();
            }
            std::thread::sleep(Duration::from_millis(20));
            let at = fs::read_to_string(&progress).unwrap_or_default();
            if at != last {
                (last, since) = (at, now());
            } else if now() - since > Duration::from_secs(60) {
                child.kill().unwrap();
                child.wait().unwrap();
                break "it made no progress for 60 s".to_owned();
            }
        };
        if status != "exit status: 0" {
            let number = fs::read_to_string(&progress).unwrap_or_default().trim().parse().unwrap_or_default();
            let input = numbered(&corpus(target.name), seed, number);
            panic!(
                "{}, seed {seed}, input {number}: {status}\n{}\n{:?}",
                target.name,
                input.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
                String::from_utf8_lossy(&input),
            );
        }
    }
    fs::remove_dir_all(folder).unwrap();
}

#[test]
#[ignore = "no_input_makes_a_reader_panic_… starts it in a process of its own"]
fn reads_inputs_alone() {
    let target = Target::named(&std::env::var("DTKAFKA_FUZZ_CHILD").unwrap()).unwrap();
    let seed = setting("DTKAFKA_FUZZ_SEED").unwrap();
    let mut progress = File::create(std::env::var("DTKAFKA_FUZZ_PROGRESS").unwrap()).unwrap();
    let corpus = corpus(target.name);
    let seconds = setting("DTKAFKA_FUZZ_SECONDS");
    let inputs = setting("DTKAFKA_FUZZ_INPUTS");
    let time = match (seconds, inputs) {
        (Some(seconds), _) => Some(Duration::from_secs(seconds)),
        (None, Some(_)) => None,
        (None, None) => Some(TIME),
    };
    let until = time.map(|time| now() + time);
    let inputs = inputs.unwrap_or_else(|| if seconds.is_some() { u64::MAX } else { INPUTS });
    let mut number = 0;
    while number < inputs && until.is_none_or(|until| number % 32 > 0 || now() < until) {
        let bytes = numbered(&corpus, seed, number);
        progress.seek(SeekFrom::Start(0)).unwrap();
        progress.write_all(format!("{number:20}").as_bytes()).unwrap();
        let region = Region::new(ALLOCATOR);
        target.run(&bytes);
        let taken = region.change().bytes_allocated;
        let limit = target.memory.saturating_add(64 * bytes.len());
        assert!(
            taken <= limit,
            "{taken} bytes of memory for an input of {}, {limit} are allowed",
            bytes.len()
        );
        number += 1;
    }
    println!("{}: {number} inputs, seed {seed}", target.name);
}

#[test]
#[ignore = "writes fuzz/corpus from the fixtures, after a change of the tables"]
fn writes_the_corpus() {
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let folder = root().join("fuzz/corpus").join(target);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
    };
    struct Index<'a> {
        name: &'a str,
        version: i16,
        at: u8,
        found: Option<[u8; 2]>,
    }
    impl Visitor for Index<'_> {
        fn visit<A: Api>(&mut self) {
            if A::NAME == self.name {
                self.found = Some([self.at, (self.version - A::TABLE.0) as u8]);
            }
            self.at += 1;
        }
    }
    let text = fs::read_to_string(root().join("tests/fixtures/messages.txt")).unwrap();
    let mut newest = std::collections::BTreeMap::new();
    for line in text.lines() {
        let [name, version, hex, _] = line.splitn(4, ' ').collect::<Vec<_>>().try_into().unwrap();
        if let Some(name) = name.strip_suffix("Response") {
            newest.insert(name, (version.parse().unwrap(), hex));
        }
    }
    for (name, (version, hex)) in newest {
        let mut index = Index { name, version, at: 0, found: None };
        wire::visit_all(&mut index);
        let mut input = index.found.unwrap().to_vec();
        input.extend((0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()));
        write("answers", name, &input);
    }
    for entry in fs::read_dir(root().join("tests/fixtures/batches")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        if bytes.len() < 4 << 10 {
            write("batches", path.file_stem().unwrap().to_str().unwrap(), &[&[0], &bytes[..]].concat());
        }
    }
}
