//! The ledger of one partition: what one life of it has handed out, what of that is done, and what is committed. Pure.
//!
//! A **life** is one assignment, or one seek within it; a **tenure** is the assignment alone, and outlives seeks. Nothing
//! of an earlier life is ever counted as done, and nothing of an earlier tenure is committed: another member may have
//! gone on from there. The frontier, which is what may be committed, is the lowest record that is not done; where all
//! is done it is the position, so that markers and compacted records do not hold it back. A position that was looked up
//! or set is covered from the start: a member that ends before its first record has still said where the group stands.
//!
//! Records are done in one of two ways. By default the next poll says so of everything before it ([`Account::cover`]);
//! where each is acknowledged by itself, with gaps, they are counted one by one ([`Account::done`]).

use std::collections::VecDeque;

use crate::time::Instant;

/// One assignment of a partition, or one seek: what was handed out, asked or buffered in another life is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Life(u64);

impl Life {
    /// Of what is asked for by somebody else than an assigned partition.
    pub(crate) const NONE: Self = Self(0);

    /// The life as a number, for callers that do not know lives.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    pub(crate) fn numbered(number: u64) -> Self {
        Self(number)
    }
}

#[cfg(any(test, feature = "unstable-benches"))]
impl Life {
    /// One that no client has given out.
    pub(crate) fn of_tests() -> Self {
        Self(0)
    }
}

/// Gives out lives; none is given twice.
#[derive(Debug, Default)]
pub(crate) struct Lives(u64);

impl Lives {
    pub(crate) fn begin(&mut self) -> Life {
        self.0 += 1;
        Life(self.0)
    }

    /// The last that was given out.
    pub(crate) fn last(&self) -> Life {
        Life(self.0)
    }
}

/// A place in a log that may be committed: the offset of the next record, and the leader epoch of the one before it
/// (KIP-320; -1 where unknown).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) offset: i64,
    pub(crate) leader_epoch: i32,
}

/// What the group has of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) offset: i64,
    /// The user's text.
    pub(crate) metadata: String,
    /// When it was committed, or found.
    pub(crate) since: Instant,
    /// This consumer has committed it; of what it has found nobody knows the age.
    pub(crate) is_own: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the user's hands.
    Out,
    Done,
    /// Given back unhandled: nobody works on it, and the frontier stays before it.
    Back,
}

#[derive(Debug, Clone, Copy)]
struct HandedOut {
    offset: i64,
    leader_epoch: i32,
    state: State,
}

/// What is known of one partition.
#[derive(Debug)]
pub(crate) struct Account {
    life: Life,
    tenure: Life,
    /// The lowest place of this tenure: it has handed out nothing below.
    begun: Option<i64>,
    /// The place that the reset policy has decided on, until [`Self::take_decided`] takes it.
    decided: Option<i64>,
    /// Everything before it is done.
    covered: Option<Mark>,
    /// The group's offset, as far as this member knows.
    committed: Option<Committed>,
    /// Records were handed out since the last poll.
    is_uncovered: bool,
    /// Where each record is acknowledged by itself: those handed out from the frontier on, by offset.
    window: VecDeque<HandedOut>,
    out: usize,
}

impl Account {
    /// A partition that has just been assigned.
    pub(crate) fn open(life: Life) -> Self {
        Self {
            life,
            tenure: life,
            begun: None,
            decided: None,
            covered: None,
            committed: None,
            is_uncovered: false,
            window: VecDeque::new(),
            out: 0,
        }
    }

    pub(crate) fn life(&self) -> Life {
        self.life
    }

    pub(crate) fn tenure(&self) -> Life {
        self.tenure
    }

    /// Another life under the same tenure. What was covered stays so until the new life has its place.
    pub(crate) fn restart(&mut self, life: Life) {
        self.life = life;
        self.is_uncovered = false;
        self.window.clear();
        self.out = 0;
    }

    /// The log was cut at `mark`, and another life begins there. Records before it that were handed out and are not done
    /// stay so until the next poll; what was done or committed beyond it does not count any more.
    pub(crate) fn cut(&mut self, life: Life, mark: Mark) {
        let is_uncovered =
            self.is_uncovered && self.covered.is_none_or(|covered| covered.offset < mark.offset);
        self.restart(life);
        self.is_uncovered = is_uncovered;
        self.begun = self.begun.map(|begun| begun.min(mark.offset));
        if self.covered.is_none_or(|covered| covered.offset > mark.offset) {
            self.covered = Some(mark);
        }
    }

