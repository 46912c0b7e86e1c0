use super::*;
use crate::{KafkaConfig, error::ErrorCode};

#[test]
fn a_transaction_leaves_the_body_half_of_its_time_and_the_member_time_to_poll() {
    let limit = |settings: &[(&str, u64)], interval| {
        let config = KafkaConfig::new().set_bootstrap_servers("localhost:1");
        let config = settings.iter().fold(config, |config, (name, value)| config.set(*name, *value));
        let kafka = KafkaInstance::new(config).unwrap();
        let copier = ExactlyOnce::new(&kafka, ["t"], "g").commit_interval(Duration::from_secs(interval));
        copier.worked_on_at_most().as_secs()
    };
    assert_eq!(limit(&[], 0), 5);
    assert_eq!(limit(&[("transaction.timeout.ms", 60_000)], 0), 30);
    // A member that polls after more than 300 s has lost its partitions, each time anew.
    assert_eq!(limit(&[], 90), 150);
    assert_eq!(limit(&[("transaction.timeout.ms", 900_000), ("max.poll.interval.ms", 20_000)], 0), 10);
}

#[test]
fn what_brokers_refuse_for_ever_ends_the_loop_and_what_passes_does_not() {
    let told = |code| failed(Error::from_code("Produce", code).with_requires_abort());
    let moved_on = [22, 25, 27, 82, 110, 113, 45, 47, 48, 49, 55, 59, 120, -1];
    for code in (-1..200).filter(|code| *code != 0) {
        // Of one of a newer Kafka nobody knows.
        let is_unknown = !ErrorCode(code).is_known();
        let passes = moved_on.contains(&code) || ErrorCode(code).is_retriable() || is_unknown;
        assert_eq!(matches!(told(code), Failed::Again(_)), passes, "{}", ErrorCode(code));
    }
}
