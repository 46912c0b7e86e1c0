//! Whole clients against a whole broker in one process: streams in memory, paused time, and one seed for everything.
//!
//! `world.rs` draws a world (a cluster, its clients, their settings) from a seed and runs it. `nemesis.rs` injects the faults,
//! over `network.rs`; `producers.rs`, `transactions.rs`, `members.rs`, `readers.rs` and `exactly.rs` are the clients. All of them
//! write into `history.rs`, and `checker.rs` has the rules that the history must keep: begin there.
//!
//! `DTKAFKA_SIM_SEEDS=n` says how many seeds are tried (from `DTKAFKA_SIM_FROM` on, default 0); `DTKAFKA_SIM_SEED=s` replays
//! one and prints its history, with the client's log at the level of `DTKAFKA_SIM_LOG`. `DTKAFKA_SIM_SECONDS` ends a run
//! early, and `DTKAFKA_SIM_STOP_AFTER` says after how many broken seeds. `DTKAFKA_SIM_COSTS=1` tells what each seed took.
//! See `just sim`.

#![allow(missing_docs, reason = "the names of tests are sentences")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and spawn, and so may what its tests share"
)]

mod checker;
mod exactly;
mod history;
mod members;
mod nemesis;
mod network;
mod producers;
mod readers;
mod rng;
mod transactions;
mod world;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use world::Report;

/// No world takes longer to compute, in real time.
const PATIENCE: Duration = Duration::from_secs(90);

/// Seeds that found a defect once, and what it was.
const FOUND: &[(u64, &str)] = &[
    (0, "begin and the driver woke each other in circles while the transaction before was being ended"),
    (4, "the same, right at the start"),
    (194, "a consumer whose close was too short still held records when it returned"),
    (1013, "a consumer whose last commit took long turned in circles until its close was over"),
    (2033, "a fetch session that was out of step answered at once, again and again"),
    (3163, "a static leader that came back did not see what its topics had grown by"),
    (3854, "a connection was kept for ever that answered none of many calls with short deadlines"),
    (
        6557,
        "a handler ran on when another member had its partition: its time counted from when the member heard of the rebalance",
    ),
    (6665, "the same"),
    (
        7477,
        "the broker of the kit gave a producer that had aborted the epoch it had, and nothing of it was taken any more",
    ),
    (40655, "a topic that was made in the kit while no broker ran never had a leader"),
    (42159, "as 6557"),
    (
        42265,
        "the broker of the kit read what had come over a connection that was broken, and took an older commit last",
    ),
    (
        100_150,
        "the broker of the kit gave the ids of fetch sessions again, and a reader went on with another one's",
    ),
    (200_798, "a user of the simulation itself committed behind what it had committed before a rebalance"),
    (202_327, "the broker of the kit gave a producer that had been replaced the identity of its successor"),
    (
        203_066,
        "the pause that a broker asked for in its first answer was not kept, and a commit in its socket came late",
    ),
    (
        201_253,
        "a transactional producer is waited for as long as a connection may take, where that is more than max.block.ms",
    ),
    (215_464, "a static member whom its predecessor's late JoinGroup fences begins anew"),
];

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.trim().parse().unwrap_or_else(|_| panic!("{variable} = {text:?} is no number")))
}

/// Prints what there is to say about a seed that broke a rule.
fn tell(report: &Report, with_history: bool) {
    eprintln!("seed {}: {}", report.seed, report.world);
    if with_history {
        for line in report.history.lines() {
            eprintln!("  {line}");
        }
    }
    eprintln!("seed {} broke {} rules:", report.seed, report.violations.len());
    for violation in report.violations.iter().take(20) {
        eprintln!("  {violation}");
    }
    eprintln!("replay it with DTKAFKA_SIM_SEED={} cargo test --test sim no_seed -- --nocapture", report.seed);
}

/// Ends the process when a world does not end, because some task loops without waiting, so that virtual time stands still. This
/// counts only if the process has used as much CPU time: the machine may be busy with other work.
fn watch(running: &Mutex<BTreeMap<u64, Instant>>, ended: &mpsc::Receiver<()>) {
    let second = Duration::from_secs(1);
    let mut had = BTreeMap::new();
    while ended.recv_timeout(second) == Err(mpsc::RecvTimeoutError::Timeout) {
        let running = running.lock().unwrap();
        let now = cpu_time();
        had.retain(|seed, _| running.contains_key(seed));
        let stuck = running.iter().find(|(seed, began)| {
            let used = now.saturating_sub(*had.entry(**seed).or_insert(now));
            began.elapsed() > PATIENCE && used > PATIENCE
        });
        if let Some((seed, _)) = stuck {
            eprintln!("seed {seed} does not end: some task in it loops without waiting");
            std::process::exit(101);
        }
    }
}

/// What this process has used so far, where the system tells; else the time itself.
fn cpu_time() -> Duration {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let elapsed = BEGAN.get_or_init(Instant::now).elapsed();
    // Linux: `utime` and `stime` in hundredths of a second are the 12th and 13th word behind the program's name.
    let told = std::fs::read_to_string("/proc/self/stat").ok();
    let ticks = told.and_then(|told| {
        let mut words = told.rsplit_once(')')?.1.split_whitespace().skip(11);
        Some(words.next()?.parse::<u64>().ok()? + words.next()?.parse::<u64>().ok()?)
    });
    ticks.map_or(elapsed, |ticks| Duration::from_millis(ticks * 10))
}

