//! Lanes in virtual time.

use super::*;
use crate::time::{Rng, now};

/// Records as offset and key.
type Records = Vec<(i64, Option<u64>)>;

impl Load for Records {
    fn len(&self) -> usize {
        Self::len(self)
    }

    /// What stands together is counted otherwise than one by one, as parts of a batch are.
    fn bytes(&self) -> usize {
        70 * Self::len(self) + 30
    }

    fn due(&self) -> Option<Instant> {
        None
    }

    fn each(self, hand_out: &mut dyn FnMut(Option<u64>, Self)) {
        for record in self {
            hand_out(record.1, vec![record]);
        }
    }
}

fn bounds(runs: usize) -> Bounds {
    Bounds { runs, records: 100, bytes: 1 << 20, span: 1000 }
}

fn partition(number: i32) -> TopicPartition {
    TopicPartition::new("orders", number)
}

fn records(offsets: std::ops::Range<i64>, keys: u64) -> Records {
    offsets.map(|offset| (offset, (keys > 0).then(|| offset as u64 % keys.max(1)))).collect()
}

#[test]
fn partitions_run_beside_each_other_and_each_in_order() {
    let mut lanes = Lanes::new(Ordering::Partition, bounds(usize::MAX));
    lanes.push(now(), &partition(0), 1, records(0..3, 0), None).unwrap();
    lanes.push(now(), &partition(1), 1, records(0..2, 0), None).unwrap();
    let first = lanes.poll_run(now()).unwrap();
    let second = lanes.poll_run(now()).unwrap();
    assert_eq!((first.partition.partition, second.partition.partition), (0, 1));
    lanes.push(now(), &partition(0), 1, records(3..4, 0), None).unwrap();
    assert!(lanes.poll_run(now()).is_none(), "what comes later waits for what runs");
    lanes.handle_end(first.lane);
    assert_eq!(lanes.poll_run(now()).unwrap().loads, [records(3..4, 0)]);
}

#[test]
fn no_more_partitions_run_at_once_than_may_and_each_has_its_turn() {
    let mut lanes = Lanes::new(Ordering::Partition, bounds(2));
    for number in 0..3 {
        lanes.push(now(), &partition(number), 1, records(0..2, 0), None).unwrap();
    }
    let (first, second) = (lanes.poll_run(now()).unwrap(), lanes.poll_run(now()).unwrap());
    assert!(lanes.poll_run(now()).is_none(), "two are at work");
    lanes.push(now(), &partition(0), 1, records(2..4, 0), None).unwrap();
    lanes.handle_end(first.lane);
    let third = lanes.poll_run(now()).unwrap();
    assert_eq!(third.partition.partition, 2, "who has waited longest");
    lanes.handle_end(second.lane);
    assert_eq!(lanes.poll_run(now()).unwrap().partition.partition, 0);
}

#[test]
fn a_key_has_one_run_and_others_go_on() {
    let mut lanes = Lanes::new(Ordering::Key, bounds(3));
    lanes.push(now(), &partition(0), 1, records(0..6, 2), None).unwrap();
    let (a, b) = (lanes.poll_run(now()).unwrap(), lanes.poll_run(now()).unwrap());
    assert_eq!((a.loads[0][0].0, b.loads[0][0].0), (0, 1));
    assert!(lanes.poll_run(now()).is_none(), "both keys run");
    lanes.handle_end(b.lane);
    assert_eq!(lanes.poll_run(now()).unwrap().loads[0][0].0, 3, "the next of its key");
    assert_eq!(lanes.running, 2);
}

#[test]
fn records_without_a_key_have_no_order() {
    for (ordering, keys) in [(Ordering::Key, 0), (Ordering::Unordered, 1)] {
        let mut lanes = Lanes::new(ordering, bounds(3));
        lanes.push(now(), &partition(0), 1, records(0..5, keys), None).unwrap();
        let runs: Vec<_> = std::iter::from_fn(|| lanes.poll_run(now())).collect();
        assert_eq!(runs.len(), 3, "as many as may run at once");
    }
}

