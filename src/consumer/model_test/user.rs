//! The model's user: polls, handles, commits, seeks, pauses and keeps silent, and knows what he has handled.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{Event, PARTITIONS, Style, World, key, seconds};
use crate::{
    consumer::{
        core::Notice,
        ledger::Life,
        offsets::{Offset, Offsets},
        partitions::{Next, PausedBy, Phase, Position, ResetTo},
    },
    error::Result,
    record::TopicPartition,
};

/// The offsets of a partition that somebody has handled.
#[derive(Debug, Default, Clone)]
pub(super) struct Handled {
    /// All below.
    pub(super) to: i64,
    pub(super) beyond: BTreeSet<i64>,
}

impl Handled {
    pub(super) fn insert(&mut self, offset: i64) {
        if offset >= self.to {
            self.beyond.insert(offset);
        }
        while self.beyond.remove(&self.to) {
            self.to += 1;
        }
    }

    pub(super) fn extend(&mut self, offsets: std::ops::Range<i64>) {
        for offset in offsets.start.max(self.to)..offsets.end {
            self.insert(offset);
        }
    }

    /// The first below this offset that nobody has handled.
    pub(super) fn missing(&self, offset: i64) -> Option<i64> {
        (self.to < offset).then_some(self.to)
    }
}

/// A commit whose outcome is to come.
pub(super) struct Receipt {
    pub(super) outcome: oneshot::Receiver<Result<()>>,
    pub(super) asked: BTreeMap<i32, Asked>,
    /// All that was handed out is to be committed with it.
    pub(super) is_all: bool,
}

/// Where a commit is to bring a partition.
pub(super) struct Asked {
    pub(super) offset: i64,
    /// And those asked for after it, which may go out in its place.
    pub(super) later: BTreeSet<i64>,
    /// The coordinator has taken it, or one of those.
    pub(super) is_met: bool,
}

impl World {
    pub(super) fn user(&mut self) {
        let pause = if self.chance(150) { 20_000 } else { 50 + self.rng.below(300) as u64 };
        self.after(Duration::from_millis(pause), Event::User);
        if std::mem::take(&mut self.polling) {
            self.core.handle_poll_end(self.now);
        }
        if pause > 10_000 {
            return;
        }
        if self.style == Style::Each {
            self.acknowledge();
        }
        self.go_elsewhere();
        self.poll();
        if self.style == Style::Commit && (self.faults_are_over() || self.rng.below(3) == 0) {
            self.commit();
        }
    }

    /// Some of what is out is done, in any order.
    pub(super) fn acknowledge(&mut self) {
        let out = std::mem::take(&mut self.out);
        for (key, life, offset) in out {
            if !self.faults_are_over() && self.rng.below(3) == 0 {
                self.out.push((key, life, offset));
                continue;
            }
            // Handled, whether or not it still counts.
            self.handled[key.partition as usize].insert(offset);
            self.core.handle_done(&key, life, &[offset]);
        }
    }

    pub(super) fn go_elsewhere(&mut self) {
        let number = self.rng.below(PARTITIONS as usize) as i32;
        let at = number as usize;
        let Some(position) =
            self.core.partitions.get(&key(number)).and_then(|partition| partition.position())
        else {
            return;
        };
        if self.style != Style::Each && self.chance(25) {
            // Back, or on; what is passed over is not wanted.
            let to = (position.next + self.rng.below(9) as i64 - 5).clamp(0, self.ends[at]);
            self.handled[at].extend(0..to);
            self.back[at] = self.back[at].min(to);
            self.owed.remove(&number);
            self.out.retain(|(key, _, _)| key.partition != number);
            self.core.seek(&key(number), Phase::Fetching(Position::at(to))).unwrap();
        } else if self.style != Style::Each && self.chance(80) {
            self.owed.remove(&number);
            self.out.retain(|(key, _, _)| key.partition != number);
            self.core.seek(&key(number), Phase::AwaitingReset(ResetTo::Latest)).unwrap();
        } else if self.chance(20) {
            self.core.set_paused(&[key(number)], Some(PausedBy::User)).unwrap();
        } else if self.rng.below(4) == 0 || self.faults_are_over() {
            self.core.set_paused(&[key(number)], None).unwrap();
        }
    }

