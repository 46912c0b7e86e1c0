//! How many partitions of what each member of a sticky group gets: of all ways that are as even as subscriptions allow, one in
//! which the members keep the most. Exact: no chain of exchanges makes it better, up to a bound on the work.
//!
//! Topics with the same subscribers are one pool, of which only numbers matter here. Numbers come close by dealing out and
//! levelling within each pool; what is then left to gain needs chains, as: one of `t` from a to b, one of `u` from b to c.
//! Those are cycles of negative cost in the graph of all exchanges (the optimality of minimum-cost flows), and Bellman-Ford
//! finds them. The cost is the evenness first, as the sum of the squares of all loads, and then what is lost.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::sorted;

/// Partitions that the same members may have.
#[derive(Debug)]
pub(super) struct Pool {
    /// Places among all members, ascending.
    members: Vec<usize>,
    /// How many partitions each member has, and how many it is to have.
    owned: Vec<usize>,
    shares: Vec<usize>,
    /// Partitions without an owner.
    free: usize,
}

impl Pool {
    /// `owners`: of every partition.
    pub(super) fn new(members: &[usize], owners: impl Iterator<Item = Option<usize>>) -> Self {
        let mut owned = vec![0; members.len()];
        let mut free = 0;
        for owner in owners {
            match owner.and_then(|owner| members.binary_search(&owner).ok()) {
                Some(at) => owned[at] += 1,
                None => free += 1,
            }
        }
        Self { members: members.to_vec(), shares: owned.clone(), owned, free }
    }

    /// Takes one of the member's share, if any is left.
    pub(super) fn take(&mut self, member: usize) -> bool {
        let Ok(at) = self.members.binary_search(&member) else { return false };
        let has = self.shares[at] > 0;
        self.shares[at] -= usize::from(has);
        has
    }

    /// The next member, from `turn` on and around, that has something of its share left; takes one of it.
    pub(super) fn take_next(&mut self, turn: &mut usize) -> Option<usize> {
        let count = self.members.len();
        let next = (*turn..*turn + count).map(|at| at % count).find(|at| self.shares[*at] > 0)?;
        self.shares[next] -= 1;
        *turn = next + 1;
        Some(self.members[next])
    }

    /// Gives what is free, one by one, to whoever has least.
    fn deal_out(&mut self, loads: &mut [usize]) {
        let mut least: BinaryHeap<_> =
            self.members.iter().enumerate().map(|(at, member)| Reverse((loads[*member], at))).collect();
        for _ in 0..self.free {
            let Some(mut first) = least.peek_mut() else { return };
            let Reverse((load, at)) = &mut *first;
            *load += 1;
            loads[self.members[*at]] += 1;
            self.shares[*at] += 1;
        }
    }

    /// Moves partitions from whoever has most to whoever has least until they are even; first those that did not belong
    /// to the giver before. True if anything moved.
    fn level(&mut self, loads: &mut [usize]) -> bool {
        let of_each = || self.members.iter().map(|member| loads[*member]);
        let most = of_each().zip(&self.shares).filter(|(_, share)| **share > 0).map(|(load, _)| load).max();
        // As a rule it is even already, which can be seen without sorting.
        if most.is_none_or(|most| of_each().min().is_none_or(|least| most < least + 2)) {
            return false;
        }
        // Among equals, whoever has something that was another's gives first, and whoever has lost something gets first.
        let giver = |pool: &Self, loads: &[usize], at: usize| {
            (loads[pool.members[at]], pool.shares[at] > pool.owned[at], Reverse(at))
        };
        let taker = |pool: &Self, loads: &[usize], at: usize| {
            (loads[pool.members[at]], pool.shares[at] >= pool.owned[at], at)
        };
        let places = 0..self.members.len();
        // Each heap is built at once, without sorting. A member that has changed is pushed again, and its outdated entry
        // is skipped.
        let mut takers: BinaryHeap<_> = places.clone().map(|at| Reverse(taker(self, loads, at))).collect();
        let mut givers: BinaryHeap<_> =
            places.filter(|at| self.shares[*at] > 0).map(|at| giver(self, loads, at)).collect();
        let mut moved = false;
        loop {
            while givers.peek().is_some_and(|key| {
                let Reverse(at) = key.2;
                self.shares[at] == 0 || giver(self, loads, at) != *key
            }) {
                givers.pop();
            }
            while takers.peek().is_some_and(|Reverse(key)| taker(self, loads, key.2) != *key) {
                takers.pop();
            }
            let (Some(&(most, _, Reverse(from))), Some(&Reverse((least, _, to)))) =
                (givers.peek(), takers.peek())
            else {
                break;
            };
            if most < least + 2 {
                break;
            }
            loads[self.members[from]] -= 1;
            loads[self.members[to]] += 1;
            self.shares[from] -= 1;
            self.shares[to] += 1;
            for at in [from, to] {
                takers.push(Reverse(taker(self, loads, at)));
                givers.push(giver(self, loads, at));
            }
            moved = true;
        }
        moved
    }
}