#[test]
fn a_partition_that_is_stuck_is_paused_alone() {
    let mut lanes = Lanes::new(Ordering::Partition, bounds(2));
    lanes.push(now(), &partition(0), 1, records(0..60, 0), None).unwrap();
    lanes.push(now(), &partition(1), 1, records(0..60, 0), None).unwrap();
    let (_stuck, other) = (lanes.poll_run(now()).unwrap(), lanes.poll_run(now()).unwrap());
    assert_eq!(lanes.poll_pause(), None);
    lanes.push(now(), &partition(0), 1, records(60..120, 0), None).unwrap();
    lanes.push(now(), &partition(1), 1, records(60..100, 0), None).unwrap();
    assert_eq!(lanes.poll_pause(), Some(Pause::Pause(partition(0))));
    assert_eq!(lanes.poll_pause(), Some(Pause::Pause(partition(1))));
    lanes.handle_end(other.lane);
    assert_eq!(lanes.poll_pause(), Some(Pause::Resume(partition(1))));
    assert_eq!(lanes.poll_pause(), None);
}

#[test]
fn a_partition_with_hardly_any_share_of_the_bytes_goes_on_once_it_has_nothing() {
    let mut lanes = Lanes::new(Ordering::Partition, Bounds { bytes: 1, ..bounds(1) });
    lanes.push(now(), &partition(0), 1, records(0..3, 0), None).unwrap();
    assert_eq!(lanes.poll_pause(), Some(Pause::Pause(partition(0))));
    let run = lanes.poll_run(now()).unwrap();
    lanes.handle_end(run.lane);
    assert_eq!(lanes.poll_pause(), Some(Pause::Resume(partition(0))));
}

#[test]
fn a_key_that_is_stuck_pauses_its_partition_before_too_much_is_done_behind_it() {
    let mut lanes = Lanes::new(Ordering::Key, Bounds { span: 50, ..bounds(4) });
    let mut offset = 0;
    lanes.push(now(), &partition(0), 1, vec![(-1, Some(999))], None).unwrap();
    let stuck = lanes.poll_run(now()).unwrap();
    let paused = loop {
        lanes.push(now(), &partition(0), 1, records(offset..offset + 1, 7), None).unwrap();
        offset += 1;
        let run = lanes.poll_run(now()).unwrap();
        lanes.handle_end(run.lane);
        if let Some(pause) = lanes.poll_pause() {
            break pause;
        }
    };
    assert_eq!((paused, offset), (Pause::Pause(partition(0)), 49));
    lanes.handle_end(stuck.lane);
    assert_eq!(lanes.poll_pause(), Some(Pause::Resume(partition(0))));
    assert!(lanes.is_empty());
}

#[test]
fn nothing_starts_in_a_partition_that_is_revoked_and_what_waits_is_given_back_in_order() {
    let mut lanes = Lanes::new(Ordering::Key, bounds(1));
    lanes.push(now(), &partition(0), 1, records(0..5, 2), None).unwrap();
    lanes.push(now(), &partition(1), 1, records(0..1, 2), None).unwrap();
    let run = lanes.poll_run(now()).unwrap();
    let waiting: Vec<_> =
        lanes.revoke(&partition(0), 1).into_iter().flat_map(|(_, back)| back).map(|load| load[0].0).collect();
    assert_eq!(waiting, [1, 2, 3, 4]);
    assert!(lanes.push(now(), &partition(0), 1, records(5..6, 2), None).is_err());
    lanes.handle_end(run.lane);
    // The partition comes back in another life.
    lanes.push(now(), &partition(0), 2, records(0..1, 2), None).unwrap();
    let next = lanes.poll_run(now()).unwrap();
    assert_eq!((next.partition, next.life), (partition(1), 1));
    lanes.handle_end(next.lane);
    assert_eq!(lanes.poll_run(now()).unwrap().life, 2);
}

#[test]
fn a_lane_that_gathers_waits_for_enough_records_or_long_enough() {
    let (begin, wait) = (now(), Duration::from_secs(1));
    let gather = Some(Gather { records: 10, wait });
    let mut lanes = Lanes::new(Ordering::Partition, bounds(1));
    lanes.push(begin, &partition(0), 1, records(0..4, 0), gather).unwrap();
    assert!(lanes.poll_run(begin).is_none());
    assert_eq!(lanes.poll_timeout(), Some(begin + wait));
    lanes.push(begin + wait / 2, &partition(0), 1, records(4..8, 0), gather).unwrap();
    assert!(lanes.poll_run(begin + wait / 2).is_none());
    let run = lanes.poll_run(begin + wait).unwrap();
    assert_eq!((run.loads.len(), lanes.poll_timeout()), (2, None));
    lanes.handle_end(run.lane);
    lanes.push(begin, &partition(0), 1, records(8..12, 0), gather).unwrap();
    assert!(lanes.poll_run(begin).is_none());
    lanes.push(begin, &partition(0), 1, records(12..18, 0), gather).unwrap();
    let run = lanes.poll_run(begin).unwrap();
    lanes.push(begin, &partition(0), 1, records(18..19, 0), gather).unwrap();
    lanes.handle_end(run.lane);
    assert!(lanes.poll_run(begin).is_none(), "what came while it ran waits as well");
    assert!(lanes.poll_run(begin + wait).is_some());
}

