//! Java's `StickyAssignor` and `CooperativeStickyAssignor` in what they promise: as even as subscriptions allow, and members
//! keep what they have where that does not make it uneven (KIP-54, KIP-341, KIP-429). `balance.rs` says how many each gets,
//! this which ones.
//!
//! What a member says it owns counts by the generation it says so of; of two that claim the same partition the later is
//! believed, and of the same generation neither. With cooperative rebalancing a partition that changes hands is given to
//! nobody in the round in which its owner gives it up. Racks do not count: to move a partition for one costs more than it
//! saves.

use std::{cmp::Ordering, collections::HashMap};

use crate::sorted::Map;

use super::{
    Given, GroupMember, Topic,
    balance::{Pool, balance},
};

pub(super) fn assign(members: &[&GroupMember], topics: &[Topic<'_>], cooperative: bool, given: &mut Given) {
    let claims = claims(members, topics);
    let mut pools: Map<&[usize], Vec<usize>> = Map::new();
    for (place, topic) in topics.iter().enumerate() {
        pools.entry(&topic.subscribers).or_default().push(place);
    }
    let (pools, places): (Vec<&[usize]>, Vec<Vec<usize>>) = pools.into_iter().unzip();
    let mut pools: Vec<Pool> = pools
        .into_iter()
        .zip(&places)
        .map(|(subscribers, places)| {
            let owners = places.iter().flat_map(|place| &claims[*place]).map(|claim| claim.owner);
            Pool::new(subscribers, owners)
        })
        .collect();
    balance(&mut pools, members.len());
    for (pool, places) in pools.into_iter().zip(places) {
        for (place, partition, member) in dealt(pool, &places, &claims) {
            let claim = &claims[place][partition as usize];
            if !(cooperative && claim.is_made && claim.owner != Some(member)) {
                given[member].push(topics[place].partition(partition));
            }
        }
    }
}

/// Which partitions of these topics go to whom, so that each member gets its share. A member that has too many keeps the
/// lowest; free ones are dealt out in turn.
fn dealt(mut pool: Pool, places: &[usize], claims: &[Vec<Claim>]) -> Vec<(usize, i32, usize)> {
    let mut all: Vec<(i32, usize)> = places
        .iter()
        .flat_map(|place| (0..).zip(&claims[*place]).map(|(partition, _)| (partition, *place)))
        .collect();
    all.sort_unstable();
    let (mut dealt, mut free) = (Vec::with_capacity(all.len()), Vec::new());
    for (partition, place) in all {
        match claims[place][partition as usize].owner {
            Some(owner) if pool.take(owner) => dealt.push((place, partition, owner)),
            _ => free.push((place, partition)),
        }
    }
    free.sort_unstable();
    let mut turn = 0;
    for (place, partition) in free {
        if let Some(member) = pool.take_next(&mut turn) {
            dealt.push((place, partition, member));
        }
    }
    dealt
}

/// What members say of a partition.
#[derive(Debug, Clone, Copy, Default)]
struct Claim {
    /// Somebody says that it owns it.
    is_made: bool,
    generation: i32,
    /// The member whose claim counts, if it is still subscribed.
    owner: Option<usize>,
}

/// Who owns each partition of each topic, as the members themselves say.
fn claims(members: &[&GroupMember], topics: &[Topic<'_>]) -> Vec<Vec<Claim>> {
    let places: HashMap<&str, usize> =
        topics.iter().enumerate().map(|(place, topic)| (&**topic.name, place)).collect();
    let mut claims: Vec<Vec<Claim>> =
        topics.iter().map(|topic| (0..topic.count).map(|_| Claim::default()).collect()).collect();
    for (index, member) in members.iter().enumerate() {
        for key in &member.owned {
            let of_topic = places.get(&*key.topic).and_then(|place| claims.get_mut(*place));
            let at = usize::try_from(key.partition).ok();
            let Some(claim) = of_topic.zip(at).and_then(|(claims, at)| claims.get_mut(at)) else { continue };
            let newer = member.generation.cmp(&claim.generation);
            match if claim.is_made { newer } else { Ordering::Greater } {
                Ordering::Greater => {
                    *claim = Claim { is_made: true, generation: member.generation, owner: Some(index) };
                }
                Ordering::Equal if claim.owner != Some(index) => claim.owner = None,
                _ => {}
            }
        }
    }
    for (topic, claims) in topics.iter().zip(&mut claims) {
        for claim in claims {
            claim.owner = claim.owner.filter(|owner| topic.subscribers.binary_search(owner).is_ok());
        }
    }
    claims
}

#[cfg(test)]
mod tests {
    use super::super::{
        GroupInfo, Strategy,
        tests::{counts, expected, member, shown},
    };
    use super::*;
    use crate::record::TopicPartition;

    fn owning(id: &str, topics: &[&str], owned: &[(&str, i32)], generation: i32) -> GroupMember {
        let owned = owned.iter().map(|(topic, partition)| TopicPartition::new(*topic, *partition)).collect();
        GroupMember { owned, generation, ..member(id, topics) }
    }

    #[test]
    fn members_keep_what_they_have_and_a_new_one_gets_its_share() {
        let members = [
            owning("a", &["t"], &[("t", 0), ("t", 2), ("t", 4)], 1),
            owning("b", &["t"], &[("t", 1), ("t", 3), ("t", 5)], 1),
            member("c", &["t"]),
        ];
        let assignment = Strategy::Sticky.assign(&GroupInfo::new(&members, &counts(&[("t", 6)]))).unwrap();
        assert!(assignment.values().all(|partitions| partitions.len() == 2), "{assignment:?}");
        for id in ["a", "b"] {
            let owned = &members.iter().find(|member| member.member_id == id).unwrap().owned;
            assert!(assignment[id].iter().all(|key| owned.contains(key)), "{assignment:?}");
        }
    }

    #[test]
    fn a_partition_that_changes_hands_is_withheld_until_it_is_given_up() {
        let before = [owning("a", &["t"], &[("t", 0), ("t", 1)], 1), member("b", &["t"])];
        let first =
            Strategy::CooperativeSticky.assign(&GroupInfo::new(&before, &counts(&[("t", 2)]))).unwrap();
        assert_eq!((first["a"].len(), first["b"].len()), (1, 0), "{first:?}");
        let kept = first["a"][0].partition;
        let after = [owning("a", &["t"], &[("t", kept)], 2), owning("b", &["t"], &[], 2)];
        let second =
            Strategy::CooperativeSticky.assign(&GroupInfo::new(&after, &counts(&[("t", 2)]))).unwrap();
        assert_eq!((second["a"].clone(), second["b"].len()), (first["a"].clone(), 1));
    }

    #[test]
    fn of_two_that_claim_the_same_the_later_is_believed_and_of_the_same_generation_neither() {
        let stale = [owning("a", &["t"], &[("t", 0)], 1), owning("b", &["t"], &[("t", 0)], 2)];
        let assignment =
            Strategy::CooperativeSticky.assign(&GroupInfo::new(&stale, &counts(&[("t", 1)]))).unwrap();
        assert_eq!(shown(&assignment), expected(&[("a", ""), ("b", "tp0")]));
        // Both may still work at it: nobody gets it before they have given it up.
        let same = [owning("a", &["t"], &[("t", 0)], 2), owning("b", &["t"], &[("t", 0)], 2)];
        let assignment =
            Strategy::CooperativeSticky.assign(&GroupInfo::new(&same, &counts(&[("t", 1)]))).unwrap();
        assert_eq!(shown(&assignment), expected(&[("a", ""), ("b", "")]));
        let assignment = Strategy::Sticky.assign(&GroupInfo::new(&same, &counts(&[("t", 1)]))).unwrap();
        assert_eq!(assignment.values().map(Vec::len).sum::<usize>(), 1);
    }

    #[test]
    fn what_a_member_has_of_a_topic_it_left_is_withheld_until_it_is_given_up() {
        let members = [owning("a", &["u"], &[("t", 0)], 2), owning("b", &["t"], &[("t", 0)], 1)];
        let assignment =
            Strategy::CooperativeSticky.assign(&GroupInfo::new(&members, &counts(&[("t", 1)]))).unwrap();
        assert_eq!(shown(&assignment), expected(&[("a", ""), ("b", "")]));
    }

    #[test]
    fn different_subscriptions_are_as_even_as_they_allow() {
        let members = [member("a", &["t"]), member("b", &["t", "u"]), member("c", &["u"])];
        let assignment =
            Strategy::Sticky.assign(&GroupInfo::new(&members, &counts(&[("t", 4), ("u", 2)]))).unwrap();
        let mut sizes: Vec<_> = assignment.values().map(Vec::len).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [2, 2, 2], "{assignment:?}");
    }

    #[test]
    fn what_was_owned_of_topics_that_are_gone_or_not_subscribed_any_more_is_forgotten() {
        let members =
            [owning("a", &["t"], &[("gone", 0), ("t", 9), ("u", 0), ("t", 0)], 1), member("b", &["u"])];
        let assignment =
            Strategy::Sticky.assign(&GroupInfo::new(&members, &counts(&[("t", 1), ("u", 1)]))).unwrap();
        assert_eq!(shown(&assignment), expected(&[("a", "tp0"), ("b", "up0")]));
    }
}
