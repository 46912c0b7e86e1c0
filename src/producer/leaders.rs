//! The leaders as the sender sees them: whether one can be reached, and how many requests are out there. Pure.
//!
//! It never connects: it says when that is due, and is told what came of it.

use std::time::Duration;

use super::sender::{SenderSettings, earlier};
use crate::{
    sorted::Map,
    time::{Backoff, Instant, Rng},
};

/// Whether a request can go to a broker now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Open,
    /// It has as many requests as it may, or is being connected to, or backs off.
    Shut,
    /// To be connected to.
    Connect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    Connecting,
    BackingOff(Instant),
    Up,
    /// Its connection is to be replaced once the requests on it have landed; what was sent by another would overtake
    /// them.
    Ending,
}

#[derive(Debug)]
struct Leader {
    link: Link,
    in_flight: usize,
    backoff: Backoff,
    /// Since when it has taken nothing although there was something for it.
    stuck_since: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Leaders {
    leaders: Map<i32, Leader>,
    max_in_flight: usize,
    /// `partitioner.availability.timeout.ms`; zero: never.
    availability_timeout: Duration,
    backoff: Backoff,
}

impl Leaders {
    pub(super) fn new(settings: &SenderSettings) -> Self {
        Self {
            leaders: Map::new(),
            max_in_flight: settings.max_in_flight,
            availability_timeout: settings.availability_timeout,
            backoff: Backoff::new(settings.retry_backoff, settings.retry_backoff_max),
        }
    }

    /// Whether a request can go to this broker now. There is something for it.
    pub(super) fn access(&mut self, id: i32, now: Instant) -> Access {
        let leader = self.leaders.entry(id).or_insert_with(|| Leader {
            link: Link::Down,
            in_flight: 0,
            backoff: self.backoff.clone(),
            stuck_since: None,
        });
        if leader.link == Link::Up && leader.in_flight < self.max_in_flight {
            leader.stuck_since = None;
            return Access::Open;
        }
        leader.stuck_since.get_or_insert(now);
        let due = match leader.link {
            Link::Up | Link::Connecting | Link::Ending => false,
            Link::Down => true,
            Link::BackingOff(until) => until <= now,
        };
        if due {
            leader.link = Link::Connecting;
            return Access::Connect;
        }
        Access::Shut
    }

    /// KIP-794: a broker that takes nothing for `partitioner.availability.timeout.ms` gets no records without a key.
    pub(super) fn is_unavailable(&self, id: i32, now: Instant) -> bool {
        let limit = self.availability_timeout;
        let since = self.leaders.get(&id).and_then(|leader| leader.stuck_since);
        !limit.is_zero() && since.is_some_and(|since| since + limit <= now)
    }

    /// Requests that are out at a broker.
    pub(super) fn in_flight(&self, id: i32) -> usize {
        self.leaders.get(&id).map_or(0, |leader| leader.in_flight)
    }

    pub(super) fn handle_sent(&mut self, id: i32) {
        if let Some(leader) = self.leaders.get_mut(&id) {
            leader.in_flight += 1;
        }
    }

    /// A request has been answered, or never will be.
    pub(super) fn handle_landed(&mut self, id: i32) {
        if let Some(leader) = self.leaders.get_mut(&id) {
            leader.in_flight = leader.in_flight.saturating_sub(1);
        }
    }

    /// A broker was reached, or not.
    pub(super) fn handle_connected(&mut self, now: Instant, id: i32, reached: bool, rng: &mut Rng) {
        let Some(leader) = self.leaders.get_mut(&id) else { return };
        if reached {
            leader.link = Link::Up;
            leader.backoff.reset();
        } else {
            leader.link = Link::BackingOff(now + leader.backoff.next(rng));
        }
    }

    /// The connection to a broker takes no more requests, and those that are out on it get their answers. True once they have:
    /// then there is no connection.
    pub(super) fn handle_ending(&mut self, id: i32) -> bool {
        let Some(leader) = self.leaders.get_mut(&id) else { return true };
        if matches!(leader.link, Link::Up | Link::Ending) {
            leader.link = if leader.in_flight > 0 { Link::Ending } else { Link::Down };
        }
        leader.link != Link::Ending
    }

    pub(super) fn handle_disconnected(&mut self, id: i32) {
        if let Some(leader) = self.leaders.get_mut(&id)
            && matches!(leader.link, Link::Up | Link::Ending)
        {
            leader.link = Link::Down;
        }
    }

    /// The next end of a back-off.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let ends = self.leaders.values().filter_map(|leader| match leader.link {
            Link::BackingOff(until) => Some(until).filter(|until| *until > now),
            _ => None,
        });
        ends.fold(None, |first, end| earlier(first, Some(end)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_is_replaced_takes_nothing_and_has_no_successor_before_what_is_out_has_landed() {
        let now = crate::time::now();
        let pause = Duration::from_millis(100);
        let mut leaders = Leaders {
            leaders: Map::new(),
            max_in_flight: 5,
            availability_timeout: Duration::ZERO,
            backoff: Backoff::new(pause, pause),
        };
        assert_eq!(leaders.access(1, now), Access::Connect);
        leaders.handle_connected(now, 1, true, &mut Rng::new(1));
        for _ in 0..2 {
            assert_eq!(leaders.access(1, now), Access::Open);
            leaders.handle_sent(1);
        }
        for _ in 0..2 {
            assert!(!leaders.handle_ending(1));
            assert_eq!(leaders.access(1, now), Access::Shut);
            leaders.handle_landed(1);
        }
        assert!(leaders.handle_ending(1));
        assert_eq!(leaders.access(1, now), Access::Connect);
        // One that is lost has nobody who could be overtaken.
        leaders.handle_connected(now, 1, true, &mut Rng::new(1));
        leaders.handle_sent(1);
        assert!(!leaders.handle_ending(1));
        leaders.handle_disconnected(1);
        assert_eq!(leaders.access(1, now), Access::Connect);
    }
}