#[test]
fn a_revocation_that_is_heard_of_late_leaves_the_next_life_alone() {
    let mut lanes = Lanes::new(Ordering::Partition, bounds(1));
    lanes.push(now(), &partition(0), 1, records(0..2, 0), None).unwrap();
    lanes.push(now(), &partition(0), 2, records(0..2, 0), None).unwrap();
    assert!(lanes.revoke(&partition(0), 1).is_empty(), "a later life has taken its place");
    lanes.push(now(), &partition(0), 2, records(2..3, 0), None).unwrap();
    let run = lanes.poll_run(now()).unwrap();
    assert_eq!((run.life, run.loads), (2, vec![records(0..2, 0), records(2..3, 0)]));
}

#[test]
fn an_earlier_life_that_still_runs_does_not_hold_up_the_next() {
    let mut lanes = Lanes::new(Ordering::Partition, bounds(2));
    lanes.push(now(), &partition(0), 1, records(0..2, 0), None).unwrap();
    let old = lanes.poll_run(now()).unwrap();
    lanes.push(now(), &partition(0), 2, records(0..2, 0), None).unwrap();
    let new = lanes.poll_run(now()).unwrap();
    assert_eq!(new.life, 2);
    lanes.handle_end(old.lane);
    lanes.handle_end(new.lane);
    assert!(lanes.is_empty() && lanes.running == 0);
}

/// Random pushes, runs, ends and revocations: each record runs at most once, none is lost, order is kept, and what runs
/// at once has no order among itself.
#[test]
fn whatever_happens_every_record_runs_once_or_is_given_back_and_order_is_kept() {
    for seed in 0..200 {
        let mut rng = Rng::new(seed);
        let ordering = [Ordering::Partition, Ordering::Key, Ordering::Unordered][seed as usize % 3];
        let limit = 1 + rng.below(5);
        let mut lanes = Lanes::new(ordering, Bounds { records: 20, span: 60, ..bounds(limit) });
        let (mut lives, mut next, mut paused) = ([0u64; 3], [0i64; 3], [false; 3]);
        let mut runs: Vec<Run<Records, u64>> = Vec::new();
        // By partition, life and key: the last offset that began.
        let mut begun: BTreeMap<(i32, u64, Option<u64>), i64> = BTreeMap::new();
        let (mut pushed, mut ended, mut given_back) = (0, 0, 0);
        for _ in 0..400 {
            let number = rng.below(3);
            match rng.below(10) {
                0..=3 if !paused[number] => {
                    let count = 1 + rng.below(8) as i64;
                    let load: Records = (next[number]..next[number] + count)
                        .map(|offset| (offset, (offset % 5 > 0).then(|| rng.next_u64() % 4)))
                        .collect();
                    next[number] += count;
                    pushed += load.len();
                    lanes.push(now(), &partition(number as i32), lives[number], load, None).unwrap();
                }
                4..=6 if !runs.is_empty() => {
                    let run = runs.swap_remove(rng.below(runs.len()));
                    ended += run.loads.iter().map(Vec::len).sum::<usize>();
                    lanes.handle_end(run.lane);
                }
                7 if rng.below(6) == 0 => {
                    let back = lanes.revoke(&partition(number as i32), lives[number]);
                    given_back += back.iter().flat_map(|(_, back)| back).map(Vec::len).sum::<usize>();
                    lives[number] += 1;
                    (next[number], paused[number]) = (0, false);
                }
                _ => {
                    if let Some(run) = lanes.poll_run(now()) {
                        for (offset, key) in run.loads.iter().flatten() {
                            let order = match ordering {
                                Ordering::Partition => None,
                                Ordering::Key if key.is_some() => *key,
                                _ => continue,
                            };
                            let last = begun.insert((run.partition.partition, run.life, order), *offset);
                            assert!(last < Some(*offset), "seed {seed}: {last:?} before {offset}");
                        }
                        if ordering != Ordering::Unordered {
                            let twice = runs.iter().any(|other| other.lane == run.lane);
                            assert!(!twice, "seed {seed}: a lane has one run");
                        }
                        runs.push(run);
                    }
                }
            }
            while let Some(pause) = lanes.poll_pause() {
                match pause {
                    Pause::Pause(key) => paused[key.partition as usize] = true,
                    Pause::Resume(key) => paused[key.partition as usize] = false,
                }
            }
            assert!(runs.len() <= limit, "seed {seed}");
        }
        loop {
            while let Some(run) = lanes.poll_run(now()) {
                runs.push(run);
            }
            let Some(run) = runs.pop() else { break };
            ended += run.loads.iter().map(Vec::len).sum::<usize>();
            lanes.handle_end(run.lane);
        }
        assert_eq!(pushed, ended + given_back, "seed {seed}");
        assert!(lanes.is_empty(), "seed {seed}");
    }
}

