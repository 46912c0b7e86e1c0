//! Addresses that lead to another broker, to nobody, or into a black hole.

use super::{Scenario, network::Destination, run_all, scenario};

#[test]
fn addresses_that_lead_elsewhere_or_nowhere_for_a_while_do_no_harm() {
    run_all(scenarios());
}

fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("nothing"),
        scenario("another broker at every dial of the bootstrap address").route(|_, id, number| match id {
            0 => Destination::Broker(1 + (number % 2) as i32),
            _ => Destination::Itself,
        }),
        scenario("the address of broker 2 leads to broker 1").route(|_, id, _| match id {
            2 => Destination::Broker(1),
            _ => Destination::Itself,
        }),
        scenario("both addresses lead to the other broker").route(|_, id, _| match id {
            0 => Destination::Itself,
            id => Destination::Broker(3 - id),
        }),
        scenario("the address of broker 2 leads into a black hole").route(|_, id, _| match id {
            2 => Destination::BlackHole,
            _ => Destination::Itself,
        }),
        scenario("the address of broker 2 opens and keeps silent").route(|_, id, _| match id {
            2 => Destination::Silent,
            _ => Destination::Itself,
        }),
        scenario("the address of broker 2 is refused").route(|_, id, _| match id {
            2 => Destination::Refused,
            _ => Destination::Itself,
        }),
        scenario("the bootstrap address is gone once it was used").route(|_, id, number| match id {
            0 if number > 1 => Destination::Refused,
            _ => Destination::Itself,
        }),
        scenario("every second dial is refused").route(|_, _, number| match number % 2 {
            0 => Destination::Refused,
            _ => Destination::Itself,
        }),
        scenario("every second dial is a black hole").route(|_, _, number| match number % 2 {
            0 => Destination::BlackHole,
            _ => Destination::Itself,
        }),
        scenario("all but the bootstrap address is a black hole").route(|_, id, _| match id {
            0 => Destination::Itself,
            _ => Destination::BlackHole,
        }),
    ]
}
