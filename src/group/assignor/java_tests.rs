//! Groups that were given to Kafka's own assignors, with their answers: `tests/fixtures/GenerateAssignments.java` says how the
//! lines are to be read. Range and round-robin must give the same; the sticky ones must be as even, and as sticky where they
//! are.

use std::{collections::BTreeMap, path::Path, process::Command, sync::Arc};

use dtkafka_testcontainers::launch::Kafka;

use super::{Assignment, GroupInfo, GroupMember, Racks, Strategy};
use crate::record::TopicPartition;

/// A group and Java's answers, as the place of the member that gets each partition.
struct Case<'a> {
    line: &'a str,
    members: Vec<GroupMember>,
    counts: BTreeMap<Arc<str>, i32>,
    racks: Racks,
    partitions: Vec<TopicPartition>,
    /// Of each partition the members that say they own it.
    claims: Vec<Vec<usize>>,
    answers: [Option<Owners>; 4],
}

type Owners = Vec<Option<usize>>;

fn digit(text: char) -> Option<usize> {
    text.to_digit(36).map(|digit| digit as usize)
}

/// Name, number of partitions and, where known, the racks of each one's replicas.
type TopicOfCase = (Arc<str>, i32, Option<Vec<Vec<Arc<str>>>>);

fn read_topic(text: &str) -> TopicOfCase {
    let (name, rest) = text.split_at(1);
    let (count, racks) = rest.split_once(':').map_or((rest, None), |(count, racks)| (count, Some(racks)));
    let of_partition = |replicas: &str| {
        replicas.chars().filter(|rack| *rack != '.').map(|rack| Arc::from(rack.to_string())).collect()
    };
    (name.into(), count.parse().unwrap(), racks.map(|racks| racks.split(',').map(of_partition).collect()))
}

fn read_member(text: &str) -> GroupMember {
    let [id, instance, rack, topics, generation] = text.split(';').collect::<Vec<_>>()[..] else {
        panic!("{text}")
    };
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    GroupMember {
        instance_id: some(instance),
        generation: generation.parse().unwrap(),
        rack: some(rack),
        ..GroupMember::new(id, topics.chars().map(String::from))
    }
}

impl<'a> Case<'a> {
    fn read(line: &'a str) -> Self {
        let [topics, members, claims, answers @ ..] = &line.split('|').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let mut case = Self {
            line,
            members: members.split(' ').map(read_member).collect(),
            counts: BTreeMap::new(),
            racks: Racks::new(),
            partitions: Vec::new(),
            claims: claims.split(',').map(|digits| digits.chars().filter_map(digit).collect()).collect(),
            answers: [0, 1, 2, 3].map(|at| {
                Some(answers[at])
                    .filter(|answer| *answer != "!")
                    .map(|answer| answer.chars().map(digit).collect())
            }),
        };
        for (name, count, racks) in topics.split(' ').map(read_topic) {
            case.partitions
                .extend((0..count).map(|partition| TopicPartition { topic: name.clone(), partition }));
            case.counts.insert(name.clone(), count);
            case.racks.extend(racks.map(|racks| (name, racks)));
        }
        case.claims.resize(case.partitions.len(), Vec::new());
        for (partition, claims) in case.partitions.iter().zip(&case.claims) {
            for member in claims {
                case.members[*member].owned.push(partition.clone());
            }
        }
        // Java's sticky classes give to a member without any topic, if it comes first, what it has not subscribed to.
        for answer in &mut case.answers {
            let is_right = |(owner, partition): (&Option<usize>, &TopicPartition)| {
                owner.is_none_or(|owner| case.members[owner].topics.contains(&partition.topic))
            };
            answer.take_if(|owners| !owners.iter().zip(&case.partitions).all(is_right));
        }
        case
    }

    fn assign(&self, strategy: &Strategy) -> Owners {
        self.owners(
            &strategy.assign(&GroupInfo::new(&self.members, &self.counts).with_racks(&self.racks)).unwrap(),
        )
    }

    fn owners(&self, assignment: &Assignment) -> Owners {
        let has = |partition, member: &GroupMember| assignment[&member.member_id].contains(partition);
        let owner = |partition| self.members.iter().position(|member| has(partition, member));
        self.partitions.iter().map(owner).collect()
    }

    /// Who has it by the rules: of all that say so the one of the latest generation, if it is alone and still subscribed.
    fn rightful(&self, at: usize) -> Option<usize> {
        let claims = &self.claims[at];
        let generation = |member: &usize| self.members[*member].generation;
        let latest = claims.iter().map(generation).max()?;
        let [one] = claims.iter().filter(|member| generation(member) == latest).collect::<Vec<_>>()[..]
        else {
            return None;
        };
        Some(*one).filter(|member| self.members[*member].topics.contains(&self.partitions[at].topic))
    }