/// Sets the share of every member in every pool.
pub(super) fn balance(pools: &mut [Pool], members: usize) {
    let mut loads = vec![0; members];
    for pool in pools.iter() {
        for (member, share) in pool.members.iter().zip(&pool.shares) {
            loads[*member] += share;
        }
    }
    // Pools with the fewest members first: the others have more places to put their partitions.
    let mut order: Vec<&mut Pool> = pools.iter_mut().collect();
    sorted::sort_by(&mut order, |a, b| a.members.len().cmp(&b.members.len()));
    for pool in &mut order {
        pool.deal_out(&mut loads);
    }
    loop {
        // Levels every pool, also after an earlier one has moved something: hence no `any`, which would stop early.
        let moved = order.iter_mut().map(|pool| usize::from(pool.level(&mut loads))).sum::<usize>();
        if moved == 0 {
            break;
        }
    }
    let mut work = MOST_WORK;
    while exchange(pools, &mut loads, &mut work) {}
}

/// How many exchanges one balance looks at, which takes well below a tenth of a second. If all topics of a group have
/// different subscribers, its plan may be less sticky than it could be, and hardly ever less even.
const MOST_WORK: usize = 6_000_000;

const NONE: usize = usize::MAX;

/// Carries out chains of exchanges that improve the balance; false if there are none, or if the work is used up.
///
/// The nodes of the graph are the members, then the pools, then the hub, which closes a chain whose ends change their
/// loads into a cycle. An edge from a member to a pool gives one up, from a pool to a member gets one.
fn exchange(pools: &mut [Pool], loads: &mut [usize], work: &mut usize) -> bool {
    let (members, hub) = (loads.len(), loads.len() + pools.len());
    let edges: usize = hub + pools.iter().map(|pool| pool.members.len()).sum::<usize>();
    // A step of evenness weighs more than all that can be lost on one cycle, since a cycle visits no node twice.
    let even = 2 * i64::try_from(hub + 1).unwrap_or(i64::MAX / 2);
    let squares = |load: usize| even * i64::try_from(2 * load + 1).unwrap_or(i64::MAX);
    let mut best = vec![0_i64; hub + 1];
    let mut from = vec![NONE; hub + 1];
    loop {
        let Some(left) = work.checked_sub(edges) else { return false };
        *work = left;
        let mut changed = false;
        let mut relax = |start: usize, end: usize, cost: i64| {
            let through = best[start].saturating_add(cost);
            if through < best[end] {
                best[end] = through;
                from[end] = start;
                changed = true;
            }
        };
        for (member, load) in loads.iter().enumerate() {
            relax(member, hub, squares(*load));
        }
        for (member, load) in loads.iter().enumerate().filter(|(_, load)| **load > 0) {
            relax(hub, member, -squares(load - 1));
        }
        for (pool, node) in pools.iter().zip(members..) {
            for (at, member) in pool.members.iter().enumerate().filter(|(at, _)| pool.shares[*at] > 0) {
                relax(*member, node, i64::from(pool.shares[at] <= pool.owned[at]));
            }
            for (at, member) in pool.members.iter().enumerate() {
                relax(node, *member, -i64::from(pool.shares[at] < pool.owned[at]));
            }
        }
        if !changed {
            return false;
        }
        let cycles = cycles(&from);
        if !cycles.is_empty() {
            for (start, end) in cycles {
                apply(pools, loads, (start, end));
            }
            return true;
        }
    }
}

