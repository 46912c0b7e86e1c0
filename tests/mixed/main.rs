//! Groups of ours and of other clients on real Apache Kafka: Java, franz-go, kafka-python, librdkafka, and a member that
//! speaks old bytes by hand; each assignor, with ours leading and following. After every change each partition has one
//! owner, and ours own what the coordinator says.
//!
//! It needs what real Kafka needs, javac, go and python3; what is missing is named. `DTKAFKA_REQUIRE_FOREIGN=1` demands it.

#![allow(missing_docs, reason = "the names of tests are sentences")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and spawn, and so may what its tests share"
)]

mod by_hand;
mod foreign;

use std::{
    collections::BTreeSet,
    env,
    sync::Arc,
    time::{Duration, Instant},
};

use dtkafka::{
    GroupDescription, KafkaAdmin, KafkaConfig, KafkaConsumer, KafkaInstance, NewTopic, TopicPartition,
};
use dtkafka_testcontainers::launch::Kafka;
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    by_hand::ByHand,
    foreign::{BY_BROKER, Library, Programs},
};

const ASSIGNORS: [&str; 4] = ["range", "roundrobin", "sticky", "cooperative-sticky"];
const PARTITIONS: i32 = 5;

#[test]
fn every_partition_has_one_owner_in_groups_with_other_clients() {
    let Some(builder) = Kafka::for_tests().unwrap() else { return };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let kafka = builder
            .property("group.min.session.timeout.ms", "1000")
            .property("group.consumer.min.session.timeout.ms", "1000")
            .property("group.consumer.session.timeout.ms", "6000")
            .property("group.consumer.min.heartbeat.interval.ms", "100")
            .property("group.consumer.heartbeat.interval.ms", "500")
            .start()
            .await
            .unwrap();
        let programs = match Programs::build(&kafka).await {
            Ok(programs) => programs,
            Err(why) if env::var("DTKAFKA_REQUIRE_FOREIGN").as_deref() == Ok("1") => {
                panic!("DTKAFKA_REQUIRE_FOREIGN=1, but the other clients cannot be had: {why}")
            }
            Err(why) => return eprintln!("SKIPPED: no clients of other authors: {why}"),
        };
        for assignor in ASSIGNORS {
            Round::start(&kafka, assignor).await.run(&programs).await;
        }
        if kafka
            .version()
            .split('.')
            .next()
            .and_then(|major| major.parse().ok())
            .is_some_and(|major: u32| major >= 4)
        {
            Round::start(&kafka, BY_BROKER).await.run(&programs).await;
        } else {
            eprintln!("SKIPPED: the consumer protocol (KIP-848): Kafka {} does not have it", kafka.version());
        }
        kafka.stop().await.unwrap();
    });
}

/// One group with one assignor.
struct Round {
    servers: String,
    assignor: &'static str,
    group: String,
    topics: Vec<String>,
    admin: KafkaAdmin,
}