#[test]
fn who_gathers_for_as_long_as_it_takes_waits_for_enough() {
    let mut lanes = Lanes::new(Ordering::Partition, bounds(1));
    let gather = Some(Gather { records: 3, wait: Duration::MAX });
    lanes.push(now(), &partition(0), 1, records(0..2, 0), gather).unwrap();
    assert!(lanes.poll_run(now()).is_none());
    lanes.push(now(), &partition(0), 1, records(2..3, 0), gather).unwrap();
    assert!(lanes.poll_run(now()).is_some());
}

/// A record that is due at its time.
#[derive(Debug, PartialEq)]
struct DueRecord(i64, Option<Instant>);

impl Load for DueRecord {
    fn len(&self) -> usize {
        1
    }

    fn bytes(&self) -> usize {
        100
    }

    fn due(&self) -> Option<Instant> {
        self.1
    }

    fn each(self, hand_out: &mut dyn FnMut(Option<u64>, Self)) {
        hand_out(Some(7), self);
    }
}

#[test]
fn a_record_that_is_not_due_holds_no_place_and_those_behind_it_in_its_lane_wait() {
    let begin = now();
    let at = |seconds: u64| begin + Duration::from_secs(seconds);
    for ordering in [Ordering::Partition, Ordering::Key, Ordering::Unordered] {
        let mut lanes = Lanes::new(ordering, bounds(1));
        let retry = TopicPartition::new("orders-retry-1m", 0);
        for (offset, due) in [(0, 60), (1, 60), (2, 61)] {
            lanes.push(begin, &retry, 1, DueRecord(offset, Some(at(due))), None).unwrap();
        }
        lanes.push(begin, &partition(0), 1, DueRecord(0, None), None).unwrap();
        let other = lanes.poll_run(begin).unwrap();
        assert_eq!(other.partition, partition(0), "{ordering:?}");
        lanes.handle_end(other.lane);
        assert!(lanes.poll_run(at(59)).is_none() && !lanes.is_empty());
        assert_eq!(lanes.poll_timeout(), Some(at(60)));
        let mut handled = Vec::new();
        let mut until = |lanes: &mut Lanes<DueRecord, u64>, now: Instant| {
            while let Some(run) = lanes.poll_run(now) {
                handled.extend(run.loads.iter().map(|load| load.0));
                lanes.handle_end(run.lane);
            }
            handled.clone()
        };
        assert_eq!(until(&mut lanes, at(60)), [0, 1], "{ordering:?}");
        assert_eq!(lanes.poll_timeout(), Some(at(61)));
        assert_eq!(until(&mut lanes, at(61)), [0, 1, 2]);
        assert!(lanes.is_empty() && lanes.poll_timeout().is_none());
    }
}

#[test]
fn a_lane_that_gathers_has_what_is_due_and_a_full_one_does_not_start_before() {
    let begin = now();
    let at = |seconds: u64| begin + Duration::from_secs(seconds);
    let gather = Some(Gather { records: 2, wait: Duration::from_secs(5) });
    let mut lanes = Lanes::new(Ordering::Partition, bounds(1));
    for (offset, due) in [(0, 60), (1, 62), (2, 90)] {
        lanes.push(begin, &partition(0), 1, DueRecord(offset, Some(at(due))), gather).unwrap();
        assert!(lanes.poll_run(begin).is_none());
    }
    assert!(lanes.poll_run(at(61)).is_none(), "it waits for those that are due soon after the first");
    let run = lanes.poll_run(at(62)).unwrap();
    assert_eq!(run.loads, [DueRecord(0, Some(at(60))), DueRecord(1, Some(at(62)))]);
    lanes.handle_end(run.lane);
    assert!(lanes.poll_run(at(94)).is_none(), "and for others again");
    assert_eq!(lanes.poll_run(at(95)).unwrap().loads.len(), 1);
    // What is long overdue, and enough, waits for nothing.
    let mut lanes = Lanes::new(Ordering::Partition, bounds(1));
    for offset in 0..3 {
        lanes.push(at(99), &partition(0), 1, DueRecord(offset, Some(at(60))), gather).unwrap();
    }
    assert_eq!(lanes.poll_run(at(99)).unwrap().loads.len(), 3);
    // What is revoked while it waits is given back, and wakes nobody.
    let mut lanes = Lanes::new(Ordering::Key, bounds(1));
    lanes.push(begin, &partition(0), 1, DueRecord(0, Some(at(60))), None).unwrap();
    assert!(lanes.poll_run(begin).is_none());
    assert_eq!(lanes.revoke(&partition(0), 1), [(1, vec![DueRecord(0, Some(at(60)))])]);
    assert!(lanes.is_empty() && lanes.poll_timeout().is_none());
}

