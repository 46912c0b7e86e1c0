//! The server's assignors of KIP-848: `uniform` (balanced, and moves as little as it can) and `range`.
//!
//! Pure functions of sorted input.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

/// A topic's partition.
pub(in super::super) type Partition = (Uuid, i32);
/// Partitions by member id.
pub(in super::super) type Plan = BTreeMap<String, BTreeSet<Partition>>;

/// The assignors' names; the first is the default.
pub(in super::super) const NAMES: [&str; 2] = ["uniform", "range"];

/// `members`: what each wants, by topic. `topics`: how many partitions each has. `before`: the plan in force.
pub(super) fn plan(
    assignor: &str,
    members: &BTreeMap<String, BTreeSet<Uuid>>,
    topics: &BTreeMap<Uuid, i32>,
    before: &Plan,
) -> Plan {
    match assignor {
        "range" => range(members, topics),
        _ => uniform(members, topics, before),
    }
}

/// Topic by topic, each member gets a run of neighbours; the first members get one more.
fn range(members: &BTreeMap<String, BTreeSet<Uuid>>, topics: &BTreeMap<Uuid, i32>) -> Plan {
    let mut plan: Plan = members.keys().map(|id| (id.clone(), BTreeSet::new())).collect();
    for (topic, partitions) in topics {
        let takers: Vec<&String> =
            members.iter().filter(|(_, t)| t.contains(topic)).map(|(id, _)| id).collect();
        let Ok(count) = i32::try_from(takers.len()) else { continue };
        if count == 0 {
            continue;
        }
        let (each, rest) = (partitions / count, partitions % count);
        let mut next = 0;
        for (index, id) in (0..).zip(takers) {
            let size = each + i32::from(index < rest);
            let run = (next..next + size).map(|p| (*topic, p));
            plan.entry(id.clone()).or_default().extend(run);
            next += size;
        }
    }
    plan
}

/// Everybody keeps what they have, as far as it is still theirs to have; what is free goes to whoever has least; then
/// single partitions move from those who have most until nobody has two more than another who wants them.
fn uniform(members: &BTreeMap<String, BTreeSet<Uuid>>, topics: &BTreeMap<Uuid, i32>, before: &Plan) -> Plan {
    let mut free: BTreeSet<Partition> =
        topics.iter().flat_map(|(topic, count)| (0..*count).map(|p| (*topic, p))).collect();
    let mut plan: Plan = BTreeMap::new();
    for (id, wanted) in members {
        let kept = before.get(id).into_iter().flatten().copied();
        let kept: BTreeSet<Partition> = kept.filter(|p| wanted.contains(&p.0) && free.remove(p)).collect();
        plan.insert(id.clone(), kept);
    }
    let least = |plan: &Plan, topic: &Uuid| {
        let takers = plan.iter().filter(|(id, _)| members.get(*id).is_some_and(|t| t.contains(topic)));
        takers.min_by_key(|(id, has)| (has.len(), (*id).clone())).map(|(id, has)| (id.clone(), has.len()))
    };
    for partition in free {
        if let Some((id, _)) = least(&plan, &partition.0) {
            plan.entry(id).or_default().insert(partition);
        }
    }
    // Each step makes the plan more even: it ends.
    while let Some((from, to, partition)) = uneven(&plan, |topic| least(&plan, topic)) {
        if let Some(has) = plan.get_mut(&from) {
            has.remove(&partition);
        }
        plan.entry(to).or_default().insert(partition);
    }
    plan
}

/// A partition whose owner has at least two more than somebody else who wants it.
fn uneven(
    plan: &Plan,
    least: impl Fn(&Uuid) -> Option<(String, usize)>,
) -> Option<(String, String, Partition)> {
    let mut owners: Vec<(&String, &BTreeSet<Partition>)> = plan.iter().collect();
    owners.sort_by_key(|(id, has)| (std::cmp::Reverse(has.len()), (*id).clone()));
    owners.into_iter().find_map(|(id, has)| {
        has.iter().rev().find_map(|partition| {
            let (to, count) = least(&partition.0)?;
            (count + 2 <= has.len()).then(|| (id.clone(), to, *partition))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn members(list: &[(&str, &[u128])]) -> BTreeMap<String, BTreeSet<Uuid>> {
        list.iter().map(|(id, t)| ((*id).to_owned(), t.iter().map(|n| topic(*n)).collect())).collect()
    }

    fn sizes(plan: &Plan) -> Vec<usize> {
        let mut sizes: Vec<usize> = plan.values().map(BTreeSet::len).collect();
        sizes.sort_unstable();
        sizes
    }

    #[test]
    fn a_new_member_takes_its_share_and_no_more_moves() {
        let topics = BTreeMap::from([(topic(1), 6), (topic(2), 1)]);
        let two = plan("uniform", &members(&[("a", &[1, 2]), ("b", &[1, 2])]), &topics, &Plan::new());
        assert_eq!(sizes(&two), [3, 4]);
        let three =
            plan("uniform", &members(&[("a", &[1, 2]), ("b", &[1, 2]), ("c", &[1, 2])]), &topics, &two);
        assert_eq!(sizes(&three), [2, 2, 3]);
        for id in ["a", "b"] {
            assert!(three[id].is_subset(&two[id]), "{id} gained nothing");
        }
    }

    #[test]
    fn members_get_only_what_they_want() {
        let topics = BTreeMap::from([(topic(1), 4), (topic(2), 2)]);
        let made = plan("uniform", &members(&[("a", &[1]), ("b", &[1, 2])]), &topics, &Plan::new());
        assert_eq!(sizes(&made), [3, 3]);
        assert!(made["a"].iter().all(|p| p.0 == topic(1)));
        assert_eq!(made.values().flatten().collect::<BTreeSet<_>>().len(), 6);
    }

    #[test]
    fn range_gives_runs_of_each_topic() {
        let topics = BTreeMap::from([(topic(1), 3), (topic(2), 3)]);
        let made = plan("range", &members(&[("a", &[1, 2]), ("b", &[1, 2])]), &topics, &Plan::new());
        assert_eq!(made["a"], BTreeSet::from([(topic(1), 0), (topic(1), 1), (topic(2), 0), (topic(2), 1)]));
        assert_eq!(made["b"], BTreeSet::from([(topic(1), 2), (topic(2), 2)]));
    }
}
