//! Peers that mean harm, each against each kind of client in a process of its own. Whatever comes over the wire, the client's
//! memory stays within 64 MiB of where it began, and the client says what is wrong.
//!
//! The peers are in `peers.rs`, and live in this process; what they attack, in `clients.rs`, lives in another one, whose
//! memory is read from `/proc` while it runs. `DTKAFKA_HOSTILE` picks peers by a part of their name.

#![cfg(target_os = "linux")]
#![allow(missing_docs, reason = "the names of tests are sentences")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and spawn, and so may what its tests share"
)]

mod batches;
mod clients;
mod peers;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use self::{clients::Kind, peers::Peer};

/// What a client may take above what its process has before it makes the client.
const LIMIT: u64 = 64 << 20;

/// How many processes run beside each other.
const BESIDE: usize = 4;

/// How long a client is attacked.
fn time() -> Duration {
    let seconds = std::env::var("DTKAFKA_HOSTILE_SECONDS").ok().map_or(1, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

#[derive(Debug)]
struct Seen {
    peer: &'static str,
    kind: Kind,
    grown: u64,
    /// The peer was asked so often.
    asked: u64,
    /// What the client said of it.
    said: Vec<String>,
    ended_well: bool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_hostile_peer_makes_a_client_take_more_than_64_mib_or_end() {
    let only = std::env::var("DTKAFKA_HOSTILE").unwrap_or_default();
    let attacks: Vec<(Peer, Kind)> = Peer::all()
        .into_iter()
        .filter(|peer| peer.name.contains(&only))
        .flat_map(|peer| Kind::ALL.map(|kind| (peer.clone(), kind)))
        .filter(|(peer, kind)| peer.suits(*kind))
        .collect();
    let mut seen = Vec::new();
    for beside in attacks.chunks(BESIDE) {
        let running: Vec<_> =
            beside.iter().cloned().map(|(peer, kind)| tokio::spawn(attack(peer, kind, time()))).collect();
        for ((peer, kind), running) in beside.iter().zip(running) {
            let first = running.await.unwrap();
            // On a busy machine the client may not have come that far.
            seen.push(if first.asked > 0 { first } else { attack(peer.clone(), *kind, time() * 10).await });
        }
    }
    assert!(!seen.is_empty());
    for Seen { peer, kind, grown, asked, said, .. } in &seen {
        println!(
            "{:>5.1} MiB  {peer} against {kind:?}, asked {asked} times: {}",
            mib(*grown),
            said.join(" | ")
        );
    }
    let ended: Vec<&Seen> = seen.iter().filter(|seen| !seen.ended_well).collect();
    assert!(ended.is_empty(), "a client's process has ended: {ended:#?}");
    let large: Vec<&Seen> = seen.iter().filter(|seen| seen.grown >= LIMIT).collect();
    assert!(large.is_empty(), "above {} MiB: {large:#?}", mib(LIMIT));
    let idle: Vec<&Seen> = seen.iter().filter(|seen| seen.asked == 0).collect();
    assert!(idle.is_empty(), "these peers were never asked: {idle:#?}");
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Lets a peer loose on a client.
async fn attack(peer: Peer, kind: Kind, time: Duration) -> Seen {
    let name = peer.name;
    let (port, asked) = peers::listen(peer).await;
    let watch = tokio::task::spawn_blocking(move || watch(kind, port, time));
    let (grown, said, ended_well) = watch.await.unwrap();
    Seen {
        peer: name,
        kind,
        grown,
        asked: asked.load(std::sync::atomic::Ordering::Relaxed),
        said,
        ended_well,
    }
}

/// Runs a client in a process of its own. Returns by how much its memory grew, what it said, and whether it ended well.
fn watch(kind: Kind, port: u16, time: Duration) -> (u64, Vec<String>, bool) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_client_alone", "--ignored", "--nocapture", "--test-threads=1"])
        .env("DTKAFKA_HOSTILE_CLIENT", format!("{kind:?}"))
        .env("DTKAFKA_HOSTILE_PORT", port.to_string())
        .env("DTKAFKA_HOSTILE_SECONDS", time.as_secs().to_string())
        // glibc keeps what was given back, in an arena per thread, and more of it the larger the pieces are: counted is what
        // the client holds.
        .env("MALLOC_ARENA_MAX", "1")
        .env("MALLOC_MMAP_THRESHOLD_", "131072")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(if std::env::var_os("DTKAFKA_HOSTILE").is_some() { Stdio::inherit() } else { Stdio::null() })
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    while !out.next().expect("it says that it is ready").unwrap().contains("ready") {}
    let start = resident(&child).unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let until = Instant::now() + time + Duration::from_secs(60);
    let mut most = start;
    let ended = loop {
        most = most.max(resident(&child).unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if most - start > 8 * LIMIT || Instant::now() > until {
            let _ = child.kill();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let said = out.map_while(Result::ok).filter_map(|line| line.strip_prefix("said: ").map(str::to_owned));
    (most - start, said.collect(), ended.is_some_and(|status| status.success()))
}

/// Resident memory of a process now. A page has 4 KiB wherever this runs.
fn resident(child: &Child) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/statm", child.id())).ok()?;
    Some(text.split_whitespace().nth(1)?.parse::<u64>().ok()? * 4096)
}

#[test]
#[ignore = "no_hostile_peer_… starts it in a process of its own"]
fn a_client_alone() {
    let port = std::env::var("DTKAFKA_HOSTILE_PORT").unwrap().parse().unwrap();
    let kind = Kind::named(&std::env::var("DTKAFKA_HOSTILE_CLIENT").unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let said = runtime.block_on(clients::run(kind, port, time()));
    for text in said {
        println!("said: {text}");
    }
    // The end of a client that is used is no part of this.
    runtime.shutdown_background();
}
