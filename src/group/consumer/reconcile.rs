//! Steps towards the assignment that the coordinator wants. Partitions that must go are released before new ones are
//! taken; those of a topic that was made again are lost, and nothing of them may be committed.

use std::sync::Arc;

use super::{Member, Names};
use crate::{flights::Token, group::Action, record::TopicPartition, sorted::Set, time::Instant, wire::Uuid};

impl Member {
    /// The names of the cluster's topics: what could not be named may be now.
    pub(crate) fn handle_names(&mut self, now: Instant, names: &Arc<Names>) {
        if !Arc::ptr_eq(names, &self.names) {
            self.names = Arc::clone(names);
            self.reconcile();
            self.hurry(now);
        }
    }

    /// The partitions of the `Revoke` have been released.
    pub(crate) fn handle_revoked(&mut self, now: Instant, token: Token) {
        let Some((_, revoked)) = self.revoking.take_if(|(waited, _)| *waited == token) else { return };
        let revoked: Set<_> = revoked.into_iter().collect();
        self.owned.retain(|key, _| !revoked.contains(key));
        self.reconcile();
        self.hurry(now);
    }

    /// One step towards the target: what is not in it goes; once that has gone, what is new comes.
    pub(super) fn reconcile(&mut self) {
        if !self.is_joined() || self.revoking.is_some() {
            return;
        }
        let unknown = self.unknown();
        let waits = self.is_unheard && !unknown.is_empty();
        if !unknown.is_empty() {
            self.actions.push_back(Action::Identify { topics: unknown });
        }
        // A topic of unknown name may be one of ours that was made again, for which the old offsets mean nothing: its
        // name is looked up before anything is committed.
        if waits && self.owned.keys().any(|key| !self.target.contains(key)) {
            return;
        }
        self.drop_gone();
        if !self.revoke_surplus() {
            self.take_new();
        }
    }

    /// Every topic of the target has a name.
    pub(crate) fn is_named(&self) -> bool {
        self.unknown().is_empty()
    }

    /// Topics of the target that have no name yet.
    pub(super) fn unknown(&self) -> Vec<Uuid> {
        let new = self.target.iter().filter(|key| !self.owned.contains_key(key));
        let mut ids: Vec<_> = new.map(|(id, _)| *id).collect();
        ids.dedup();
        ids.retain(|id| !self.names.contains_key(&id.0));
        ids
    }

    /// Drops partitions whose topic was made again, without a commit: their offsets would be taken for those of the new
    /// topic.
    pub(super) fn drop_gone(&mut self) {
        let mut surplus: Vec<_> = self
            .owned
            .iter()
            .filter(|(key, _)| !self.target.contains(key))
            .map(|((id, _), named)| (*id, named))
            .collect();
        surplus.dedup_by_key(|(id, _)| *id);
        let is_another =
            |id: Uuid, name: &str| self.names.iter().any(|(other, known)| **known == *name && *other != id.0);
        surplus.retain(|(id, named)| is_another(*id, &named.topic));
        let gone: Set<_> = surplus.into_iter().map(|(id, _)| id).collect();
        let mut partitions = Vec::new();
        self.owned.retain(|(id, _), named| {
            let stays = !gone.contains(id);
            if !stays {
                partitions.push(named.clone());
            }
            stays
        });
        if !partitions.is_empty() {
            partitions.sort();
            self.actions.push_back(Action::Lost { partitions });
        }
    }

    /// True if something has to go first.
    pub(super) fn revoke_surplus(&mut self) -> bool {
        let surplus = self.owned.iter().filter(|(key, _)| !self.target.contains(key));
        let (keys, mut partitions): (Vec<_>, Vec<_>) =
            surplus.map(|(key, named)| (*key, named.clone())).unzip();
        if keys.is_empty() {
            return false;
        }
        partitions.sort();
        let token = self.tokens.next();
        self.revoking = Some((token, keys));
        self.actions.push_back(Action::Revoke { token, partitions, since: self.target_since });
        true
    }

    pub(super) fn take_new(&mut self) {
        let (mut added, mut new) = (Vec::new(), Vec::new());
        for key @ (id, partition) in &self.target {
            if let (false, Some(topic)) = (self.owned.contains_key(key), self.names.get(&id.0)) {
                let named = TopicPartition { topic: Arc::clone(topic), partition: *partition };
                added.push(named.clone());
                new.push((*key, named));
            }
        }
        self.owned.extend(new);
        if !added.is_empty() {
            added.sort();
            self.actions.push_back(Action::Assign { added });
        }
    }
}
