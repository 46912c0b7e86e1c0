//! Seeds against a model of a coordinator.

use super::*;

/// What a coordinator holds of one transactional id.
#[derive(Default)]
struct Coordinator {
    version2: bool,
    epoch: i16,
    ongoing: bool,
    /// The end that was written under the epoch before: asked again, it is answered again.
    last_end: Option<(i16, bool)>,
    committed: Vec<u64>,
    /// It has ended a transaction that was open for too long, and the producer may hold an epoch that is over.
    has_ended: bool,
}

impl Coordinator {
    fn answer(&mut self, call: &Call, number: u64) -> Result<Reply> {
        let (version2, identity) = (self.version2, |epoch| ProducerIdentity { id: 7, epoch, cluster: 0 });
        match call {
            Call::Init(_) => {
                self.ongoing = false;
                self.epoch += 1;
                self.has_ended = false;
                Ok(Reply::Initialized { identity: identity(self.epoch), version2 })
            }
            Call::AddPartitions(from, _) | Call::AddOffsets(from, _) | Call::CommitOffsets(from, _) => {
                self.check_epoch(*from)
                    .map_err(|_| broker(self.told_too_late(code::TRANSACTION_ABORTABLE)))?;
                self.ongoing = true;
                Ok(Reply::Done)
            }
            Call::End { identity: from, commit } => {
                let ended = |epoch| Reply::Ended(version2.then(|| identity(epoch)));
                if self.last_end == Some((from.epoch, *commit)) && !self.ongoing {
                    return Ok(ended(self.epoch));
                }
                self.check_epoch(*from).map_err(|_| broker(self.told_too_late(code::INVALID_TXN_STATE)))?;
                if !self.ongoing && !version2 {
                    return Err(broker(code::INVALID_TXN_STATE));
                }
                self.ongoing = false;
                if *commit {
                    self.committed.push(number);
                }
                self.last_end = Some((self.epoch, *commit));
                self.epoch += i16::from(version2);
                Ok(ended(self.epoch))
            }
        }
    }

    fn check_epoch(&self, from: ProducerIdentity) -> Result<(), ()> {
        if self.has_ended && from.epoch < self.epoch {
            return Err(());
        }
        assert_eq!(from.epoch, self.epoch, "an old epoch is used");
        Ok(())
    }

    fn told_too_late(&self, with_version2: i16) -> i16 {
        if self.version2 { with_version2 } else { code::PRODUCER_FENCED }
    }

    fn end_what_is_open_for_too_long(&mut self) {
        if std::mem::take(&mut self.ongoing) {
            self.epoch += 1;
            self.has_ended = true;
        }
    }

    /// It comes to a call of transaction `of` whose caller has given it up long ago; `number` is the last one by now.
    fn come_to(&mut self, call: &Call, of: u64, number: u64) {
        match call {
            // The first one fences whoever sent it, as any other producer would.
            Call::Init(_) => {}
            Call::AddPartitions(from, _) | Call::AddOffsets(from, _) | Call::CommitOffsets(from, _) => {
                if from.epoch == self.epoch {
                    assert_eq!(of, number, "it comes into another transaction: {call:?}");
                    self.ongoing = true;
                }
            }
            Call::End { identity, .. } => {
                if identity.epoch == self.epoch && self.ongoing {
                    assert_eq!(of, number, "it ends another transaction: {call:?}");
                    drop(self.answer(call, number));
                }
            }
        }
    }
}

