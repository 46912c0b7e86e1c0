//! Who gets which partition: pure functions of a group, run by its leader.
//!
//! Deterministic by rule: members and topics are sorted first, so that the same group gives the same answer whoever leads.
//! Range and round-robin give what Java's classes give; the sticky ones are as even as can be, and then as sticky
//! (`java_tests.rs` compares). KIP-54, KIP-341, KIP-345, KIP-429, KIP-881.

mod balance;
mod own;
mod range;
mod round_robin;
mod sticky;

#[cfg(test)]
mod java_tests;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;

pub use self::own::Assignor;
pub(crate) use self::own::OwnAssignor;
use crate::{
    error::Result,
    record::TopicPartition,
    sorted::{self, Map},
};

/// A member of a classic group as the group's leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupMember {
    /// The id that the coordinator gave it.
    pub member_id: String,
    /// `group.instance.id` of a static member (KIP-345).
    pub instance_id: Option<String>,
    /// What it is subscribed to.
    pub topics: Vec<Arc<str>>,
    /// What it says it owns; nothing with eager rebalancing, but where the assignor is `sticky`.
    pub owned: Vec<TopicPartition>,
    /// The generation that `owned` is of; -1 where it does not say.
    pub generation: i32,
    /// `client.rack` (KIP-881).
    pub rack: Option<String>,
    /// What its [`Assignor::user_data`] said.
    pub user_data: Option<Bytes>,
}

impl GroupMember {
    /// A member that owns nothing and says nothing of itself: for tests of an [`Assignor`].
    pub fn new(member_id: impl Into<String>, topics: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Self {
        Self {
            member_id: member_id.into(),
            instance_id: None,
            topics: topics.into_iter().map(Into::into).collect(),
            owned: Vec::new(),
            generation: -1,
            rack: None,
            user_data: None,
        }
    }

    /// Java's order: static members first, by their instance id, so that a restart does not move partitions.
    fn order(&self, other: &Self) -> Ordering {
        match (&self.instance_id, &other.instance_id) {
            (Some(a), Some(b)) => a.cmp(b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => self.member_id.cmp(&other.member_id),
        }
    }

    fn rack(&self) -> Option<&str> {
        self.rack.as_deref().filter(|rack| !rack.is_empty())
    }
}

/// For each topic, the racks of the replicas of each partition. Topics that are not in it have none.
pub(crate) type Racks = Map<Arc<str>, Vec<Vec<Arc<str>>>>;

/// A classic group as its leader sees it: what an [`Assignor`] goes by.
#[derive(Debug, Clone, Copy)]
pub struct GroupInfo<'a> {
    members: &'a [GroupMember],
    counts: &'a BTreeMap<Arc<str>, i32>,
    racks: Option<&'a Racks>,
}

impl<'a> GroupInfo<'a> {
    /// `counts`: how many partitions each of the members' topics has; 0, or nothing, of one that is not there.
    pub fn new(members: &'a [GroupMember], counts: &'a BTreeMap<Arc<str>, i32>) -> Self {
        Self { members, counts, racks: None }
    }

    pub(crate) fn with_racks(self, racks: &'a Racks) -> Self {
        Self { racks: Some(racks), ..self }
    }

    /// The members, in the coordinator's order.
    pub fn members(&self) -> &'a [GroupMember] {
        self.members
    }

    /// The members' topics by name, with how many partitions they have; 0 of one that is not there (yet): the leader calls for
    /// a rebalance when the number changes.
    pub fn topics(&self) -> &'a BTreeMap<Arc<str>, i32> {
        self.counts
    }

    /// Every partition of every topic that this member is subscribed to.
    pub fn partitions_for(&self, member: &GroupMember) -> Vec<TopicPartition> {
        let partitions = |topic: &Arc<str>| {
            let topic = Arc::clone(topic);
            let count = self.counts.get(&topic).copied().unwrap_or(0);
            (0..count).map(move |partition| TopicPartition { topic: Arc::clone(&topic), partition })
        };
        member.topics.iter().flat_map(partitions).collect()
    }

    /// The racks of a partition's replicas (`broker.rack`), as far as brokers say them.
    pub fn racks(&self, topic: &str, partition: i32) -> &'a [Arc<str>] {
        let of_topic = self.racks.and_then(|racks| racks.get(topic));
        usize::try_from(partition).ok().and_then(|at| of_topic?.get(at)).map_or(&[], |racks| racks)
    }
}

/// The partitions of every member by member id; a member without any has an empty list.
pub(crate) type Assignment = BTreeMap<String, Vec<TopicPartition>>;

/// An assignment strategy (`partition.assignment.strategy`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Strategy {
    Range,
    RoundRobin,
    Sticky,
    CooperativeSticky,
    Own(OwnAssignor),
}