    pub(super) fn poll(&mut self) {
        if self.style != Style::Each {
            // What polls before handed out is done by this one.
            for (key, _, offset) in self.out.drain(..) {
                self.handled[key.partition as usize].insert(offset);
            }
        }
        self.core.handle_poll(self.now).unwrap();
        self.polling = true;
        self.listen();
        while self.core.take_error().is_some() {}
        let mut left = 5;
        while left > 0 {
            match self.core.next_chunk(left) {
                Next::Chunk(key, life, chunk) => {
                    left -= chunk.range.len();
                    for slot in &chunk.batch.slots[chunk.range.clone()] {
                        self.handed_out(&key, life, chunk.batch.offset(slot));
                    }
                }
                Next::Decode(job) => {
                    let (key, decoding) = job.split();
                    let (decoded, result) = decoding.run(true, &self.decompressor, 1 << 20);
                    self.core.partitions.check_in(key, decoded, result.is_err());
                    result.unwrap();
                }
                Next::Nothing => break,
            }
        }
    }

    /// The listener returns at once.
    pub(super) fn listen(&mut self) {
        let (Some(heard), seed) = (&mut self.heard, self.seed) else { return };
        while let Some(notice) = self.core.next_notice(self.now) {
            let (Notice::Assigned(partitions) | Notice::Revoked(partitions) | Notice::Lost(partitions)) =
                &notice;
            let comes = matches!(notice, Notice::Assigned(_));
            for key in partitions {
                let is_news = if comes { heard.insert(key.clone()) } else { heard.remove(key) };
                assert!(is_news, "seed {seed}: {notice:?} is told again");
            }
            self.core.handle_told(self.now);
        }
    }

    pub(super) fn handed_out(&mut self, key: &TopicPartition, life: Life, offset: i64) {
        let (number, seed) = (key.partition, self.seed);
        assert!(
            self.heard.as_ref().is_none_or(|heard| heard.contains(key)),
            "seed {seed}: {offset} of {key} is handed out, which the listener was not told of"
        );
        assert!(
            !self.given_up.contains(&number),
            "seed {seed}: {key} was given up, and {offset} is handed out"
        );
        match self.next.insert((number, life), offset + 1) {
            Some(next) => assert_eq!(offset, next, "seed {seed}: a hole or a repetition in {key}"),
            None => {
                let skipped = self.handled[number as usize].missing(offset);
                assert_eq!(skipped, None, "seed {seed}, {:?}: {key} begins at {offset}", self.style);
            }
        }
        self.out.push((key.clone(), life, offset));
        if self.style != Style::Each {
            self.owed.insert(number, offset + 1);
        }
    }

    /// Everything handed out is done, the user says.
    pub(super) fn commit(&mut self) {
        for (key, _, offset) in self.out.drain(..) {
            self.handled[key.partition as usize].insert(offset);
        }
        let named = self.chance(6).then(|| self.named()).flatten();
        let is_all = named.is_none();
        let asked: BTreeMap<i32, i64> = match &named {
            Some(named) => named.iter().map(|(key, named)| (key.partition, named.offset)).collect(),
            None => self.owed.clone(),
        };
        // Also what was sought.
        let sent: BTreeMap<i32, i64> = match &named {
            Some(_) => asked.clone(),
            None => {
                let position =
                    |number| Some((number, self.core.partitions.get(&key(number))?.position()?.next));
                (0..PARTITIONS).filter_map(position).collect()
            }
        };
        let asked = asked.into_iter().map(|(partition, offset)| {
            let at = partition as usize;
            let is_met = self.ours_committed[at] == offset || self.committed[at] == offset;
            (partition, Asked { offset, later: BTreeSet::new(), is_met })
        });
        let asked = asked.collect();
        match self.core.commit(named, self.now + seconds(8)) {
            Ok(Some(outcome)) => {
                for receipt in &mut self.receipts {
                    for (partition, asked) in &mut receipt.asked {
                        asked.later.extend(sent.get(partition));
                    }
                }
                self.receipts.push(Receipt { outcome, asked, is_all });
            }
            Ok(None) => self.told(Ok(()), &asked, is_all),
            Err(error) => self.told(Err(error), &asked, is_all),
        }
    }

    /// An offset of the user's own, below what was handed out.
    pub(super) fn named(&mut self) -> Option<Offsets> {
        let number = self.rng.below(PARTITIONS as usize) as i32;
        let partition = self.core.partitions.get(&key(number))?;
        let (begun, position) = (partition.account.begun()?, partition.position()?.next);
        let offset = (position - self.rng.below(3) as i64).max(begun).min(position);
        self.back[number as usize] = self.back[number as usize].min(offset);
        let named = Offset { offset, leader_epoch: -1, ..Offset::default() };
        Some(Offsets::from([(key(number), named)]))
    }
}
