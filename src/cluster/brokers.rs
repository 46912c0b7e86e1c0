//! Connections, one per broker and lane, made when first needed. Owns dialing and its back-off; knows no leaders.
//!
//! A lane keeps requests apart that would wait for each other on one connection: a long-polling fetch, or a JoinGroup
//! that the coordinator answers only when the whole group has come, must not hold back a produce request.
//! Implements KIP-144 (reconnect back-off per broker) and KIP-601 (set-up time-outs that grow with each failure). Why a
//! broker cannot be reached is kept, and logged once per change of state.

mod slot;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::runtime::Handle;

use self::slot::Slot;
use super::{candidates::Candidate, causes::Causes};
use crate::{
    cluster::metadata::Metadata,
    config::settings::{Address, ClientSettings},
    connection::{Connection, ThrottleTotals, Tls, is_said_for_all},
    driver::Within,
    error::{Error, ErrorKind, Result},
    mutex::Mutex,
    sorted::{Map, Set},
    time::{self, Instant},
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

impl Lane {
    const ALL: [Self; 3] = [Self::Main, Self::Fetch, Self::Group];
}

/// How long a broker that has refused is taken to refuse still. Within this time rounds of two brokers reach each of hundreds.
const REFUSED_LATELY: Duration = Duration::from_secs(300);

/// How long a broker that was silent in one lane comes after the others. After that it may answer again.
const SILENT_FOR: Duration = Duration::from_secs(60);

pub(crate) struct Brokers {
    settings: Arc<ClientSettings>,
    /// The runtime in which connections live, if it is not the caller's.
    home: Option<Handle>,
    tls: Option<Tls>,
    inner: Mutex<Inner>,
    causes: Mutex<Causes<i32>>,
    pauses: Arc<ThrottleTotals>,
    /// A connection was made that the idle timer does not know of.
    is_new: AtomicBool,
}

#[derive(Default)]
struct Inner {
    /// Bootstrap addresses have the ids -1, -2, …
    addresses: Map<i32, Address>,
    /// Brokers that other answers have named since the last metadata answer.
    told_apart: Set<i32>,
    slots: Map<(i32, Lane), Arc<Slot>>,
}

impl Brokers {
    pub(crate) fn new(settings: Arc<ClientSettings>, home: Option<Handle>) -> Result<Self> {
        let tls = settings.tls.as_ref().map(Tls::new).transpose()?;
        let addresses = (1..).zip(&settings.bootstrap).map(|(n, address)| (-n, address.clone())).collect();
        let inner = Mutex::new(Inner { addresses, ..Inner::default() });
        Ok(Self {
            settings,
            home,
            tls,
            inner,
            causes: Mutex::default(),
            pauses: Arc::default(),
            is_new: AtomicBool::new(false),
        })
    }

    /// Who can be asked what any broker can answer: those of the snapshot and the bootstrap addresses.
    pub(crate) fn candidates(&self, snapshot: &Metadata, rebootstrap: bool) -> Vec<Candidate> {
        let with_bootstrap = self.settings.rebootstrap || snapshot.brokers.is_empty();
        let slots: Vec<(i32, Option<Arc<Slot>>)> = {
            let inner = self.inner.lock();
            let known = snapshot.brokers.keys().copied().filter(|_| !rebootstrap);
            let bootstrap = inner.addresses.keys().copied().filter(|id| *id < 0 && with_bootstrap);
            let ids = known.chain(bootstrap).filter(|id| inner.addresses.contains_key(id));
            ids.map(|id| (id, inner.slots.get(&(id, Lane::Main)).cloned())).collect()
        };
        let max_idle = self.settings.connections_max_idle;
        slots.into_iter().map(|(id, slot)| candidate(id, slot.as_deref(), max_idle)).collect()
    }

    /// Another broker answered before this one did, or this one was connected to and had no answer: others come first, until it
    /// has one.
    pub(crate) fn handle_unanswered(&self, id: i32) {
        if let Some(slot) = self.inner.lock().slots.get(&(id, Lane::Main)) {
            slot.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A broker was silent in some lane. It may be paused or cut off, which its other connections have not noticed yet.
    pub(crate) fn handle_silent(&self, id: i32) {
        if let Some(slot) = self.inner.lock().slots.get(&(id, Lane::Main)) {
            *slot.silent_at.lock() = Some(time::now());
        }
    }

    /// A broker has answered.
    pub(crate) fn handle_answered(&self, id: i32) {
        if let Some(slot) = self.inner.lock().slots.get(&(id, Lane::Main)) {
            slot.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Takes over the addresses of a snapshot. A broker that moved gets new connections, one that is gone is forgotten.
    pub(crate) fn learn(&self, metadata: &Metadata) {
        let (left, known): (Vec<_>, Set<i32>) = {
            let mut inner = self.inner.lock();
            let mut left = Vec::new();
            for (id, broker) in &metadata.brokers {
                left.append(&mut inner.set_address(*id, broker.address.clone()));
            }
            let told_apart = std::mem::take(&mut inner.told_apart);
            let gone = |id: i32| id >= 0 && !metadata.brokers.contains_key(&id) && !told_apart.contains(&id);
            let ids: Vec<i32> = inner.addresses.keys().copied().filter(|id| gone(*id)).collect();
            for id in ids {
                left.append(&mut inner.forget(id));
            }
            inner.adopt_bootstrap_connections();
            (left, inner.addresses.keys().copied().collect())
        };
        left.iter().for_each(|slot| slot.leave());
        self.causes.lock().retain(|id| known.contains(&id));
    }

    /// Takes over one address, such as the one in a FindCoordinator answer.
    pub(crate) fn learn_one(&self, id: i32, address: Address) {
        let left = {
            let mut inner = self.inner.lock();
            inner.told_apart.insert(id);
            inner.set_address(id, address)
        };
        left.iter().for_each(|slot| slot.leave());
    }

    /// The ids under which a broker is known: a bootstrap address may be that of a known broker.
    pub(crate) fn names_of(&self, id: i32) -> Vec<i32> {
        let inner = self.inner.lock();
        let others = inner.addresses.get(&id).into_iter().flat_map(|address| inner.ids_at(address));
        others.chain([id]).collect()
    }

    /// Why a broker cannot be reached, if the last attempt failed.
    pub(crate) fn why(&self, id: i32) -> Option<Error> {
        self.causes.lock().why(id).cloned()
    }

    /// Whether the last attempt to connect to a broker failed, not long ago, for a reason that holds for all of them.
    pub(crate) fn refuses(&self, id: i32) -> bool {
        let id = self.told_as(id);
        self.causes.lock().why_lately(time::now(), REFUSED_LATELY, id).is_some_and(is_said_for_all)
    }

    pub(crate) fn has_address(&self, id: i32) -> bool {
        self.inner.lock().addresses.contains_key(&id)
    }

    /// How often and for how long brokers have held this client back.
    pub(crate) fn pauses(&self) -> &ThrottleTotals {
        &self.pauses
    }

    /// Why a broker that can be reached is sent nothing at the moment: it holds this client back (KIP-219).
    pub(crate) fn why_held(&self, id: i32) -> Option<Error> {
        let slot = self.inner.lock().slots.get(&(id, Lane::Main)).cloned()?;
        slot.open(time::now(), self.settings.connections_max_idle)?.held_until()?;
        let error =
            Error::new(ErrorKind::Timeout, "the broker holds this client back, because it is over a quota");
        Some(error.with_broker(id).with_hint("see to the quotas of its user and client.id"))
    }

    /// The connection to a broker: the open one, or a new one.
    ///
    /// # Errors
    /// [`ErrorKind::Connect`] from the attempt; [`ErrorKind::Timeout`] if the deadline passes first.
    ///
    /// # Cancel safety
    /// A dropped call ends its own attempt at most; the next caller dials again.
    pub(crate) async fn connection(&self, id: i32, lane: Lane, deadline: Instant) -> Result<Arc<Connection>> {
        loop {
            let (slot, address) = self.slot(id, lane)?;
            if let Some(open) = slot.open(time::now(), self.settings.connections_max_idle) {
                return Ok(open);
            }
            tokio::select! {
                biased;
                connected = self.dial(id, lane, &slot, &address, deadline) => match connected {
                    Ok(connection) if !connection.is_closed() => return Ok(connection),
                    Ok(_) if slot.is_left.load(Ordering::Acquire) => {}
                    done => return done,
                },
                // The broker has moved, and may answer at once at its new address.
                () = slot.left() => {}
            }
        }
    }

    /// Waits for the turn to dial, and dials.
    async fn dial(
        &self,
        id: i32,
        lane: Lane,
        slot: &Arc<Slot>,
        address: &Address,
        deadline: Instant,
    ) -> Result<Arc<Connection>> {
        let late = || {
            let error = Error::new(ErrorKind::Timeout, "no connection to the broker in time")
                .with_broker(id)
                .with_address(address.to_string());
            match self.why(id) {
                Some(cause) => error.with_source(cause),
                None => error,
            }
        };
        let mut dialing =
            tokio::time::timeout_at(deadline, slot.dialing.lock()).await.map_err(|_elapsed| late())?;
        if let Some(open) = slot.open(time::now(), self.settings.connections_max_idle) {
            return Ok(open);
        }
        if let Some(not_before) = dialing.not_before {
            if not_before > deadline {
                return Err(late());
            }
            tokio::time::sleep_until(not_before).await;
        }
        let setup = match slot.failures.load(Ordering::Relaxed) {
            0 => self.settings.connection_setup_timeout,
            _ => dialing.setup.clone().next(&mut self.settings.environment.rng()),
        };
        let until = deadline.min(time::now() + setup);
        let dial = Connection::dial(address, &self.settings, self.tls.as_ref(), until);
        let dialed = match &self.home {
            Some(home) => Within::new(home, dial).await,
            None => dial.await,
        };
        match dialed {
            Ok(connection) => {
                let connection = Arc::new(connection.with_pauses(Arc::clone(&self.pauses)));
                dialing.backoff.reset();
                dialing.setup.reset();
                dialing.not_before = None;
                slot.failures.store(0, Ordering::Relaxed);
                self.handle_reached(id, address);
                self.keep(id, lane, slot, address, &connection);
                Ok(connection)
            }
            Err(error) => {
                let mut rng = self.settings.environment.rng();
                dialing.not_before = Some(time::now() + dialing.backoff.next(&mut rng));
                // The time-out of the next attempt is longer.
                let _ = dialing.setup.next(&mut rng);
                slot.failures.fetch_add(1, Ordering::Relaxed);
                if lane != Lane::Main {
                    self.handle_silent(id);
                }
                let error = if id >= 0 { error.with_broker(id) } else { error };
                self.handle_unreachable(id, &error);
                Err(error)
            }
        }
    }

    /// Keeps a connection for the next, unless the broker moved while it was made.
    fn keep(&self, id: i32, lane: Lane, slot: &Arc<Slot>, address: &Address, connection: &Arc<Connection>) {
        *slot.connection.lock() = Some(Arc::clone(connection));
        self.is_new.store(true, Ordering::Release);
        let is_current = {
            let inner = self.inner.lock();
            let current = inner.slots.get(&(id, lane)).is_some_and(|current| Arc::ptr_eq(current, slot));
            // The slot of a bootstrap address may have become that of the broker behind it.
            let adopted = id < 0 && inner.slots.values().any(|other| Arc::ptr_eq(other, slot));
            adopted || (current && inner.addresses.get(&id) == Some(address))
        };
        if !is_current {
            slot.retire();
        }
    }

    /// The id under which the outage of an address is logged: for a bootstrap address the broker behind it, if that is
    /// known and no connection to it is alive. So one outage is logged once.
    fn told_as(&self, id: i32) -> i32 {
        let (broker, slots) = {
            let inner = self.inner.lock();
            let Some(address) = inner.addresses.get(&id).filter(|_| id < 0) else { return id };
            let Some(broker) = inner.broker_at(address) else { return id };
            (broker, Lane::ALL.map(|lane| inner.slots.get(&(broker, lane)).cloned()))
        };
        let lives = slots.iter().flatten().any(|slot| slot.is_alive());
        if lives { id } else { broker }
    }

    fn handle_reached(&self, id: i32, address: &Address) {
        // The outage is over under every id that it may have been logged by.
        let names: Vec<i32> = self.inner.lock().ids_at(address).chain([id]).collect();
        let over = {
            let mut causes = self.causes.lock();
            let ended = names.iter().filter_map(|name| causes.handle_success(time::now(), *name));
            ended.max_by_key(|over| over.failures)
        };
        if let Some(over) = over {
            tracing::info!(
                broker = names.into_iter().max(),
                %address,
                failures = over.failures,
                lasted_ms = over.lasted.as_millis() as u64,
                "a broker can be reached again"
            );
        }
    }

    fn handle_unreachable(&self, id: i32, error: &Error) {
        let id = self.told_as(id);
        if self.causes.lock().handle_failure(time::now(), id, error) {
            tracing::warn!(broker = id, %error, "a broker cannot be reached; further failures are counted, not logged");
        } else {
            tracing::debug!(broker = id, %error, "a broker can still not be reached");
        }
    }

    /// Whether a connection was made since the last time this was asked. The idle timer must be told of those alone: it is
    /// too early for all others, and then looks again. Telling it of every call costs a turn of another task, and on a runtime
    /// of several threads wakes another thread, for each request.
    pub(crate) fn take_new(&self) -> bool {
        self.is_new.load(Ordering::Relaxed) && self.is_new.swap(false, Ordering::AcqRel)
    }

    /// Closes connections that were lost, or idle for too long. Returns when the next one will be.
    pub(crate) fn close_idle(&self, now: Instant) -> Option<Instant> {
        let slots: Vec<Arc<Slot>> = self.inner.lock().slots.values().cloned().collect();
        slots.iter().filter_map(|slot| slot.close_idle(now, self.settings.connections_max_idle)).min()
    }

    /// Closes every connection with its last answer.
    pub(crate) fn retire_all(&self) {
        let slots: Vec<Arc<Slot>> = self.inner.lock().slots.values().cloned().collect();
        slots.iter().for_each(|slot| slot.retire());
    }

    /// From now on these brokers are dialled anew. What is out on their connections has its answers; who waits for one, or is
    /// about to have it, is given a new one.
    pub(crate) fn replace(&self, which: impl Fn(i32) -> bool) {
        let left: Vec<Arc<Slot>> = {
            let mut inner = self.inner.lock();
            let chosen: Vec<_> = inner.slots.keys().copied().filter(|(id, _)| which(*id)).collect();
            chosen.iter().filter_map(|key| inner.slots.remove(key)).collect()
        };
        left.iter().for_each(|slot| slot.leave());
    }

    fn slot(&self, id: i32, lane: Lane) -> Result<(Arc<Slot>, Address)> {
        let mut inner = self.inner.lock();
        let address = inner.addresses.get(&id).cloned().ok_or_else(|| {
            Error::new(ErrorKind::Disconnected, "the broker's address is not known").with_broker(id)
        })?;
        let slot = inner.slots.entry((id, lane)).or_insert_with(|| Arc::new(Slot::new(&self.settings)));
        Ok((Arc::clone(slot), address))
    }
}

impl Inner {
    /// Returns the slots of the broker's old address, to be retired.
    fn set_address(&mut self, id: i32, address: Address) -> Vec<Arc<Slot>> {
        if self.addresses.get(&id) == Some(&address) {
            return Vec::new();
        }
        let left = self.forget(id);
        self.addresses.insert(id, address);
        left
    }

    fn forget(&mut self, id: i32) -> Vec<Arc<Slot>> {
        self.addresses.remove(&id);
        Lane::ALL.into_iter().filter_map(|lane| self.slots.remove(&(id, lane))).collect()
    }

    fn ids_at(&self, address: &Address) -> impl Iterator<Item = i32> {
        self.addresses.iter().filter(move |(_, known)| *known == address).map(|(id, _)| *id)
    }

    fn broker_at(&self, address: &Address) -> Option<i32> {
        self.ids_at(address).find(|id| *id >= 0)
    }

    /// The connection that asked for the first metadata goes on as the main lane of the broker behind it.
    fn adopt_bootstrap_connections(&mut self) {
        let bootstrap: Vec<i32> = self.addresses.keys().copied().filter(|id| *id < 0).collect();
        for id in bootstrap {
            let Some(address) = self.addresses.get(&id) else { continue };
            let Some(broker) = self.broker_at(address) else { continue };
            if let Some(slot) = self.slots.remove(&(id, Lane::Main)) {
                self.slots.entry((broker, Lane::Main)).or_insert(slot);
            }
        }
    }
}

fn candidate(id: i32, slot: Option<&Slot>, max_idle: Duration) -> Candidate {
    let open = slot.and_then(|slot| slot.open(time::now(), max_idle));
    let failures = slot.map_or(0, |slot| slot.failures.load(Ordering::Relaxed));
    let silent_at = slot.and_then(|slot| *slot.silent_at.lock());
    let is_silent = silent_at.is_some_and(|at| time::now() < at + SILENT_FOR);
    // A broker that throttles us, or that did not answer the last time, comes after the others.
    let open = open.filter(|open| failures == 0 && !is_silent && open.held_until().is_none());
    Candidate { id, load: open.map(|open| open.in_flight()), failures }
}

#[cfg(test)]
mod tests;
