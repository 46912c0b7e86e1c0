//! Which partitions the user has paused. Pure. The engine follows, and only the engine resumes, since it knows all the
//! reasons not to.
//!
//! A pause belongs to the life that it was made in, so that late news of the end of an earlier life does not undo it.

use std::collections::BTreeSet;

use crate::{consumer::acknowledge::Life, record::TopicPartition, sorted::Map};

#[derive(Default)]
pub(super) struct Pauses {
    noted: Map<TopicPartition, Life>,
    /// Not paused any more: the client may still have them paused.
    freed: BTreeSet<TopicPartition>,
    /// Something has changed since it was followed.
    is_news: bool,
}

/// What the engine is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PauseChanges {
    pub(super) paused: BTreeSet<TopicPartition>,
    /// To be resumed, unless something else holds them.
    pub(super) freed: BTreeSet<TopicPartition>,
}

impl Pauses {
    pub(super) fn pause(&mut self, partitions: Map<TopicPartition, Life>) {
        self.freed.retain(|partition| !partitions.contains_key(partition));
        self.noted.extend(partitions);
        self.is_news = true;
    }

    pub(super) fn resume(&mut self, partitions: impl IntoIterator<Item = TopicPartition>) {
        for partition in partitions {
            self.noted.remove(&partition);
            self.freed.insert(partition);
        }
        self.is_news = true;
    }

    /// The client has them paused. What was resumed between the note and that has to be resumed after it.
    pub(super) fn handle_paused(&mut self, partitions: impl IntoIterator<Item = TopicPartition>) {
        for partition in partitions {
            if !self.noted.contains_key(&partition) {
                self.resume([partition]);
            }
        }
    }

    /// This life of a partition, and those before it, are over.
    pub(super) fn handle_gone(&mut self, partition: &TopicPartition, life: Life) {
        if self.noted.get(partition).is_some_and(|noted| *noted <= life) {
            self.resume([partition.clone()]);
        }
    }

    /// By name, sorted.
    pub(super) fn paused(&self) -> impl Iterator<Item = &TopicPartition> {
        self.noted.keys()
    }

    /// What has changed since the last call.
    pub(super) fn follow(&mut self) -> Option<PauseChanges> {
        std::mem::take(&mut self.is_news).then(|| PauseChanges {
            paused: self.paused().cloned().collect(),
            freed: std::mem::take(&mut self.freed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition() -> TopicPartition {
        TopicPartition::new("orders", 3)
    }

    fn paused_in(life: u64) -> Pauses {
        let mut pauses = Pauses::default();
        pauses.pause([(partition(), Life::numbered(life))].into());
        pauses
    }

    #[test]
    fn the_end_of_an_earlier_life_undoes_no_pause_and_that_of_its_own_does() {
        let mut pauses = paused_in(2);
        assert_eq!(pauses.follow().unwrap().paused, [partition()].into());
        pauses.handle_gone(&partition(), Life::numbered(1));
        assert_eq!(pauses.follow(), None, "it is heard of late");
        pauses.handle_gone(&partition(), Life::numbered(4));
        let gone = pauses.follow().unwrap();
        assert_eq!((gone.paused.len(), gone.freed), (0, [partition()].into()));
        assert_eq!(pauses.follow(), None);
    }

    #[test]
    fn what_was_resumed_before_the_client_had_it_paused_is_resumed_again() {
        let mut pauses = paused_in(1);
        pauses.handle_paused([partition()]);
        assert_eq!(pauses.follow().unwrap().paused, [partition()].into(), "the note stands");
        pauses.resume([partition()]);
        assert_eq!(pauses.follow().unwrap().freed, [partition()].into(), "the engine resumes it at once");
        pauses.handle_paused([partition()]);
        assert_eq!(pauses.follow().unwrap().freed, [partition()].into());
    }

    #[test]
    fn what_is_paused_and_resumed_between_two_looks_is_resumed() {
        let mut pauses = paused_in(1);
        pauses.resume([partition()]);
        assert_eq!(pauses.follow().unwrap().freed, [partition()].into());
        let mut pauses = paused_in(1);
        pauses.resume([partition()]);
        pauses.pause([(partition(), Life::numbered(1))].into());
        let wanted = pauses.follow().unwrap();
        assert_eq!((wanted.paused, wanted.freed.len()), ([partition()].into(), 0));
    }
}