/// A member of ours that polls on a task.
struct Ours {
    consumer: Arc<KafkaConsumer>,
    end: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Round {
    async fn start(kafka: &Kafka, assignor: &'static str) -> Self {
        let servers = kafka.bootstrap_servers();
        let admin = KafkaInstance::new(KafkaConfig::new().set_bootstrap_servers(&servers))
            .unwrap()
            .admin()
            .await
            .unwrap();
        let topics = ["a", "b"].map(|name| format!("{name}-{assignor}")).to_vec();
        for topic in &topics {
            admin
                .create_topic(NewTopic::new(topic).partitions(PARTITIONS).replication_factor(1))
                .await
                .unwrap();
        }
        Self { servers, assignor, group: format!("mixed-{assignor}"), topics, admin }
    }

    async fn run(self, programs: &Programs) {
        let foreign =
            |library| programs.start(library, &self.servers, &self.group, self.assignor, &self.topics);
        let libraries: Vec<Library> =
            Library::ALL.into_iter().filter(|l| l.knows(self.assignor) && programs.has(*l)).collect();

        let first = self.ours().await;
        let mut others = Vec::new();
        self.settled(1, &[&first], "ours alone").await;
        for library in &libraries {
            others.push(foreign(*library));
            self.settled(1 + others.len(), &[&first], &format!("{library:?} joined ours")).await;
        }
        let mut by_hand = Vec::new();
        // The cooperative protocol needs owned partitions in the subscription, and so version 1.
        // Nobody speaks that of the broker by hand.
        let is_old = !matches!(self.assignor, "cooperative-sticky" | BY_BROKER);
        for version in if !is_old { &[][..] } else { &[0, 1][..] } {
            by_hand.push(ByHand::start(
                self.servers.clone(),
                &self.group,
                self.assignor,
                *version,
                &self.topics,
            ));
            let count = 1 + others.len() + by_hand.len();
            self.settled(count, &[&first], &format!("a subscription of version {version} joined ours")).await;
        }
        for member in by_hand {
            member.leave().await;
        }
        // The leader goes, and one of the others leads.
        first.close().await;
        self.settled(others.len(), &[], "ours left").await;
        let second = self.ours().await;
        self.settled(others.len() + 1, &[&second], "ours follows").await;
        let third = self.ours().await;
        self.settled(others.len() + 2, &[&second, &third], "a second of ours follows").await;
        // One is killed without a word, the others leave one by one, until ours are alone and lead again.
        drop(others.remove(0));
        self.settled(others.len() + 2, &[&second, &third], "one was killed").await;
        while let Some(other) = others.pop() {
            tokio::task::spawn_blocking(|| other.leave()).await.unwrap();
            self.settled(others.len() + 2, &[&second, &third], "one left").await;
        }
        second.close().await;
        self.settled(1, &[&third], "the last").await;
        third.close().await;
        eprintln!(
            "mixed: {} with {libraries:?}: every partition had one owner after each change",
            self.assignor
        );
    }

    async fn ours(&self) -> Ours {
        let config = KafkaConfig::new()
            .set_bootstrap_servers(&self.servers)
            .set_group_id(&self.group)
            .set_auto_offset_reset("earliest");
        let config = match self.assignor {
            BY_BROKER => config.set("group.protocol", "consumer"),
            assignor => config
                .set("partition.assignment.strategy", assignor)
                .set("session.timeout.ms", 6000)
                .set("heartbeat.interval.ms", 500),
        };
        let kafka = KafkaInstance::new(config).unwrap();
        let consumer = Arc::new(kafka.get_consumer(self.topics.iter().map(String::as_str)).await.unwrap());
        let (end, mut ended) = watch::channel(false);
        let polled = Arc::clone(&consumer);
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    _ = ended.wait_for(|ended| *ended) => return,
                    polled = polled.poll(Duration::from_millis(100)) => drop(polled.unwrap()),
                }
            }
        });
        Ours { consumer, end, task }
    }

    /// Waits until the group is stable with so many members, every partition has one owner, and ours own what they think.
    async fn settled(&self, members: usize, ours: &[&Ours], what: &str) {
        let began = Instant::now();
        let mut last = String::new();
        while began.elapsed() < Duration::from_secs(60) {
            match self.admin.describe_group(&self.group).await {
                Ok(group) => match self.judge(&group, members, ours) {
                    Ok(()) => return,
                    Err(why) => last = format!("{why}: {group:?}"),
                },
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{}, {what}: {last}", self.assignor);
    }

    fn judge(&self, group: &GroupDescription, members: usize, ours: &[&Ours]) -> Result<(), String> {
        if group.state != "Stable" || group.members.len() != members {
            return Err(format!("not stable with {members} members"));
        }
        let mut owned: BTreeSet<&TopicPartition> = BTreeSet::new();
        for partition in group.members.iter().flat_map(|member| &member.assignment) {
            if !owned.insert(partition) {
                return Err(format!("{partition:?} has two owners"));
            }
        }
        let all = self.topics.len() * usize::try_from(PARTITIONS).unwrap();
        if owned.len() != all {
            return Err(format!("{} of {all} partitions have an owner", owned.len()));
        }
        for member in ours {
            let mine: BTreeSet<TopicPartition> = member.consumer.assignment().into_iter().collect();
            let told = |m: &&dtkafka::MemberDescription| mine == m.assignment.iter().cloned().collect();
            if group.members.iter().filter(told).count() == 0 {
                return Err(format!("ours thinks it owns {mine:?}"));
            }
        }
        Ok(())
    }
}

impl Ours {
    async fn close(self) {
        self.end.send_replace(true);
        self.task.await.unwrap();
        self.consumer.close(Duration::from_secs(20)).await.unwrap();
    }
}
