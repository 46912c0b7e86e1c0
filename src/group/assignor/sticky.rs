//! Java's `StickyAssignor` and `CooperativeStickyAssignor` in what they promise: as even as subscriptions allow, and members
//! keep what they have where that does not make it uneven (KIP-54, KIP-341, KIP-429).
//!
//! What a member says it owns counts by the generation it says so of; of two that claim the same partition the later is
//! believed, and of the same generation neither. With cooperative rebalancing a partition that changes hands is given to
//! nobody in the round in which its owner gives it up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Given, Subscriber, partition_of};
use crate::record::TopicPartition;

pub(super) fn assign(
    members: &[&Subscriber],
    counts: &BTreeMap<Arc<str>, i32>,
    cooperative: bool,
    given: &mut Given,
) {
    let topics = Topics::new(members, counts);
    let owners = owners(members, &topics);
    let mut owner_of = owners.clone();
    let mut load = vec![0usize; members.len()];
    for owner in owner_of.values() {
        load[*owner] += 1;
    }
    // Those with the fewest candidates first: the others find room elsewhere.
    let mut free: Vec<_> = topics.partitions().filter(|key| !owner_of.contains_key(key)).collect();
    free.sort_by_key(|key| topics.subscribers(&key.topic).len());
    for key in free {
        let least =
            topics.subscribers(&key.topic).iter().copied().min_by_key(|member| (load[*member], *member));
        if let Some(member) = least {
            load[member] += 1;
            owner_of.insert(key, member);
        }
    }
    even_out(&topics, &mut owner_of, &mut load);
    for (key, member) in owner_of {
        let moves = owners.get(&key).is_some_and(|owner| *owner != member);
        if !(cooperative && moves) {
            given[member].push(key);
        }
    }
}

/// Moves partitions to who has fewer by two or more, until nobody has. Each move makes the squares of all loads sum up to
/// less, so it ends.
fn even_out(topics: &Topics<'_>, owner_of: &mut BTreeMap<TopicPartition, usize>, load: &mut [usize]) {
    loop {
        let mut moved = false;
        // Loads only come closer to each other: who has less than two more than the least of now never gives anything.
        let floor = load.iter().copied().min().unwrap_or(0);
        for (key, owner) in owner_of.iter_mut() {
            if load[*owner] < floor + 2 {
                continue;
            }
            let least =
                topics.subscribers(&key.topic).iter().copied().min_by_key(|member| (load[*member], *member));
            if let Some(least) = least.filter(|least| load[*least] + 2 <= load[*owner]) {
                load[*owner] -= 1;
                load[least] += 1;
                *owner = least;
                moved = true;
            }
        }
        if !moved {
            return;
        }
    }
}

/// Who owns what by the members' own word.
fn owners(members: &[&Subscriber], topics: &Topics<'_>) -> BTreeMap<TopicPartition, usize> {
    let mut claims: BTreeMap<&TopicPartition, (i32, Option<usize>)> = BTreeMap::new();
    for (index, member) in members.iter().enumerate() {
        let generation = member.generation;
        for key in
            member.owned.iter().filter(|key| topics.has(key) && topics.is_subscribed(index, &key.topic))
        {
            claims
                .entry(key)
                .and_modify(|claim| match claim.0.cmp(&generation) {
                    std::cmp::Ordering::Less => *claim = (generation, Some(index)),
                    std::cmp::Ordering::Equal if claim.1 != Some(index) => claim.1 = None,
                    _ => {}
                })
                .or_insert((generation, Some(index)));
        }
    }
    claims.into_iter().filter_map(|(key, (_, owner))| Some((key.clone(), owner?))).collect()
}

struct Topics<'a> {
    /// Partition count and subscribers, as places in the list of members.
    topics: BTreeMap<&'a Arc<str>, (i32, Vec<usize>)>,
    subscriptions: Vec<BTreeSet<&'a str>>,
}

impl<'a> Topics<'a> {
    fn new(members: &'a [&Subscriber], counts: &'a BTreeMap<Arc<str>, i32>) -> Self {
        let subscriptions: Vec<BTreeSet<&str>> =
            members.iter().map(|member| member.topics.iter().map(|topic| &**topic).collect()).collect();
        let mut topics: BTreeMap<&Arc<str>, (i32, Vec<usize>)> =
            counts.iter().map(|(topic, count)| (topic, (*count, Vec::new()))).collect();
        for (index, member) in members.iter().enumerate() {
            for topic in member.topics.iter().collect::<BTreeSet<_>>() {
                if let Some((_, subscribers)) = topics.get_mut(topic) {
                    subscribers.push(index);
                }
            }
        }
        topics.retain(|_, (_, subscribers)| !subscribers.is_empty());
        Self { topics, subscriptions }
    }

