//! Connections, one per broker and lane, made when first needed. Owns dialing and its back-off; knows no leaders.
//!
//! A lane keeps requests apart that would wait for each other on one connection: a long-polling fetch, or a JoinGroup
//! that the coordinator answers only when the whole group has come, must not hold back a produce request.
//! Implements KIP-144 (reconnect back-off per broker) and KIP-601 (connection set-up time-out).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    cluster::metadata::Metadata,
    config::settings::{Address, ClientSettings},
    connection::{Connection, Tls},
    error::{Error, ErrorKind, Result},
    time::{self, Backoff, Instant},
};

/// What a connection is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Lane {
    /// Metadata, produce, offsets, admin: answered at once.
    Main,
    /// Long-polling fetches.
    Fetch,
    /// The group coordinator: joins wait for other members.
    Group,
}

pub(crate) struct Brokers {
    settings: Arc<ClientSettings>,
    tls: Option<Tls>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Bootstrap addresses have the ids -1, -2, …
    addresses: BTreeMap<i32, Address>,
    slots: BTreeMap<(i32, Lane), Arc<Slot>>,
}

struct Slot {
    connection: Mutex<Option<Arc<Connection>>>,
    /// Held while dialing, so that all who wait for a broker share one attempt. An async mutex: it is meant to be held
    /// across the dial.
    dialing: tokio::sync::Mutex<Dialing>,
}

struct Dialing {
    backoff: Backoff,
    not_before: Option<Instant>,
}

impl Brokers {
    pub(crate) fn new(settings: Arc<ClientSettings>) -> Result<Self> {
        let tls = settings.tls.as_ref().map(Tls::new).transpose()?;
        let addresses = (1..).zip(&settings.bootstrap).map(|(n, address)| (-n, address.clone())).collect();
        let inner = Mutex::new(Inner { addresses, slots: BTreeMap::new() });
        Ok(Self { settings, tls, inner })
    }

    /// The ids under which the bootstrap addresses can be reached.
    pub(crate) fn bootstrap_ids(&self) -> Vec<i32> {
        lock(&self.inner).addresses.keys().copied().filter(|id| *id < 0).collect()
    }

    /// Takes over the addresses of a snapshot. A broker that moved gets new connections.
    pub(crate) fn learn(&self, metadata: &Metadata) {
        let mut inner = lock(&self.inner);
        for (id, broker) in &metadata.brokers {
            inner.set_address(*id, broker.address.clone());
        }
        inner.adopt_bootstrap_connections();
    }

    /// Takes over one address, such as the one in a FindCoordinator answer.
    pub(crate) fn learn_one(&self, id: i32, address: Address) {
        lock(&self.inner).set_address(id, address);
    }

    /// The connection to a broker: the open one, or a new one.
    ///
    /// # Errors
    /// [`ErrorKind::Connect`] from the attempt; [`ErrorKind::Timeout`] if the deadline passes first.
    ///
    /// # Cancel safety
    /// A dropped call ends its own attempt at most; the next caller dials again.
    pub(crate) async fn connection(&self, id: i32, lane: Lane, deadline: Instant) -> Result<Arc<Connection>> {
        let (slot, address) = self.slot(id, lane)?;
        if let Some(open) = slot.open(self.settings.connections_max_idle) {
            return Ok(open);
        }
        let late = || {
            Error::new(ErrorKind::Timeout, "no connection to the broker in time")
                .with_broker(id)
                .with_address(address.to_string())
        };
        let mut dialing =
            tokio::time::timeout_at(deadline, slot.dialing.lock()).await.map_err(|_elapsed| late())?;
        if let Some(open) = slot.open(self.settings.connections_max_idle) {
            return Ok(open);
        }
        if let Some(not_before) = dialing.not_before {
            if not_before > deadline {
                return Err(late());
            }
            tokio::time::sleep_until(not_before).await;
        }
        match Connection::dial(&address, &self.settings, self.tls.as_ref(), deadline).await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                dialing.backoff.reset();
                dialing.not_before = None;
                *lock(&slot.connection) = Some(Arc::clone(&connection));
                Ok(connection)
            }
            Err(error) => {
                let pause = dialing.backoff.next(&mut self.settings.environment.rng());
                dialing.not_before = Some(time::now() + pause);
                Err(if id >= 0 { error.with_broker(id) } else { error })
            }
        }
    }

    fn slot(&self, id: i32, lane: Lane) -> Result<(Arc<Slot>, Address)> {
        let mut inner = lock(&self.inner);
        let address = inner.addresses.get(&id).cloned().ok_or_else(|| {
            Error::new(ErrorKind::Disconnected, "the broker's address is not known").with_broker(id)
        })?;
        let slot = inner.slots.entry((id, lane)).or_insert_with(|| {
            let backoff = Backoff::new(self.settings.reconnect_backoff, self.settings.reconnect_backoff_max);
            let dialing = tokio::sync::Mutex::new(Dialing { backoff, not_before: None });
            Arc::new(Slot { connection: Mutex::new(None), dialing })
        });
        Ok((Arc::clone(slot), address))
    }
}

impl Slot {
    /// The open connection; one that was lost, or idle for so long that something on the way may have dropped it, is
    /// let go.
    fn open(&self, max_idle: std::time::Duration) -> Option<Arc<Connection>> {
        let mut connection = lock(&self.connection);
        let open = connection.as_ref()?;
        if open.is_closed() || (open.in_flight() == 0 && open.idle_since() + max_idle < time::now()) {
            *connection = None;
            return None;
        }
        Some(Arc::clone(open))
    }
}

impl Inner {
    fn set_address(&mut self, id: i32, address: Address) {
        if self.addresses.get(&id) != Some(&address) {
            for lane in [Lane::Main, Lane::Fetch, Lane::Group] {
                self.slots.remove(&(id, lane));
            }
            self.addresses.insert(id, address);
        }
    }

    /// The connection that asked for the first metadata goes on as the main lane of the broker behind it.
    fn adopt_bootstrap_connections(&mut self) {
        let bootstrap: Vec<i32> = self.addresses.keys().copied().filter(|id| *id < 0).collect();
        for id in bootstrap {
            let Some(slot) = self.slots.remove(&(id, Lane::Main)) else { continue };
            let Some(address) = self.addresses.get(&id) else { continue };
            let broker = self.addresses.iter().find(|(id, known)| **id >= 0 && *known == address);
            if let Some((broker, _)) = broker {
                self.slots.entry((*broker, Lane::Main)).or_insert(slot);
            }
        }
    }
}

/// A panic elsewhere does not make this data wrong: every change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