    fn kept(&self, owners: &Owners) -> usize {
        owners
            .iter()
            .enumerate()
            .filter(|(at, owner)| owner.is_some() && **owner == self.rightful(*at))
            .count()
    }

    /// Java's score: what the members' numbers of partitions differ by, each from each. 0 is perfect.
    fn unevenness(&self, owners: &Owners) -> usize {
        let loads: Vec<usize> = (0..self.members.len())
            .map(|m| owners.iter().filter(|owner| **owner == Some(m)).count())
            .collect();
        let from = |(at, load): (usize, &usize)| {
            loads[at..].iter().map(|other| other.abs_diff(*load)).sum::<usize>()
        };
        loads.iter().enumerate().map(from).sum()
    }

    fn check(&self) {
        let line = self.line;
        for (strategy, java) in [Strategy::Range, Strategy::RoundRobin].into_iter().zip(&self.answers) {
            assert_eq!(Some(&self.assign(&strategy)), java.as_ref(), "{strategy:?}: {line}");
        }
        let sticky = self.assign(&Strategy::Sticky);
        let as_even = self.answers[2].as_ref().is_some_and(|java| {
            let (ours, javas) = (self.unevenness(&sticky), self.unevenness(java));
            assert!(ours <= javas, "{ours} beside {javas}: {sticky:?}: {line}");
            let (kept, javas) = (self.kept(&sticky), self.kept(java));
            assert!(
                ours < self.unevenness(java) || kept >= javas,
                "{kept} kept beside {javas}: {sticky:?}: {line}"
            );
            ours == self.unevenness(java)
        });
        let first = self.assign(&Strategy::CooperativeSticky);
        for (at, owner) in first.iter().enumerate().filter(|(_, owner)| owner.is_some()) {
            let is_held = !self.claims[at].is_empty() && *owner != self.rightful(at);
            assert!(!is_held, "{:?} is taken from its owner: {first:?}: {line}", self.partitions[at]);
        }
        assert_eq!(self.kept(&first), self.kept(&sticky), "{line}");
        if let Some(java) = self.answers[3].as_ref().filter(|_| as_even) {
            assert!(self.kept(&first) >= self.kept(java), "{first:?}: {line}");
        }
        // Once all have what they were given and nothing else, the rest is given away, and that is all.
        let second = self.after(&first);
        let last = second.assign(&Strategy::CooperativeSticky);
        assert_eq!(second.kept(&last), first.iter().flatten().count(), "{line}");
        assert_eq!(self.unevenness(&last), self.unevenness(&sticky), "{line}");
        assert_eq!(second.after(&last).assign(&Strategy::CooperativeSticky), last, "{line}");
    }

    /// The group after a rebalance.
    fn after(&self, owners: &Owners) -> Self {
        let owned = |at: usize| {
            let own = self.partitions.iter().zip(owners).filter(move |(_, owner)| **owner == Some(at));
            own.map(|(partition, _)| partition.clone()).collect()
        };
        let member = |(at, member): (usize, &GroupMember)| GroupMember {
            owned: owned(at),
            generation: 8,
            ..member.clone()
        };
        Self {
            line: self.line,
            members: self.members.iter().enumerate().map(member).collect(),
            counts: self.counts.clone(),
            racks: self.racks.clone(),
            partitions: self.partitions.clone(),
            claims: owners.iter().map(|owner| owner.iter().copied().collect()).collect(),
            answers: Default::default(),
        }
    }
}

#[test]
fn what_javas_assignors_answered_is_answered_here() {
    let lines = include_str!("../../../tests/fixtures/assignments.txt");
    assert_eq!(lines.lines().map(|line| Case::read(line).check()).count(), 300);
}

/// Other groups, where Java can be had: a thousand, and ten thousand where real Kafka is required (`DTKAFKA_REQUIRE_KAFKA`).
#[test]
fn what_javas_assignors_answer_now_is_answered_here() {
    let Some(kafka) = Kafka::for_tests().unwrap() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let jars = match runtime.block_on(kafka.version("4.3.1").jars()) {
        Ok(jars) => jars.join("*"),
        Err(missing) => return eprintln!("SKIPPED: {missing}"),
    };
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/GenerateAssignments.java");
    let mut java = Command::new("java");
    // Without the compiler that optimizes: most of the time goes into compiling the source.
    java.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
    java.args(["-Xmx512m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=off", "-cp"]).arg(jars).arg(source);
    let groups = if std::env::var_os("DTKAFKA_REQUIRE_KAFKA").is_some() { 10_000 } else { 1_000 };
    let answer = match java.args([&groups.to_string(), "2", "10"]).output() {
        Ok(answer) => answer,
        Err(missing) => return eprintln!("SKIPPED: java: {missing}"),
    };
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    let lines = String::from_utf8(answer.stdout).unwrap();
    assert_eq!(lines.lines().map(|line| Case::read(line).check()).count(), groups);
}
