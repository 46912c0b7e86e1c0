//! Faults of real brokers: one broker at a time is killed, paused beyond the clients' time-outs, or restarted in order.

use std::time::{Duration, Instant};

use dtkafka::{KafkaAdmin, TopicDescription};
use dtkafka_testcontainers::launch::Kafka;

/// What was done to brokers.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub(crate) killed: usize,
    pub(crate) paused: usize,
    pub(crate) restarted: usize,
}

impl Faults {
    fn count(&self) -> usize {
        self.killed + self.paused + self.restarted
    }
}

/// A small generator: the same seed makes the same faults, as far as real brokers go.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }
}

/// Longer than the clients' `request.timeout.ms` here.
const PAUSE: Duration = Duration::from_secs(8);

/// Goes on until `end`, and until there were `least` faults; says when a broker is paused or killed, and when it is back. Every node is
/// up when it returns.
pub(crate) async fn inject_faults(
    kafka: &mut Kafka,
    admin: &KafkaAdmin,
    topics: &[String],
    dice: &mut Dice,
    end: Instant,
    least: usize,
    sleeps: impl Fn(bool),
) -> Faults {
    let mut faults = Faults::default();
    while Instant::now() < end || faults.count() < least {
        let began = Instant::now();
        let index = usize::try_from(dice.below(kafka.nodes().len() as u64)).unwrap();
        let kind = dice.below(3);
        let node = kafka.node(index).unwrap();
        match kind {
            0 => {
                eprintln!("chaos: broker {} is killed", index + 1);
                // Nobody else coordinates its groups before the controller has missed it, which on a busy machine takes
                // longer than a session.
                sleeps(true);
                node.kill().await.unwrap();
                faults.killed += 1;
            }
            1 => {
                eprintln!("chaos: broker {} is paused", index + 1);
                sleeps(true);
                node.pause();
                faults.paused += 1;
            }
            _ => {
                eprintln!("chaos: broker {} is restarted", index + 1);
                node.shut_down(Duration::from_secs(20)).await.unwrap();
                faults.restarted += 1;
            }
        }
        let gone = began.elapsed();
        let away = if kind == 1 { PAUSE } else { Duration::from_millis(1000 + dice.below(4000)) };
        tokio::time::sleep(away).await;
        if kind == 1 {
            kafka.node(index).unwrap().resume();
        } else {
            kafka.restart(index).await.unwrap();
        }
        if kind < 2 {
            sleeps(false);
        }
        let up = began.elapsed();
        // A second broker that goes while the first catches up would leave partitions without a quorum: another test.
        in_sync(admin, topics).await;
        let (number, whole) = (faults.count(), began.elapsed());
        eprintln!(
            "chaos: fault {number}: gone after {gone:.1?}, serves after {up:.1?}, in sync after {whole:.1?}"
        );
        tokio::time::sleep(Duration::from_millis(500 + dice.below(1500))).await;
    }
    faults
}

/// Waits until every replica of every partition is in sync.
pub(crate) async fn in_sync(admin: &KafkaAdmin, topics: &[String]) {
    let whole = |topic: &TopicDescription| {
        topic.partitions.iter().all(|partition| partition.in_sync_replicas.len() == partition.replicas.len())
    };
    let all = async {
        loop {
            let mut missing = 0;
            for topic in topics {
                missing += usize::from(!admin.describe_topic(topic).await.as_ref().is_ok_and(&whole));
            }
            if missing == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), all).await.expect("the replicas come back in sync");
}
