//! Java's `RangeAssignor`: each topic by itself, in contiguous ranges; the first members get one more where it does not
//! divide. Partitions of the same number meet in the same member, which joins between topics rely on.
//!
//! Where members and replicas have racks, what matches is dealt out first, within the same shares (KIP-881): of topics with
//! the same subscribers and as many partitions, a number goes to a member whose rack has a replica of it in every one of them.

use std::collections::VecDeque;

use crate::sorted::{Map, Set};

use super::{Given, GroupMember, Racks, Topic};

pub(super) fn assign(
    members: &[&GroupMember],
    topics: &[Topic<'_>],
    racks: Option<&Racks>,
    given: &mut Given,
) {
    let racked: Vec<Racked<'_>> = match racks {
        Some(racks) if members.iter().any(|member| member.rack().is_some()) => {
            topics.iter().map(|topic| Racked::new(topic, members, racks)).collect()
        }
        _ => Vec::new(),
    };
    let is_aware = racked.iter().any(|racked| racked.is_uneven);
    // Topics with the same subscribers and as many partitions are dealt out together.
    let mut alike: Map<(&[usize], i32), Vec<usize>> = Map::new();
    for (place, topic) in topics.iter().enumerate() {
        alike.entry((&topic.subscribers, topic.count)).or_default().push(place);
    }
    for ((subscribers, count), places) in alike {
        let mut deal = Deal::new(members, subscribers, count);
        if is_aware {
            let racked: Vec<&Racked<'_>> = places.iter().filter_map(|place| racked.get(*place)).collect();
            match racked[..] {
                [one] if one.is_uneven => deal.match_ranges(&one.partitions),
                [_, _, ..] => deal.match_together(&racked),
                _ => {}
            }
        }
        deal.fill_ranges();
        for topic in places.iter().filter_map(|place| topics.get(*place)) {
            for (partition, owner) in (0..).zip(&deal.owners) {
                if let Some(&member) = owner.and_then(|owner| subscribers.get(owner)) {
                    given[member].push(topic.partition(partition));
                }
            }
        }
    }
}

/// The racks that have a replica of a partition.
type PartitionRacks<'a> = Set<&'a str>;

/// A topic with the racks of its partitions.
struct Racked<'a> {
    partitions: Vec<PartitionRacks<'a>>,
    /// Some of its subscribers' racks have replicas, but not of every partition on every rack, so that it matters who
    /// gets which.
    is_uneven: bool,
}

impl<'a> Racked<'a> {
    fn new(topic: &Topic<'_>, members: &[&GroupMember], racks: &'a Racks) -> Self {
        let known = racks.get(topic.name).map_or(&[][..], |of_topic| of_topic);
        let named = known.iter().map(|replicas| replicas.iter().map(|rack| &**rack).collect::<Set<&str>>());
        let partitions: Vec<PartitionRacks<'a>> =
            named.chain(std::iter::repeat(Set::new())).zip(0..topic.count).map(|(racks, _)| racks).collect();
        let all: Set<&str> = partitions.iter().flatten().copied().collect();
        let mut wanted = topic.subscribers.iter().filter_map(|member| members.get(*member)?.rack());
        let is_uneven = wanted.any(|rack| all.contains(rack)) && partitions.iter().any(|racks| *racks != all);
        Self { partitions, is_uneven }
    }
}

/// The partitions of one topic, or of several alike, as they are dealt out. Members are places among the subscribers.
struct Deal<'a> {
    /// The rack of every subscriber; one without is content with any.
    racks: Vec<Option<&'a str>>,
    owners: Vec<Option<usize>>,
    assigned: Vec<usize>,
    /// Everybody's share, and how many may still get one more.
    share: usize,
    extra: usize,
}