    /// Records were handed out that the next poll covers.
    pub(crate) fn is_uncovered(&self) -> bool {
        self.is_uncovered
    }

    /// The life has its place: found by a look-up, or set by the user.
    pub(crate) fn begin_at(&mut self, mark: Mark) {
        self.begun = Some(self.begun.map_or(mark.offset, |begun| begun.min(mark.offset)));
        self.covered = Some(mark);
    }

    /// The reset policy has decided on the life's place.
    pub(crate) fn decide(&mut self, offset: i64) {
        self.decided = Some(offset);
    }

    /// The place that the reset policy has decided on since this was last asked.
    pub(crate) fn take_decided(&mut self) -> Option<i64> {
        self.decided.take()
    }

    /// Records are handed out again from `first` on, so a place that was decided on beyond it must not become known to
    /// the group. One before it stands, since the log was cut there. True if no decided place is left.
    pub(crate) fn forget_decided_beyond(&mut self, first: i64) -> bool {
        self.decided = self.decided.filter(|decided| *decided <= first);
        self.decided.is_none()
    }

    /// The epochs of what was read are of another log, and are forgotten.
    pub(crate) fn forget_epoch(&mut self) {
        if let Some(covered) = &mut self.covered {
            covered.leader_epoch = -1;
        }
    }

    /// The lowest place of this assignment, once it has one.
    pub(crate) fn begun(&self) -> Option<i64> {
        self.begun
    }

    /// The group has this offset.
    pub(crate) fn set_committed(&mut self, committed: Committed) {
        self.committed = Some(committed);
    }

    pub(crate) fn committed(&self) -> Option<&Committed> {
        self.committed.as_ref()
    }

    /// Records were handed out that the next poll covers. True if none were before.
    pub(crate) fn hand_out(&mut self) -> bool {
        !std::mem::replace(&mut self.is_uncovered, true)
    }

    /// Records were handed out that are acknowledged one by one.
    pub(crate) fn hand_out_each(&mut self, offsets: impl Iterator<Item = i64>, leader_epoch: i32) {
        let before = self.window.len();
        self.window.extend(offsets.map(|offset| HandedOut { offset, leader_epoch, state: State::Out }));
        self.out += self.window.len() - before;
    }

    /// The position has moved over what is not for the user, which may be committed without waiting for anybody.
    pub(crate) fn step_over(&mut self, position: Mark) {
        if !self.is_uncovered && self.window.is_empty() {
            self.covered = Some(position);
        }
    }

    /// A poll begins: all that was handed out is done.
    pub(crate) fn cover(&mut self, position: Option<Mark>) {
        self.is_uncovered = false;
        if self.window.is_empty() {
            self.covered = position.or(self.covered);
        }
    }

    /// The user has committed this place: an automatic commit must not fall behind it. `position` bounds it.
    pub(crate) fn cover_explicit(&mut self, mark: Mark, position: Option<i64>) {
        let handed_out = position.is_some_and(|position| mark.offset <= position);
        if handed_out && self.covered.is_none_or(|covered| covered.offset < mark.offset) {
            self.covered = Some(mark);
        }
    }

    /// Records are done, by offset. How many of them were out in this life.
    pub(crate) fn done(&mut self, life: Life, offsets: &[i64], position: Option<Mark>) -> usize {
        // Records that are done in order need no search: each stands right behind the one before.
        let (mut counted, mut next) = (0, 0);
        for offset in offsets {
            if let Some(index) = self.settle(life, *offset, State::Done, next) {
                (counted, next) = (counted + 1, index + 1);
            }
        }
        let done = self.window.iter().take_while(|handed_out| handed_out.state == State::Done).count();
        let last = self.window.drain(..done).next_back();
        if let Some(HandedOut { leader_epoch, .. }) = last {
            // If the records on both sides have the same epoch, so has what lies between them; else its epoch is unknown.
            let next = self.window.front().map(|front| Mark {
                offset: front.offset,
                leader_epoch: if front.leader_epoch == leader_epoch { leader_epoch } else { -1 },
            });
            self.covered = next.or(position).or(self.covered);
        }
        counted
    }

