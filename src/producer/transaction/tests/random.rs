//! Seeds against a model of a coordinator.

use super::*;

/// What a coordinator holds of one transactional id.
#[derive(Default)]
struct Coordinator {
    epoch: i16,
    ongoing: bool,
    /// The end that was written under the epoch before: asked again, it is answered again.
    last_end: Option<(i16, bool)>,
    committed: Vec<u64>,
}

impl Coordinator {
    fn answer(&mut self, call: &Call, version2: bool, number: u64) -> Result<Reply> {
        let identity = |epoch| ProducerIdentity { id: 7, epoch };
        match call {
            Call::Init(_) => {
                self.ongoing = false;
                self.epoch += 1;
                Ok(Reply::Initialized { identity: identity(self.epoch), version2 })
            }
            Call::AddPartitions(from, _) | Call::AddOffsets(from, _) | Call::CommitOffsets(from, _) => {
                assert_eq!(from.epoch, self.epoch, "an old epoch is used");
                self.ongoing = true;
                Ok(Reply::Done)
            }
            Call::End { identity: from, commit } => {
                let ended = |epoch| Reply::Ended(version2.then(|| identity(epoch)));
                if self.last_end == Some((from.epoch, *commit)) && !self.ongoing {
                    return Ok(ended(self.epoch));
                }
                assert_eq!(from.epoch, self.epoch, "an old epoch is used");
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
}

fn run(seed: u64) {
    let mut random = Rng::new(seed);
    let version2 = random.below(2) == 0;
    let mut rig = Rig { core: core(), now: crate::time::now(), rng: Rng::new(seed) };
    let mut coordinator = Coordinator::default();
    rig.core.handle_init();
    let mut out: Option<Call> = None;
    let mut number = 0;
    let mut wanted_commit = Vec::new();
    let mut told_committed = Vec::new();
    let mut committing = false;
    let mut told_aborted = Vec::new();
    for step in 0..600 {
        let calm = step > 500;
        match random.below(8) {
            0 if !calm => {
                if let Some(begun) = rig.core.handle_begin() {
                    number = begun.unwrap();
                    committing = false;
                }
            }
            1 if rig.core.identity().is_some() && !rig.core.commit_sent => rig.wants(random.below(3) as i32),
            2 if rig.core.identity().is_some() && version2 && !rig.core.commit_sent => {
                coordinator.ongoing = true;
                rig.core.handle_sent();
            }
            3 => committing |= rig.core.handle_commit().is_ok(),
            4 if !calm => rig.core.handle_abort(),
            5 if !calm => {
                rig.core.handle_failure(Error::new(ErrorKind::Timeout, "late"), random.below(2) == 0)
            }
            6 => drop(rig.core.handle_offsets(offsets())),
            _ if committing && random.below(4) == 0 => {
                if let Impatience::Aborted = rig.core.handle_impatience(number) {
                    told_aborted.push(number);
                    committing = false;
                }
            }
            _ => {}
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
            let reply = match if calm { 11 } else { random.below(12) } {
                0 => Err(Error::new(ErrorKind::Disconnected, "lost before")),
                1 => {
                    drop(coordinator.answer(call, version2, number));
                    Err(Error::new(ErrorKind::Disconnected, "lost after"))
                }
                2 => Err(broker([14, 15, 16, 51][random.below(4)])),
                3 if !matches!(call, Call::Init(_) | Call::End { .. }) => Err(broker(120)),
                4 => {
                    asked = false;
                    Err(Error::new(ErrorKind::Disconnected, "nobody was there"))
                }
                5 => {
                    drop(coordinator.answer(call, version2, number));
                    Err(Error::protocol("the answer cannot be read"))
                }
                _ => coordinator.answer(call, version2, number),
            };
            if reply.is_ok() && matches!(call, Call::End { commit: true, .. }) {
                told_committed.push(number);
            }
            let reply = reply.map_err(|error| NotDone { error, asked });
            rig.core.handle_reply(rig.now, call, reply, &mut rig.rng);
            out = None;
        }
        // Whoever waits for the commit holds the only handle: nothing begins before it knows.
        if rig.core.is_settled() && number > 0 && committing {
            assert!(rig.core.outcome(number).unwrap().is_ok());
            committing = false;
        }
        rig.now += Duration::from_millis(if calm { 1500 } else { 60 });
    }
    if !rig.core.is_settled() {
        rig.core.handle_abort();
    }
    for _ in 0..20 {
        if let Some(call) = out.take().or_else(|| rig.call(idle())) {
            let reply = coordinator.answer(&call, version2, number);
            rig.reply(&call, reply);
        }
        rig.now += Duration::from_secs(2);
    }
    assert!(matches!(rig.core.state, State::Ready), "seed {seed}: {:?}", rig.core.state);
    assert!(!coordinator.ongoing, "seed {seed}: a transaction stays open");
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
    for seed in 0..2000 {
        run(seed);
    }
}
