//! What the answers of coordinators do to a transaction. Pure. What an error means is `verdict.rs`'s to say.

use std::sync::Arc;

use super::{
    CONCURRENT_PAUSE, Core, State,
    calls::{Call, NotDone, Reply},
    is_concurrent,
    verdict::{Verdict, leaves_open, verdict},
};
use crate::{
    error::{Error, Result},
    time::{Instant, Rng},
};

impl Core {
    /// The answer to the call that is out.
    pub(crate) fn handle_reply(
        &mut self,
        now: Instant,
        call: &Call,
        reply: Result<Reply, NotDone>,
        rng: &mut Rng,
    ) {
        self.out = false;
        self.trouble = None;
        let NotDone { error, asked } = match reply {
            Ok(reply) => {
                self.backoff.reset();
                return self.handle_done(call, reply);
            }
            Err(not_done) => not_done,
        };
        if matches!(call, Call::End { commit: true, .. }) {
            self.commit_lost |= asked && leaves_open(&error);
            // If no coordinator was asked, the transaction can still be aborted.
            self.commit_sent &= asked || self.commit_lost;
        }
        if self.is_fatal() {
            return;
        }
        let is_lost = asked && error.code().is_none();
        if is_lost && !self.version2 && !matches!(call, Call::Init(_)) {
            // The request may arrive when this transaction is over: the offsets of an aborted transaction would be
            // committed with the next, and an end would end the next. An answer that cannot be read says no more than one
            // that was lost: the connection may have ended because of another's.
            self.needs_bump = true;
        }
        match verdict(call, &error, asked) {
            Verdict::Again => {
                let pause = self.backoff.next(rng);
                let most = if is_concurrent(&error) { CONCURRENT_PAUSE } else { pause };
                self.not_before = Some(now + pause.min(most));
                self.trouble = Some(error);
            }
            Verdict::Abort => self.handle_abortable(call, error),
            Verdict::Forgotten => self.handle_forgotten(error),
            Verdict::Fenced => self.handle_fatal(error.with_fatal().with_hint(
                "another producer with this transactional.id has taken over, or the transaction was open for longer than \
                 transaction.timeout.ms: make this one anew, give each its own id, and end transactions in time",
            )),
            Verdict::Fatal => self.handle_fatal(error.with_fatal()),
        }
    }

    fn handle_done(&mut self, call: &Call, reply: Reply) {
        match (call, reply) {
            // After a fatal error only this still matters: whether the transaction was committed.
            (Call::End { commit: true, .. }, Reply::Ended(_)) if self.is_fatal() => {
                self.committed = self.number;
            }
            _ if self.is_fatal() => {}
            (Call::Init(_), Reply::Initialized { identity, version2 }) => {
                self.identity = Some(identity);
                self.version2 = version2;
                self.needs_bump = false;
                self.finish();
            }
            (Call::AddPartitions(_, partitions), _) => {
                let mut added = (*self.added).clone();
                added.extend(partitions.iter().cloned());
                self.added = Arc::new(added);
                self.wanted.retain(|partition| !partitions.contains(partition));
            }
            (Call::AddOffsets(..), _) => {
                if let Some(job) = self.jobs.front_mut() {
                    job.group_added = true;
                }
            }
            (Call::CommitOffsets(..), _) => {
                if self.jobs.pop_front().is_some() {
                    self.done_jobs += 1;
                }
            }
            (Call::End { commit, .. }, Reply::Ended(identity)) => {
                if *commit {
                    // What is still to be done is the next transaction's.
                    self.committed = self.number;
                }
                self.begun = false;
                self.commit_sent = false;
                self.commit_lost = false;
                if let Some(identity) = identity {
                    // KIP-890: what was out under the old epoch is refused from now on.
                    self.identity = Some(identity);
                    self.needs_bump = false;
                }
                // Else `poll_call` asks for a new epoch, and the next transaction waits for it.
                self.state = State::Aborting;
                if !self.needs_bump || self.is_closing {
                    self.finish();
                }
            }
            (Call::Init(_) | Call::End { .. }, _) => {
                self.handle_fatal(
                    Error::protocol("the coordinator's answer does not fit the request").with_fatal(),
                );
            }
        }
    }

    fn handle_abortable(&mut self, call: &Call, error: Error) {
        match self.state {
            State::Open | State::Committing => self.fail(error),
            // The transaction is over already as far as the caller is concerned; what cannot even be aborted is fatal.
            _ if matches!(call, Call::Init(_) | Call::End { .. }) => self.handle_fatal(error.with_fatal()),
            _ => {}
        }
    }

    /// The coordinator does not know the producer id any more (KIP-360), or nothing of the transaction: there is nothing to end
    /// there, and a new identity, asked for with the old one, goes on unless another producer has taken the name meanwhile.
    fn handle_forgotten(&mut self, error: Error) {
        self.begun = false;
        self.needs_bump = true;
        match self.state {
            State::Open | State::Committing => self.fail(error),
            State::Aborting | State::Failed(_) => {}
            _ => self.handle_fatal(error.with_fatal()),
        }
    }
}