    /// One record comes back unhandled. False if it is not out in this life.
    pub(crate) fn hand_back(&mut self, life: Life, offset: i64) -> bool {
        self.settle(life, offset, State::Back, 0).is_some()
    }

    /// Sets the state of a record that is out in this life, and returns its place in the window, which is probably
    /// `guess`.
    fn settle(&mut self, life: Life, offset: i64, state: State, guess: usize) -> Option<usize> {
        if life != self.life {
            return None;
        }
        let index = match self.window.get(guess) {
            Some(guessed) if guessed.offset == offset => guess,
            _ => self.window.binary_search_by_key(&offset, |handed_out| handed_out.offset).ok()?,
        };
        let found = self.window.get_mut(index).filter(|found| found.state == State::Out)?;
        found.state = state;
        self.out -= 1;
        Some(index)
    }

    /// Records that are acknowledged one by one, and are not yet.
    pub(crate) fn outstanding(&self) -> usize {
        self.out
    }

    /// Whether the user may be at work on something.
    pub(crate) fn is_outstanding(&self) -> bool {
        self.is_uncovered || self.out > 0
    }

    /// Whether something that was handed out is not done: with the user, or given back.
    pub(crate) fn has_undone(&self) -> bool {
        self.is_uncovered || !self.window.is_empty()
    }

    /// What may be committed.
    pub(crate) fn frontier(&self) -> Option<Mark> {
        self.covered
    }

    /// Whether something was handed out that the group does not know of. `position`: of the next record to hand out, if
    /// there is one at the moment.
    pub(crate) fn is_uncommitted(&self, position: Option<i64>, by_each: bool) -> bool {
        if self.window.iter().any(|handed_out| handed_out.state == State::Done) {
            // It stands behind a record that is not done, so that it cannot have been committed.
            return true;
        }
        let covered = self.covered.map(|covered| covered.offset);
        let handed_out = if by_each { covered } else { position.or(covered) };
        let moved = self.begun.is_some_and(|begun| handed_out.is_some_and(|offset| offset > begun));
        moved && self.committed.as_ref().map(|committed| committed.offset) != handed_out
    }