impl<'a> Deal<'a> {
    fn new(members: &[&'a GroupMember], subscribers: &[usize], count: i32) -> Self {
        let count = usize::try_from(count).unwrap_or(0);
        let racks: Vec<_> =
            subscribers.iter().map(|member| members.get(*member).and_then(|member| member.rack())).collect();
        let consumers = racks.len().max(1);
        Self {
            owners: vec![None; count],
            assigned: vec![0; racks.len()],
            share: count / consumers,
            extra: count % consumers,
            racks,
        }
    }

    /// How many more a member may get.
    fn room(&self, member: usize) -> usize {
        (self.share + usize::from(self.extra > 0)).saturating_sub(self.assigned[member])
    }

    fn give(&mut self, member: usize, partitions: &[usize]) {
        for partition in partitions {
            self.owners[*partition] = Some(member);
        }
        self.assigned[member] += partitions.len();
        if !partitions.is_empty() && self.assigned[member] > self.share {
            self.extra = self.extra.saturating_sub(1);
        }
    }

    /// Each partition number, of all topics at once, to the first member with room that they all match.
    fn match_together(&mut self, topics: &[&Racked<'_>]) {
        let mut waiting: Map<Option<&str>, VecDeque<usize>> = Map::new();
        for (member, rack) in self.racks.iter().enumerate() {
            waiting.entry(*rack).or_default().push_back(member);
        }
        for partition in 0..self.owners.len() {
            // Members may have as many racks as there are members: only those of replicas are looked at.
            let of_topics = topics.iter().map(|topic| &topic.partitions[partition]);
            let Some(fewest) = of_topics.clone().min_by_key(|racks| racks.len()) else { return };
            let of_all = fewest.iter().filter(|rack| of_topics.clone().all(|racks| racks.contains(*rack)));
            let mut first: Option<usize> = None;
            for rack in of_all.map(|rack| Some(*rack)).chain([None]) {
                let Some(queue) = waiting.get_mut(&rack) else { continue };
                // Room never grows, so a member without any can be dropped.
                while queue.front().is_some_and(|member| self.room(*member) == 0) {
                    queue.pop_front();
                }
                first = first.into_iter().chain(queue.front().copied()).min();
            }
            if let Some(member) = first {
                self.give(member, &[partition]);
            }
        }
    }

    /// Each member in turn takes the first partitions that match it.
    fn match_ranges(&mut self, partitions: &[PartitionRacks<'_>]) {
        // Partitions that an earlier member of the same rack has passed over do not match this one either.
        let mut matching: Map<&str, VecDeque<usize>> = Map::new();
        for (partition, racks) in partitions.iter().enumerate() {
            for rack in racks {
                matching.entry(rack).or_default().push_back(partition);
            }
        }
        let mut any: VecDeque<usize> = (0..partitions.len()).collect();
        for member in 0..self.racks.len() {
            let left = match self.racks[member] {
                Some(rack) => matching.get_mut(rack),
                None => Some(&mut any),
            };
            let Some(left) = left else { continue };
            let mut taken = Vec::new();
            while taken.len() < self.room(member) {
                let Some(partition) = left.pop_front() else { break };
                if self.owners[partition].is_none() {
                    taken.push(partition);
                }
            }
            self.give(member, &taken);
        }
    }

    /// The rest, in order.
    fn fill_ranges(&mut self) {
        let mut left = (0..self.owners.len()).filter(|at| self.owners[*at].is_none()).collect::<Vec<_>>();
        for member in 0..self.racks.len() {
            let rest = left.split_off(self.room(member).min(left.len()));
            self.give(member, &left);
            left = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{
        GroupInfo, GroupMember, Racks, Strategy,
        tests::{counts, expected, member, shown},
    };

    /// Looked at each with each they would be a hundred million pairs: no time is measured, but a test that takes minutes
    /// is seen.
    #[test]
    fn as_many_racks_as_members_and_partitions_are_not_looked_at_each_with_each() {
        let all = 10_000;
        for topics in [&["t"][..], &["t", "u"]] {
            let members: Vec<_> = (0..all)
                .map(|at| GroupMember {
                    rack: Some(format!("rack-{at}")),
                    ..member(&format!("m{at:05}"), topics)
                })
                .collect();
            let of_partition =
                |at: i32| vec![Arc::from(format!("rack-{at}")), Arc::from(format!("foreign-{at}"))];
            let of_topic: Vec<Vec<Arc<str>>> = (0..all).rev().map(of_partition).collect();
            let racks: Racks = topics.iter().map(|topic| (Arc::from(*topic), of_topic.clone())).collect();
            let sizes: Vec<_> = topics.iter().map(|topic| (*topic, all)).collect();
            let counts = counts(&sizes);
            let assignment =
                Strategy::Range.assign(&GroupInfo::new(&members, &counts).with_racks(&racks)).unwrap();
            for at in 0..all {
                let owned = &assignment[&format!("m{at:05}")];
                assert!(owned.len() == topics.len(), "{at}: {owned:?}");
                assert!(owned.iter().all(|key| key.partition == all - 1 - at), "{at}: {owned:?}");
            }
        }
    }

    #[test]
    fn two_topics_of_three_partitions_among_two_members_as_in_javas_documentation() {
        let members = [member("C0", &["t0", "t1"]), member("C1", &["t0", "t1"])];
        let assignment =
            Strategy::Range.assign(&GroupInfo::new(&members, &counts(&[("t0", 3), ("t1", 3)]))).unwrap();
        let wanted = expected(&[("C0", "t0p0 t0p1 t1p0 t1p1"), ("C1", "t0p2 t1p2")]);
        assert_eq!(shown(&assignment), wanted);
    }

    #[test]
    fn members_beyond_the_partitions_get_nothing() {
        let members = [member("C0", &["t"]), member("C1", &["t"]), member("C2", &["t"])];
        let assignment = Strategy::Range.assign(&GroupInfo::new(&members, &counts(&[("t", 2)]))).unwrap();
        assert_eq!(shown(&assignment), expected(&[("C0", "tp0"), ("C1", "tp1"), ("C2", "")]));
    }

    #[test]
    fn a_topic_without_metadata_is_left_out() {
        let assignment = Strategy::Range
            .assign(&GroupInfo::new(&[member("C0", &["gone", "t"])], &counts(&[("t", 1)])))
            .unwrap();
        assert_eq!(shown(&assignment), expected(&[("C0", "tp0")]));
    }

    #[test]
    fn topics_count_in_whatever_order_a_member_names_them_and_however_often() {
        let members =
            [member("C0", &["t2", "t0", "t2"]), member("C1", &["t1", "gone", "t0"]), member("C2", &[])];
        let assignment = Strategy::Range
            .assign(&GroupInfo::new(&members, &counts(&[("t0", 2), ("t1", 1), ("t2", 2)])))
            .unwrap();
        let wanted = expected(&[("C0", "t0p0 t2p0 t2p1"), ("C1", "t0p1 t1p0"), ("C2", "")]);
        assert_eq!(shown(&assignment), wanted);
    }
}