    fn partitions(&self) -> impl Iterator<Item = TopicPartition> {
        self.topics
            .iter()
            .flat_map(|(topic, (count, _))| (0..*count).map(|partition| partition_of(topic, partition)))
    }

    fn has(&self, key: &TopicPartition) -> bool {
        self.topics.get(&key.topic).is_some_and(|(count, _)| (0..*count).contains(&key.partition))
    }

    fn is_subscribed(&self, member: usize, topic: &str) -> bool {
        self.subscriptions.get(member).is_some_and(|topics| topics.contains(topic))
    }

    fn subscribers(&self, topic: &Arc<str>) -> &[usize] {
        self.topics.get(topic).map_or(&[], |(_, subscribers)| subscribers)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Assignor,
        tests::{counts, expected, member, shown},
    };
    use super::*;

    fn owning(id: &str, topics: &[&str], owned: &[(&str, i32)], generation: i32) -> Subscriber {
        let owned = owned.iter().map(|(topic, partition)| TopicPartition::new(*topic, *partition)).collect();
        Subscriber { owned, generation, ..member(id, topics) }
    }

    #[test]
    fn members_keep_what_they_have_and_a_new_one_gets_its_share() {
        let members = [
            owning("a", &["t"], &[("t", 0), ("t", 2), ("t", 4)], 1),
            owning("b", &["t"], &[("t", 1), ("t", 3), ("t", 5)], 1),
            member("c", &["t"]),
        ];
        let assignment = Assignor::Sticky.assign(&members, &counts(&[("t", 6)]));
        assert!(assignment.values().all(|partitions| partitions.len() == 2), "{assignment:?}");
        for id in ["a", "b"] {
            let owned = &members.iter().find(|member| member.member_id == id).unwrap().owned;
            assert!(assignment[id].iter().all(|key| owned.contains(key)), "{assignment:?}");
        }
    }

    #[test]
    fn a_partition_that_changes_hands_is_withheld_until_it_is_given_up() {
        let before = [owning("a", &["t"], &[("t", 0), ("t", 1)], 1), member("b", &["t"])];
        let first = Assignor::CooperativeSticky.assign(&before, &counts(&[("t", 2)]));
        assert_eq!((first["a"].len(), first["b"].len()), (1, 0), "{first:?}");
        let kept = first["a"][0].partition;
        let after = [owning("a", &["t"], &[("t", kept)], 2), owning("b", &["t"], &[], 2)];
        let second = Assignor::CooperativeSticky.assign(&after, &counts(&[("t", 2)]));
        assert_eq!((second["a"].clone(), second["b"].len()), (first["a"].clone(), 1));
    }

    #[test]
    fn of_two_that_claim_the_same_the_later_is_believed_and_of_the_same_generation_neither() {
        let stale = [owning("a", &["t"], &[("t", 0)], 1), owning("b", &["t"], &[("t", 0)], 2)];
        let assignment = Assignor::CooperativeSticky.assign(&stale, &counts(&[("t", 1)]));
        assert_eq!(shown(&assignment), expected(&[("a", ""), ("b", "tp0")]));
        let same = [owning("a", &["t"], &[("t", 0)], 2), owning("b", &["t"], &[("t", 0)], 2)];
        let assignment = Assignor::CooperativeSticky.assign(&same, &counts(&[("t", 1)]));
        assert_eq!(assignment.values().map(Vec::len).sum::<usize>(), 1);
    }

    #[test]
    fn different_subscriptions_are_as_even_as_they_allow() {
        let members = [member("a", &["t"]), member("b", &["t", "u"]), member("c", &["u"])];
        let assignment = Assignor::Sticky.assign(&members, &counts(&[("t", 4), ("u", 2)]));
        let mut sizes: Vec<_> = assignment.values().map(Vec::len).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [2, 2, 2], "{assignment:?}");
    }

    #[test]
    fn what_was_owned_of_topics_that_are_gone_or_not_subscribed_any_more_is_forgotten() {
        let members =
            [owning("a", &["t"], &[("gone", 0), ("t", 9), ("u", 0), ("t", 0)], 1), member("b", &["u"])];
        let assignment = Assignor::Sticky.assign(&members, &counts(&[("t", 1), ("u", 1)]));
        assert_eq!(shown(&assignment), expected(&[("a", "tp0"), ("b", "up0")]));
    }
}
