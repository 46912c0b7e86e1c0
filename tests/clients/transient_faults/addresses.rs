//! Addresses that lead to another broker, to nobody, or into a black hole.

use super::{Storm, each, sky::Way, storm};

#[test]
fn ways_that_lead_elsewhere_or_nowhere_are_weather() {
    each(ways());
}

fn ways() -> Vec<Storm> {
    vec![
        storm("nothing"),
        storm("another broker at every dial of the bootstrap address").route(|_, id, number| match id {
            0 => Way::Broker(1 + (number % 2) as i32),
            _ => Way::There,
        }),
        storm("the address of broker 2 leads to broker 1").route(|_, id, _| match id {
            2 => Way::Broker(1),
            _ => Way::There,
        }),
        storm("both addresses lead to the other broker").route(|_, id, _| match id {
            0 => Way::There,
            id => Way::Broker(3 - id),
        }),
        storm("the address of broker 2 leads into a black hole").route(|_, id, _| match id {
            2 => Way::BlackHole,
            _ => Way::There,
        }),
        storm("the address of broker 2 opens and keeps silent").route(|_, id, _| match id {
            2 => Way::Silent,
            _ => Way::There,
        }),
        storm("the address of broker 2 is refused").route(|_, id, _| match id {
            2 => Way::Refused,
            _ => Way::There,
        }),
        storm("the bootstrap address is gone once it was used").route(|_, id, number| match id {
            0 if number > 1 => Way::Refused,
            _ => Way::There,
        }),
        storm("every second dial is refused").route(|_, _, number| match number % 2 {
            0 => Way::Refused,
            _ => Way::There,
        }),
        storm("every second dial is a black hole").route(|_, _, number| match number % 2 {
            0 => Way::BlackHole,
            _ => Way::There,
        }),
        storm("all but the bootstrap address is a black hole").route(|_, id, _| match id {
            0 => Way::There,
            _ => Way::BlackHole,
        }),
    ]
}