/// Runs seeds on all cores; returns the reports of those that broke a rule, and how many were tried.
fn run_all(seeds: &[u64]) -> (Vec<Report>, u64) {
    let next = AtomicU64::new(0);
    let tried = AtomicU64::new(0);
    let limit = number("DTKAFKA_SIM_SECONDS").unwrap_or(1_000_000);
    let costs = number("DTKAFKA_SIM_COSTS").is_some();
    let started = Instant::now();
    let broken = Mutex::new(Vec::new());
    let stop_at = usize::try_from(number("DTKAFKA_SIM_STOP_AFTER").unwrap_or(3)).unwrap();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(seeds.len().max(1));
    let running: Mutex<BTreeMap<u64, Instant>> = Mutex::default();
    let (end, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let watched = &running;
        scope.spawn(move || watch(watched, &ended));
        let mut workers = Vec::new();
        for _ in 0..threads {
            workers.push(scope.spawn(|| {
                while broken.lock().unwrap().len() < stop_at && started.elapsed().as_secs() < limit {
                    let index = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(&seed) = seeds.get(index) else { return };
                    running.lock().unwrap().insert(seed, Instant::now());
                    let report = world::run(seed);
                    let began = running.lock().unwrap().remove(&seed);
                    if costs && let Some(began) = began {
                        let (calm, end, requests) = report.size;
                        let took = began.elapsed().as_secs_f64() * 1000.0;
                        eprintln!("seed {seed}: {took:.1} ms, calm at {calm:.1} s, end at {end:.1} s, {requests} requests");
                    }
                    tried.fetch_add(1, Ordering::Relaxed);
                    if !report.violations.is_empty() {
                        broken.lock().unwrap().push(report);
                    }
                }
            }));
        }
        for worker in workers {
            drop(worker.join());
        }
        drop(end);
    });
    (broken.into_inner().unwrap(), tried.into_inner())
}

#[test]
fn no_seed_breaks_a_rule() {
    if let Some(seed) = number("DTKAFKA_SIM_SEED") {
        world::log_to_stderr();
        let report = world::run(seed);
        tell(&report, true);
        assert!(report.violations.is_empty());
        return;
    }
    let count = number("DTKAFKA_SIM_SEEDS").unwrap_or(20);
    let from = number("DTKAFKA_SIM_FROM").unwrap_or(0);
    let seeds: Vec<u64> = (from..from + count).collect();
    let started = Instant::now();
    let (broken, tried) = run_all(&seeds);
    let seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "{tried} of {count} seeds from {from} on in {seconds:.1} s, {:.1} a second",
        tried as f64 / seconds
    );
    for (index, report) in broken.iter().enumerate() {
        tell(report, index == 0 && number("DTKAFKA_SIM_BRIEF").is_none());
    }
    let names: Vec<u64> = broken.iter().map(|report| report.seed).collect();
    assert!(broken.is_empty(), "seeds {names:?} broke a rule");
}

#[test]
fn seeds_that_found_a_defect_once_find_none_any_more() {
    let seeds: Vec<u64> = FOUND.iter().map(|(seed, _)| *seed).collect();
    let (broken, _) = run_all(&seeds);
    for report in &broken {
        let what = FOUND.iter().find(|(seed, _)| *seed == report.seed).map_or("", |(_, what)| what);
        eprintln!("once found: {what}");
        tell(report, true);
    }
    assert!(broken.is_empty());
}

#[test]
fn the_same_seed_gives_the_same_history_to_the_byte() {
    for seed in 1000..1008 {
        let (first, second) = (world::run(seed).history.lines(), world::run(seed).history.lines());
        let apart = first.iter().zip(&second).position(|(left, right)| left != right);
        if let Some(line) = apart {
            panic!("seed {seed} differs in line {line}:\n  {}\n  {}", first[line], second[line]);
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
        assert!(first.len() > 20, "seed {seed} does next to nothing");
        assert_ne!(first, world::run(seed + 5000).history.lines(), "the seed matters");
    }
}

/// What a process of its own says of a seed: its history and the client's log, with every piece that crosses the wire.
fn log_of(seed: u64) -> String {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "no_seed_breaks_a_rule", "--nocapture"])
        .env("DTKAFKA_SIM_SEED", seed.to_string())
        .env("DTKAFKA_SIM_LOG", "trace")
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn the_same_seed_gives_the_same_log_to_the_byte_in_another_process() {
    // The first is one that did not, while receivers were woken in random order.
    for seed in [43, 3, 17, 1001, 1004] {
        let (first, second) = (log_of(seed), log_of(seed));
        for (line, (left, right)) in first.lines().zip(second.lines()).enumerate() {
            assert_eq!(left, right, "seed {seed}, line {line}");
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
        assert!(first.lines().count() > 100, "seed {seed} says next to nothing:\n{first}");
    }
}