impl Strategy {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 4] = [Self::Range, Self::RoundRobin, Self::Sticky, Self::CooperativeSticky];

    /// Whether members keep their partitions while the group rebalances (KIP-429).
    pub(crate) fn is_cooperative(&self) -> bool {
        match self {
            Self::Own(own) => own.is_cooperative,
            built_in => *built_in == Self::CooperativeSticky,
        }
    }

    /// The name on the wire.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Range => "range",
            Self::RoundRobin => "roundrobin",
            Self::Sticky => "sticky",
            Self::CooperativeSticky => "cooperative-sticky",
            Self::Own(own) => own.name(),
        }
    }

    /// A built-in one.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "range" => Self::Range,
            "roundrobin" => Self::RoundRobin,
            "sticky" => Self::Sticky,
            "cooperative-sticky" => Self::CooperativeSticky,
            _ => return None,
        })
    }

    /// Deals out the partitions of every topic among the members subscribed to it; each member's are sorted.
    ///
    /// # Errors
    /// The user's own assignor panicked, or what it says cannot be.
    pub(crate) fn assign(&self, group: &GroupInfo<'_>) -> Result<Assignment> {
        let mut members: Vec<&GroupMember> = group.members.iter().collect();
        sorted::sort_by(&mut members, |a, b| a.order(b));
        let topics = subscribed(&members, group.counts);
        let mut given: Given = vec![Vec::new(); members.len()];
        match self {
            Self::Range => range::assign(&members, &topics, group.racks, &mut given),
            Self::RoundRobin => round_robin::assign(&topics, &mut given),
            Self::Sticky => sticky::assign(&members, &topics, false, &mut given),
            Self::CooperativeSticky => sticky::assign(&members, &topics, true, &mut given),
            Self::Own(own) => return own.assign(group),
        }
        let mut assignment = Assignment::new();
        for (member, mut partitions) in members.into_iter().zip(given) {
            partitions.sort_unstable();
            assignment.entry(member.member_id.clone()).or_default().append(&mut partitions);
        }
        Ok(assignment)
    }
}

/// The partitions of every member, at its place in the sorted list: to look a member up by its id for every partition would
/// cost more than all the rest.
type Given = Vec<Vec<TopicPartition>>;

/// A topic that has partitions and subscribers.
struct Topic<'a> {
    name: &'a Arc<str>,
    count: i32,
    /// Places in the sorted list of members, ascending.
    subscribers: Vec<usize>,
}

impl Topic<'_> {
    fn partition(&self, partition: i32) -> TopicPartition {
        TopicPartition { topic: Arc::clone(self.name), partition }
    }
}

/// The topics to be dealt out, by name. Each subscription is looked at once.
fn subscribed<'a>(members: &[&GroupMember], counts: &'a BTreeMap<Arc<str>, i32>) -> Vec<Topic<'a>> {
    let there = counts.iter().filter(|(_, count)| **count > 0);
    let mut topics: Vec<Topic<'_>> =
        there.map(|(name, count)| Topic { name, count: *count, subscribers: Vec::new() }).collect();
    let places: HashMap<&str, usize> =
        topics.iter().enumerate().map(|(place, topic)| (&**topic.name, place)).collect();
    for (member, topic) in
        members.iter().enumerate().flat_map(|(at, m)| m.topics.iter().map(move |t| (at, t)))
    {
        let Some(topic) = places.get(&**topic).and_then(|place| topics.get_mut(*place)) else { continue };
        // A topic that a member names twice counts once.
        if topic.subscribers.last() != Some(&member) {
            topic.subscribers.push(member);
        }
    }
    topics.retain(|topic| !topic.subscribers.is_empty());
    topics
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use proptest::prelude::*;

    use super::{Assignment, GroupInfo, GroupMember, Strategy};

    pub(super) fn member(id: &str, topics: &[&str]) -> GroupMember {
        GroupMember::new(id, topics.iter().copied())
    }

    pub(super) fn counts(topics: &[(&str, i32)]) -> BTreeMap<Arc<str>, i32> {
        topics.iter().map(|(topic, count)| (Arc::from(*topic), *count)).collect()
    }

    pub(super) fn shown(assignment: &Assignment) -> Vec<(String, String)> {
        assignment
            .iter()
            .map(|(member, partitions)| {
                let partitions: Vec<_> =
                    partitions.iter().map(|p| format!("{}p{}", p.topic, p.partition)).collect();
                (member.clone(), partitions.join(" "))
            })
            .collect()
    }

    pub(super) fn expected(rows: &[(&str, &str)]) -> Vec<(String, String)> {
        rows.iter().map(|(member, partitions)| ((*member).to_owned(), (*partitions).to_owned())).collect()
    }

    #[test]
    fn static_members_come_first_in_the_order_of_their_instance_ids() {
        let mut members = vec![member("a", &["t"]), member("b", &["t"]), member("c", &["t"])];
        members[1].instance_id = Some("2".to_owned());
        members[2].instance_id = Some("1".to_owned());
        let assignment = Strategy::Range.assign(&GroupInfo::new(&members, &counts(&[("t", 3)]))).unwrap();
        assert_eq!(shown(&assignment), expected(&[("a", "tp2"), ("b", "tp1"), ("c", "tp0")]));
    }

    proptest! {
        #[test]
        fn every_partition_of_a_subscribed_topic_has_one_owner_that_subscribed_to_it(
            subscriptions in proptest::collection::vec(proptest::collection::btree_set(0..5usize, 0..5), 1..9),
            sizes in proptest::collection::vec(0..7i32, 5),
        ) {
            let names = ["t0", "t1", "t2", "t3", "t4"];
            let members: Vec<_> = subscriptions.iter().enumerate().map(|(index, topics)| {
                member(&format!("m{index}"), &topics.iter().map(|topic| names[*topic]).collect::<Vec<_>>())
            }).collect();
            let counts = counts(&names.iter().copied().zip(sizes).collect::<Vec<_>>());
            for strategy in Strategy::ALL {
                let assignment = strategy.assign(&GroupInfo::new(&members, &counts)).unwrap();
                prop_assert_eq!(assignment.len(), members.len());
                let mut owners = BTreeMap::new();
                for member in &members {
                    for partition in &assignment[&member.member_id] {
                        prop_assert!(member.topics.contains(&partition.topic));
                        prop_assert!(owners.insert(partition.clone(), &member.member_id).is_none());
                    }
                }
                for (topic, count) in &counts {
                    let wanted = members.iter().any(|member| member.topics.contains(topic));
                    let owned = owners.keys().filter(|partition| partition.topic == *topic).count();
                    prop_assert_eq!(owned, if wanted { *count as usize } else { 0 });
                }
            }
        }
    }
}
