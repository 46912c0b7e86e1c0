//! Peers that do not keep to the protocol, and what of it is worth a line in the log.
//!
//! Such a connection ends, and the next one may end in the same way at once. So a client says it once for each address,
//! and again after a while, with the number of those that were not told meanwhile. It never looks at what was sent.

use std::{
    mem::{Discriminant, discriminant},
    sync::Arc,
    time::Duration,
};

use super::notices::Fault;
use crate::{
    config::settings::Address,
    mutex::Mutex,
    sorted::Map,
    time::{self, Instant},
};

/// How long a fault at an address is only counted after it was told.
const TOLD_FOR: Duration = Duration::from_secs(300);
/// A cluster may name any number of addresses.
const MOST_ADDRESSES: usize = 1000;

/// The faults that a client has met, by address.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults(Arc<Mutex<Map<Address, Told>>>);

#[derive(Debug)]
struct Told {
    what: Discriminant<Fault>,
    at: Instant,
    /// How many were not told since.
    more: u64,
}

impl Faults {
    /// For the connections to one address.
    pub(super) fn at(&self, address: &Address) -> FaultLog {
        FaultLog { all: self.clone(), address: address.clone() }
    }

    /// How many were not told, if this one is to be.
    fn handle_fault(&self, now: Instant, address: &Address, fault: Fault) -> Option<u64> {
        let (mut all, what) = (self.0.lock(), discriminant(&fault));
        let mut more = 0;
        if let Some(told) = all.get_mut(address) {
            if told.what == what && now.saturating_duration_since(told.at) < TOLD_FOR {
                told.more += 1;
                return None;
            }
            more = told.more;
        } else if all.len() >= MOST_ADDRESSES {
            all.clear();
        }
        all.insert(address.clone(), Told { what, at: now, more: 0 });
        Some(more)
    }
}

/// Where a connection to one address tells of its fault.
#[derive(Debug)]
pub(crate) struct FaultLog {
    all: Faults,
    address: Address,
}

impl FaultLog {
    /// Logged, because there may be no caller waiting that could get the error.
    pub(super) fn tell(&self, fault: Fault) {
        if let Some(more) = self.all.handle_fault(time::now(), &self.address, fault) {
            tracing::warn!(
                address = %self.address,
                ?fault,
                more,
                "a broker does not keep to the protocol: its connection is closed; for a while more of the kind are counted, not logged"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_once_for_each_address_and_again_after_a_while_with_the_number_of_those_between() {
        let (faults, start) = (Faults::default(), time::now());
        let at = |port| Address { host: "h".to_owned(), port };
        let told = |seconds, port, fault| {
            faults.handle_fault(start + Duration::from_secs(seconds), &at(port), fault)
        };
        assert_eq!(told(0, 1, Fault::Unasked(7)), Some(0));
        assert_eq!(told(1, 1, Fault::Unasked(8)), None);
        assert_eq!(told(299, 1, Fault::Unasked(9)), None);
        assert_eq!(told(299, 2, Fault::Unasked(7)), Some(0), "another address");
        assert_eq!(told(300, 1, Fault::Unasked(7)), Some(2));
        assert_eq!(told(301, 1, Fault::Unasked(7)), None);
        assert_eq!(told(302, 1, Fault::Length(-1)), Some(1), "another kind");
        for port in 3..5000 {
            assert_eq!(told(303, port, Fault::Http), Some(0));
        }
        assert!(faults.0.lock().len() <= MOST_ADDRESSES);
    }
}