fn run(seed: u64) {
    let mut random = Rng::new(seed);
    let version2 = random.below(2) == 0;
    let is_impatient = random.below(4) == 0;
    let mut rig = Rig { core: core(), now: crate::time::now(), rng: Rng::new(seed) };
    let mut coordinator = Coordinator { version2, ..Default::default() };
    rig.core.handle_init();
    let mut out: Option<Call> = None;
    let mut late: Vec<(Call, u64)> = Vec::new();
    // What becomes of a call, and of how many of the next.
    let (mut fate, mut again) = (0, 0);
    let mut number = 0;
    let mut wanted_commit = Vec::new();
    let mut told_committed = Vec::new();
    let mut committing = false;
    let mut told_aborted = Vec::new();
    for step in 0..600 {
        let calm = step > 500;
        match random.below(8) {
            0 if !calm => {
                if let Some(Ok(begun)) = rig.core.handle_begin() {
                    number = begun;
                    committing = false;
                }
            }
            1 if rig.core.identity().is_some() && !rig.core.commit_sent => rig.wants(random.below(3) as i32),
            2 if rig.core.identity().is_some() && version2 && !rig.core.commit_sent => {
                coordinator.ongoing |= !coordinator.has_ended;
                rig.core.handle_sent();
            }
            3 => committing |= rig.core.handle_commit().is_ok(),
            4 if !calm => {
                rig.core.handle_abort();
                committing &= rig.core.commit_sent;
            }
            5 if !calm => {
                rig.core.handle_failure(Error::new(ErrorKind::Timeout, "late"), random.below(2) == 0)
            }
            6 => drop(rig.core.handle_offsets(offsets())),
            _ if committing && random.below(4) == 0 => {
                if let CommitTimeout::Aborting = rig.core.handle_commit_timeout(number) {
                    told_aborted.push(number);
                    committing = false;
                }
            }
            _ => {}
        }
        if is_impatient && !calm && random.below(100) == 0 {
            coordinator.end_what_is_open_for_too_long();
        }
        if !late.is_empty() && random.below(30) == 0 {
            let (call, of) = late.swap_remove(random.below(late.len()));
            coordinator.come_to(&call, of, number);
        }
        if out.is_none() {
            let busy = !calm && random.below(2) == 0;
            out = rig.call(Outstanding { records: busy, in_flight: busy });
            if let Some(Call::End { commit: true, .. }) = out {
                wanted_commit.push(number);
            }
        }
        if let Some(call) = &out
            && random.below(2) == 0
        {
            let mut asked = true;
            if again == 0 {
                (fate, again) = (random.below(14), 1 + random.below(3) * random.below(4));
            }
            again -= 1;
            let reply = match if calm { 13 } else { fate } {
                0 => {
                    if random.below(2) == 0 {
                        late.push((call.clone(), number));
                    }
                    Err(Error::new(ErrorKind::Disconnected, "lost before"))
                }
                1 => {
                    drop(coordinator.answer(call, number));
                    Err(Error::new(ErrorKind::Disconnected, "lost after"))
                }
                2 => Err(broker([14, 15, 16, 51][random.below(4)])),
                3 if !matches!(call, Call::Init(_) | Call::End { .. }) => Err(broker(120)),
                4 => {
                    asked = false;
                    Err(Error::new(ErrorKind::Disconnected, "nobody was there"))
                }
                5 => {
                    drop(coordinator.answer(call, number));
                    Err(Error::protocol("the answer cannot be read"))
                }
                // Its log has taken the change, and not in time.
                6 | 7 => {
                    drop(coordinator.answer(call, number));
                    Err(broker([7, 14, 15, 16][random.below(4)]))
                }
                // It does not know itself, or says it in a way that is newer.
                8 if !matches!(call, Call::Init(None)) => {
                    if random.below(2) == 0 {
                        drop(coordinator.answer(call, number));
                    }
                    Err(broker([-1, 29_999][random.below(2)]))
                }
                _ => coordinator.answer(call, number),
            };
            if reply.is_ok() && matches!(call, Call::End { commit: true, .. }) {
                told_committed.push(number);
            }
            let reply = reply.map_err(|error| NotDone { error, asked });
            rig.core.handle_reply(rig.now, call, reply, &mut rig.rng);
            out = None;
        }
        // Whoever waits for the commit holds the only handle: nothing begins before it knows.
        if committing && let Some(outcome) = rig.core.outcome(number) {
            committing = false;
            match outcome {
                // One of nothing is asked of nobody.
                Ok(()) if wanted_commit.contains(&number) => told_committed.push(number),
                Ok(()) => {}
                Err(error) if !error.possibly_written() => told_aborted.push(number),
                Err(_) => {}
            }
        }
        rig.now += Duration::from_millis(if calm { 1500 } else { 60 });
    }
    // The caller begins once more, gives up and closes, while the driver sends what it has seen that it may.
    drop(rig.core.handle_begin());
    let leaves = version2 && rig.core.identity().is_some() && !rig.core.commit_sent;
    rig.core.handle_abort();
    rig.core.handle_close();
    if leaves {
        coordinator.ongoing |= !coordinator.has_ended;
        rig.core.handle_sent();
    }
    for _ in 0..20 {
        if let Some(call) = out.take().or_else(|| rig.call(idle())) {
            let reply = coordinator.answer(&call, number);
            rig.reply(&call, reply);
        }
        rig.now += Duration::from_secs(2);
    }
    match &rig.core.state {
        State::Ready => assert!(!coordinator.ongoing, "seed {seed}: a transaction stays open"),
        State::Fatal(error) => assert!(
            matches!(error.code().map(|told| told.0), Some(code::PRODUCER_FENCED | -1 | 29_999)),
            "seed {seed}: {error}"
        ),
        other => panic!("seed {seed}: {other:?}"),
    }
    for number in &told_committed {
        assert!(
            coordinator.committed.contains(number),
            "seed {seed}: {number} was told and is not committed"
        );
    }
    for number in &told_aborted {
        assert!(
            !coordinator.committed.contains(number),
            "seed {seed}: {number} is committed, against what was told"
        );
    }
    for number in &coordinator.committed {
        assert!(wanted_commit.contains(number), "seed {seed}: {number} was committed and nobody asked");
    }
}

#[test]
fn nothing_stays_open_and_what_is_told_is_so_whatever_gets_lost() {
    let seeds = std::env::var("DTKAFKA_MODEL_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2000);
    for seed in 0..seeds {
        run(seed);
    }
}