#[test]
fn a_full_partition_is_resumed_when_what_filled_it_is_given_back() {
    for revoked in [true, false] {
        let mut lanes = Lanes::new(Ordering::Key, bounds(1));
        lanes.push(now(), &partition(0), 1, records(0..150, 7), None).unwrap();
        let run = lanes.poll_run(now()).unwrap();
        assert_eq!(lanes.poll_pause(), Some(Pause::Pause(partition(0))));
        match revoked {
            true => assert_eq!(lanes.revoke(&partition(0), 1).len(), 1),
            // Another life of it has begun.
            false => lanes.push(now(), &partition(0), 2, records(0..1, 7), None).unwrap(),
        }
        assert_eq!(lanes.poll_pause(), Some(Pause::Resume(partition(0))));
        assert!(!lanes.is_paused(&partition(0)) && lanes.paused().next().is_none());
        lanes.handle_end(run.lane);
        assert_eq!(lanes.poll_pause(), None);
    }
}

#[test]
fn many_lanes_that_wait_are_given_back_without_a_walk_over_all_for_each() {
    let begin = now();
    let due = Some(begin + Duration::from_secs(60));
    let mut lanes = Lanes::new(Ordering::Unordered, Bounds { records: usize::MAX, ..bounds(1) });
    for number in 0..50 {
        for offset in 0..1000 {
            lanes.push(begin, &partition(number), 1, DueRecord(offset, due), None).unwrap();
        }
    }
    assert!(lanes.poll_run(begin).is_none());
    let given_back: usize = lanes.revoke_all().iter().map(|(_, _, waiting)| waiting.len()).sum();
    assert_eq!((given_back, lanes.poll_timeout()), (50_000, None));
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
}

#[test]
fn a_batch_larger_than_what_may_wait_starts_with_what_is_there_when_no_more_can_come() {
    let gather = Some(Gather { records: 100, wait: Duration::from_secs(5) });
    let mut lanes = Lanes::new(Ordering::Partition, Bounds { records: 10, ..bounds(2) });
    let begin = now();
    lanes.push(begin, &partition(0), 1, records(0..6, 0), gather).unwrap();
    assert!(lanes.poll_run(begin).is_none(), "others may come");
    assert!(lanes.poll_pause().is_none());
    lanes.push(begin, &partition(0), 1, records(6..10, 0), gather).unwrap();
    assert_eq!(lanes.poll_pause(), Some(Pause::Pause(partition(0))));
    let run = lanes.poll_run(begin).expect("the partition is paused");
    assert_eq!(run.loads.iter().map(Load::len).sum::<usize>(), 10);
    lanes.handle_end(run.lane);
    assert_eq!(lanes.poll_pause(), Some(Pause::Resume(partition(0))));
    lanes.push(begin, &partition(0), 1, records(10..12, 0), gather).unwrap();
    assert!(lanes.poll_run(begin).is_none(), "others may come again");
    assert!(lanes.poll_run(begin + Duration::from_secs(5)).is_some());
}

#[test]
fn what_is_passed_over_behind_a_record_that_waits_counts_towards_the_span() {
    let mut lanes = Lanes::new(Ordering::Partition, Bounds { span: 100, ..bounds(1) });
    lanes.pass_over(&partition(0), 1, 1000);
    lanes.push(now(), &partition(0), 1, records(0..1, 0), None).unwrap();
    let run = lanes.poll_run(now()).unwrap();
    lanes.pass_over(&partition(0), 1, 98);
    lanes.pass_over(&partition(0), 2, 98);
    assert_eq!(lanes.poll_pause(), None, "there was nothing to wait for, or it is of another life");
    lanes.pass_over(&partition(0), 1, 1);
    assert_eq!(lanes.poll_pause(), Some(Pause::Pause(partition(0))));
    lanes.handle_end(run.lane);
    assert_eq!(lanes.poll_pause(), Some(Pause::Resume(partition(0))));
}