/// The edges of all cycles, of which no two share a node.
fn cycles(from: &[usize]) -> Vec<(usize, usize)> {
    // In which walk a node was met.
    let mut met = vec![NONE; from.len()];
    let mut edges = Vec::new();
    for walk in 0..from.len() {
        let mut node = walk;
        while node != NONE && met[node] == NONE {
            met[node] = walk;
            node = from[node];
        }
        if node != NONE && met[node] == walk {
            let first = node;
            loop {
                edges.push((from[node], node));
                node = from[node];
                if node == first {
                    break;
                }
            }
        }
    }
    edges
}

fn apply(pools: &mut [Pool], loads: &mut [usize], (start, end): (usize, usize)) {
    let (members, hub) = (loads.len(), loads.len() + pools.len());
    let (pool, member, is_got) = match (start, end) {
        (member, end) if end == hub => return loads[member] += 1,
        (start, member) if start == hub => return loads[member] -= 1,
        (start, pool) if start < members => (pool, start, false),
        (pool, member) => (pool, member, true),
    };
    let pool = &mut pools[pool - members];
    let Ok(at) = pool.members.binary_search(&member) else { return };
    if is_got {
        pool.shares[at] += 1;
    } else {
        pool.shares[at] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The squares of all loads, and what is lost.
    fn cost(pools: &[(Vec<usize>, Vec<Option<usize>>)], given: &[usize], members: usize) -> (usize, usize) {
        let mut loads = vec![0; members];
        let owners = pools.iter().flat_map(|(_, owners)| owners);
        let lost =
            owners.zip(given).filter(|(owner, given)| owner.is_some_and(|owner| owner != **given)).count();
        for member in given {
            loads[*member] += 1;
        }
        (loads.iter().map(|load| load * load).sum(), lost)
    }

    /// The least there is, by trying all ways.
    fn least(
        pools: &[(Vec<usize>, Vec<Option<usize>>)],
        given: &mut Vec<usize>,
        members: usize,
    ) -> (usize, usize) {
        let mut at = given.len();
        for (candidates, owners) in pools {
            if at < owners.len() {
                let each = candidates.iter().map(|member| {
                    given.push(*member);
                    let found = least(pools, given, members);
                    given.pop();
                    found
                });
                return each.min().unwrap();
            }
            at -= owners.len();
        }
        cost(pools, given, members)
    }

    proptest! {
        #[test]
        fn no_way_is_more_even_and_of_those_as_even_none_keeps_more(
            pools in proptest::collection::vec(
                (proptest::collection::btree_set(0..4usize, 1..4), proptest::collection::vec(0..5usize, 1..4)),
                1..4,
            ),
        ) {
            let pools: Vec<(Vec<usize>, Vec<Option<usize>>)> = pools.into_iter().map(|(members, owners)| {
                let owners = owners.iter().map(|owner| members.contains(owner).then_some(*owner)).collect();
                (members.into_iter().collect(), owners)
            }).collect();
            let mut balanced: Vec<Pool> =
                pools.iter().map(|(members, owners)| Pool::new(members, owners.iter().copied())).collect();
            balance(&mut balanced, 4);
            let mut given = Vec::new();
            for ((_, owners), pool) in pools.iter().zip(&mut balanced) {
                let kept: Vec<Option<usize>> =
                    owners.iter().map(|owner| owner.filter(|owner| pool.take(*owner))).collect();
                let mut turn = 0;
                given.extend(kept.iter().map(|kept| kept.or_else(|| pool.take_next(&mut turn)).unwrap()));
                prop_assert_eq!(pool.take_next(&mut turn), None);
            }
            prop_assert_eq!(cost(&pools, &given, 4), least(&pools, &mut Vec::new(), 4));
        }
    }
}