    /// The first record that is not done, where each is acknowledged by itself.
    pub(crate) fn first_not_done(&self) -> Option<i64> {
        self.window.front().map(|front| front.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(offset: i64) -> Mark {
        Mark { offset, leader_epoch: 3 }
    }

    fn account() -> Account {
        let mut account = Account::open(Lives::default().begin());
        account.begin_at(mark(10));
        account
    }

    #[test]
    fn what_was_decided_beyond_what_is_handed_out_again_is_no_place_to_be_known() {
        for (decided, again, told) in [(90, 80, None), (80, 80, Some(80)), (50, 80, Some(50))] {
            let mut account = account();
            account.decide(decided);
            assert_eq!(account.forget_decided_beyond(again), told.is_none());
            assert_eq!(account.take_decided(), told);
        }
    }

    #[test]
    fn a_position_that_was_found_is_covered_before_anything_is_handed_out() {
        let mut account = Account::open(Lives::default().begin());
        assert_eq!(account.frontier(), None);
        account.begin_at(mark(10));
        assert_eq!(account.frontier(), Some(mark(10)));
        assert!(!account.is_outstanding());
    }

    #[test]
    fn what_is_not_for_the_user_is_stepped_over_only_where_nothing_is_in_hand() {
        let mut each = account();
        each.step_over(mark(12));
        assert_eq!(each.frontier(), Some(mark(12)));
        each.hand_out_each([12, 13].into_iter(), 3);
        each.step_over(mark(15));
        assert_eq!(each.frontier(), Some(mark(12)), "two records are at work");
        let mut by_poll = account();
        assert!(by_poll.hand_out());
        by_poll.step_over(mark(15));
        assert_eq!(by_poll.frontier(), Some(mark(10)), "the next poll says that they are done");
        by_poll.cover(Some(mark(15)));
        assert_eq!(by_poll.frontier(), Some(mark(15)));
    }

    #[test]
    fn the_frontier_is_the_lowest_record_not_done_whatever_is_done_behind_it() {
        let mut account = account();
        let life = account.life();
        account.hand_out_each([10, 11, 15, 16].into_iter(), 3);
        let position = Some(mark(20));
        assert_eq!(account.done(life, &[15, 11], position), 2);
        assert_eq!((account.frontier(), account.outstanding()), (Some(mark(10)), 2));
        assert_eq!(account.done(life, &[10], position), 1);
        assert_eq!(account.frontier(), Some(mark(16)), "compacted offsets are passed");
        assert_eq!(account.done(life, &[16], position), 1);
        assert_eq!((account.frontier(), account.outstanding()), (Some(mark(20)), 0), "the position, not 17");
        assert_eq!(account.done(life, &[16], position), 0, "once");
    }

    #[test]
    fn many_at_once_are_as_one_by_one_whatever_their_order() {
        let offsets = [10, 11, 14, 15, 19, 20];
        let position = Some(mark(21));
        for bits in 0_u32..1 << offsets.len() {
            let some: Vec<i64> =
                (0..offsets.len()).filter(|i| bits >> i & 1 == 1).map(|i| offsets[i]).collect();
            let backwards: Vec<i64> = some.iter().rev().copied().collect();
            let states = [&some, &backwards].map(|order| {
                let (mut one_by_one, mut at_once) = (account(), account());
                for account in [&mut one_by_one, &mut at_once] {
                    account.hand_out_each(offsets.into_iter(), 3);
                    assert!(account.hand_back(account.life(), 15));
                }
                let life = at_once.life();
                let counted: usize = order.iter().map(|one| one_by_one.done(life, &[*one], position)).sum();
                assert_eq!(at_once.done(life, order, position), counted);
                [one_by_one, at_once].map(|account| {
                    (
                        account.frontier(),
                        account.outstanding(),
                        account.first_not_done(),
                        account.has_undone(),
                    )
                })
            });
            assert!(states.iter().flatten().all(|state| *state == states[0][0]), "{some:?}: {states:?}");
        }
    }

    #[test]
    fn an_offset_is_committed_with_the_epoch_before_it_or_with_none() {
        let mut account = account();
        let life = account.life();
        account.hand_out_each([10, 11].into_iter(), 3);
        account.hand_out_each([15].into_iter(), 5);
        let position = Some(Mark { offset: 17, leader_epoch: 6 });
        assert_eq!(account.done(life, &[10], position), 1);
        assert_eq!(account.frontier(), Some(Mark { offset: 11, leader_epoch: 3 }));
        assert_eq!(account.done(life, &[11], position), 1);
        assert_eq!(account.frontier(), Some(Mark { offset: 15, leader_epoch: -1 }), "14 may be of 3, 4 or 5");
        assert_eq!(account.done(life, &[15], position), 1);
        assert_eq!(account.frontier(), position, "a marker of a later leader is before it");
    }

    #[test]
    fn what_comes_back_is_not_waited_for_and_never_passed() {
        let mut account = account();
        let life = account.life();
        account.hand_out_each(10..14, 3);
        assert!(account.hand_back(life, 11) && account.hand_back(life, 13));
        assert_eq!(account.done(life, &[12], Some(mark(14))), 1);
        assert_eq!(account.done(life, &[10], Some(mark(14))), 1);
        assert!(!account.is_outstanding());
        assert_eq!((account.frontier(), account.first_not_done()), (Some(mark(11)), Some(11)));
    }

    #[test]
    fn what_is_done_behind_a_gap_is_uncommitted_and_what_is_out_is_not() {
        let mut account = account();
        let life = account.life();
        let since = crate::time::now();
        account.set_committed(Committed { offset: 10, metadata: String::new(), since, is_own: true });
        account.hand_out_each(10..14, 3);
        assert!(!account.is_uncommitted(Some(14), true));
        assert_eq!(account.done(life, &[12], Some(mark(14))), 1);
        assert!(account.is_uncommitted(Some(14), true));
    }

    #[test]
    fn nothing_of_an_earlier_life_is_done_in_a_later_one() {
        let mut lives = Lives::default();
        let first = lives.begin();
        let mut account = Account::open(first);
        account.begin_at(mark(10));
        account.hand_out_each(10..12, 3);
        account.restart(lives.begin());
        account.begin_at(mark(10));
        account.hand_out_each(10..12, 3);
        assert_eq!(account.done(first, &[10], Some(mark(12))), 0);
        assert_eq!((account.frontier(), account.outstanding()), (Some(mark(10)), 2));
        assert_eq!(account.tenure(), first, "a seek does not end the assignment");
    }

    #[test]
    fn what_the_user_commits_is_covered_if_it_was_handed_out_and_nothing_is_taken_back() {
        let mut account = account();
        for (committed, position, covered) in
            [(15, Some(20), 15), (12, Some(20), 15), (20, Some(20), 20), (21, Some(20), 20), (21, None, 20)]
        {
            account.cover_explicit(mark(committed), position);
            assert_eq!(account.frontier(), Some(mark(covered)), "{committed} of {position:?}");
        }
    }

    #[test]
    fn a_log_that_was_cut_takes_back_what_lies_beyond_and_no_more() {
        for (cut, is_uncovered, frontier, begun) in [
            (15, true, mark(10), 10),
            (10, false, mark(10), 10),
            (9, false, Mark { offset: 9, leader_epoch: 7 }, 9),
        ] {
            let mut lives = Lives::default();
            let mut account = Account::open(lives.begin());
            account.begin_at(mark(10));
            account.hand_out();
            account.cut(lives.begin(), Mark { offset: cut, leader_epoch: 7 });
            assert_eq!((account.is_uncovered(), account.frontier()), (is_uncovered, Some(frontier)), "{cut}");
            assert_eq!(account.begun(), Some(begun), "{cut}");
            account.forget_epoch();
            assert_eq!(account.frontier(), Some(Mark { leader_epoch: -1, ..frontier }));
        }
        let mut nowhere = Account::open(Lives::default().begin());
        nowhere.cut(nowhere.life(), mark(5));
        assert_eq!((nowhere.frontier(), nowhere.begun()), (Some(mark(5)), None));
    }

    #[test]
    fn what_the_group_does_not_know_of_is_uncommitted_only_where_something_was_handed_out() {
        let since = crate::time::now();
        for (position, done, committed, by_poll, by_each) in [
            (Some(10), 0, None, false, false),
            (None, 0, None, false, false),
            (Some(11), 0, None, true, false),
            (Some(11), 0, Some(11), false, false),
            (Some(11), 0, Some(10), true, false),
            (Some(11), 1, None, true, true),
            (Some(11), 1, Some(11), false, false),
            (None, 1, None, true, true),
            (None, 1, Some(11), false, false),
        ] {
            let mut account = account();
            account.hand_out_each(10..10 + done, 3);
            let all: Vec<i64> = (10..10 + done).collect();
            account.done(account.life(), &all, Some(mark(10 + done)));
            if let Some(offset) = committed {
                account.set_committed(Committed { offset, metadata: String::new(), since, is_own: true });
            }
            let found = [false, true].map(|by_each| account.is_uncommitted(position, by_each));
            assert_eq!(found, [by_poll, by_each], "{position:?} {done} {committed:?}");
        }
    }

    #[test]
    fn what_was_handed_out_is_undone_until_it_is_done_also_if_it_came_back() {
        let mut account = account();
        let life = account.life();
        let states = |account: &Account| (account.is_outstanding(), account.has_undone());
        assert_eq!(states(&account), (false, false));
        account.hand_out();
        assert_eq!(states(&account), (true, true));
        account.cover(Some(mark(11)));
        account.hand_out_each(11..12, 3);
        assert_eq!(states(&account), (true, true));
        assert!(account.hand_back(life, 11) && !account.hand_back(life, 11) && !account.hand_back(life, 12));
        assert_eq!(states(&account), (false, true));
        account.cover(Some(mark(12)));
        assert_eq!(account.frontier(), Some(mark(11)), "a poll does not cover what came back");
        assert_eq!(account.done(life, &[11], Some(mark(12))), 0, "it is not out");
    }

    #[test]
    fn a_poll_covers_what_earlier_polls_handed_out() {
        let mut account = account();
        assert!(account.hand_out() && !account.hand_out());
        account.step_over(mark(30));
        assert_eq!(account.frontier(), Some(mark(10)), "the records before the marker are not done");
        account.cover(Some(mark(30)));
        assert_eq!(account.frontier(), Some(mark(30)));
        account.step_over(mark(31));
        assert_eq!(account.frontier(), Some(mark(31)));
    }
}
