//! What policies decide, and which are refused.

use super::*;

fn failed() -> Failure {
    Failure::Handler("out of stock".into())
}

#[test]
fn pauses_of_any_length_can_be_shortened() {
    let policy = ErrorPolicy::retry(3, Duration::MAX).jitter();
    assert_eq!(policy.pause(2, 0), Duration::MAX);
    let shortest = policy.pause(2, 100);
    assert!(shortest >= Duration::MAX / 2 && shortest < Duration::MAX / 2 + Duration::from_secs(1));
}

fn unreadable() -> Failure {
    Failure::Unreadable(Error::new(ErrorKind::Json, "not JSON"))
}

fn panicked() -> Failure {
    Failure::Panic("index out of bounds".to_owned())
}

fn late() -> Failure {
    Failure::Deadline(Duration::from_secs(1))
}

#[test]
fn every_policy_decides_by_attempt_level_and_kind_of_failure() {
    use Decision::{DeadLetter, RetryAfter, RetryTopic, Skip, Stop};
    let second = Duration::from_secs(1);
    let retry = ErrorPolicy::retry(3, second);
    let dead = retry.clone().then_dead_letter("dead");
    let long = ErrorPolicy::retry(u32::MAX, second);
    let short = long.clone().max(Duration::from_secs(3));
    let topics = dead.clone().retry_topics([second, 60 * second]);
    let corrupt = || Failure::Corrupt(Error::protocol("crc"));
    let table = [
        (&ErrorPolicy::Skip, corrupt(), 1, 0, Skip),
        (&dead, corrupt(), 1, 0, DeadLetter),
        (&ErrorPolicy::Stop, failed(), 1, 0, Stop),
        (&ErrorPolicy::Stop, unreadable(), 1, 0, Stop),
        (&ErrorPolicy::Stop, panicked(), 1, 0, Stop),
        (&ErrorPolicy::Skip, failed(), 1, 0, Skip),
        (&retry, failed(), 1, 0, RetryAfter(second)),
        (&retry, failed(), 2, 0, RetryAfter(2 * second)),
        (&retry, failed(), 3, 0, Stop),
        (&retry, unreadable(), 1, 0, Stop),
        (&retry, panicked(), 1, 0, RetryAfter(second)),
        (&retry, late(), 2, 0, RetryAfter(2 * second)),
        (&dead, failed(), 2, 0, RetryAfter(2 * second)),
        (&dead, failed(), 3, 0, DeadLetter),
        (&dead, unreadable(), 1, 0, DeadLetter),
        (&dead, late(), 3, 0, DeadLetter),
        (&topics, failed(), 2, 0, RetryAfter(2 * second)),
        (&topics, failed(), 3, 0, RetryTopic(0)),
        (&topics, failed(), 3, 1, RetryTopic(1)),
        (&topics, failed(), 3, 2, DeadLetter),
        (&topics, unreadable(), 1, 0, DeadLetter),
        (&long, failed(), 7, 0, RetryAfter(Duration::from_secs(60))),
        (&long, failed(), 4_000_000_000, 0, RetryAfter(Duration::from_secs(60))),
        (&short, failed(), 2, 0, RetryAfter(2 * second)),
        (&short, failed(), 3, 0, RetryAfter(3 * second)),
    ];
    for (policy, failure, attempt, level, expected) in table {
        let decision = policy.decide(&failure, attempt, level, 0);
        assert_eq!(decision, expected, "{policy:?} {failure:?} attempt {attempt} level {level}");
    }
}

#[test]
fn a_first_pause_longer_than_a_minute_is_kept() {
    let policy = ErrorPolicy::retry(3, Duration::from_secs(300));
    assert_eq!(policy.decide(&failed(), 1, 0, 0), Decision::RetryAfter(Duration::from_secs(300)));
}

#[test]
fn jitter_shortens_a_pause_by_half_at_most() {
    let policy = ErrorPolicy::retry(3, Duration::from_secs(10)).jitter();
    let pauses: Vec<_> = (0..1000)
        .map(|random| match policy.decide(&failed(), 1, 0, random) {
            Decision::RetryAfter(pause) => pause,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(pauses.iter().min(), Some(&Duration::from_secs(5)));
    assert_eq!(pauses.iter().max(), Some(&Duration::from_secs(10)));
}

#[derive(Debug, thiserror::Error)]
#[error("not valid")]
struct Invalid;

#[derive(Debug, thiserror::Error)]
#[error("could not store")]
struct Store(#[source] std::io::Error);

#[test]
fn some_errors_are_not_tried_again() {
    let retry = ErrorPolicy::retry(9, Duration::ZERO).then_skip();
    let never = retry.clone().never_retry::<Invalid>().never_retry::<std::io::Error>();
    let only = retry.clone().retry_if(|error| error.is::<Store>());
    let both = only.clone().never_retry::<std::io::Error>();
    let store = || Failure::Handler(Store(std::io::Error::other("disk")).into());
    let invalid = || Failure::Handler(Invalid.into());
    let again = Decision::RetryAfter(Duration::ZERO);
    for (policy, failure, expected) in [
        (&retry, invalid(), again),
        (&never, invalid(), Decision::Skip),
        (&never, store(), Decision::Skip),
        (&never, failed(), again),
        (&never, panicked(), again),
        (&only, store(), again),
        (&only, invalid(), Decision::Skip),
        (&only, late(), again),
        (&both, store(), Decision::Skip),
    ] {
        assert_eq!(policy.decide(&failure, 1, 0, 0), expected, "{policy:?} {failure:?}");
    }
}

#[test]
fn policies_that_cannot_work_are_refused() {
    let topics = Consumed::named(["orders"]).unwrap();
    let bad = [
        ErrorPolicy::retry(0, Duration::ZERO),
        ErrorPolicy::Stop.then_dead_letter(""),
        ErrorPolicy::Stop.then_dead_letter("orders dead"),
        ErrorPolicy::Stop.then_dead_letter(".."),
        ErrorPolicy::Stop.then_dead_letter("d".repeat(250)),
        ErrorPolicy::Stop.then_dead_letter("orders"),
        ErrorPolicy::Stop.deadline(Duration::ZERO),
        ErrorPolicy::Stop.retry_topics([Duration::ZERO]),
        ErrorPolicy::Stop.retry_topics([Duration::from_secs(60); 3]),
        ErrorPolicy::Stop.retry_topics([Duration::from_micros(1500)]),
    ];
    for policy in bad {
        assert_eq!(policy.check(&topics).unwrap_err().kind(), ErrorKind::Config, "{policy:?}");
    }
    for dead in ["orders-dead", "Orders_1.dead", &"d".repeat(249), "persistent://a/b/orders-dead"] {
        ErrorPolicy::retry(1, Duration::ZERO).then_dead_letter(dead).check(&topics).unwrap();
    }
}

#[test]
fn retry_topics_are_named_after_their_pause() {
    let pauses = [1, 1000, 90_000, 60_000, 7_200_000].map(Duration::from_millis);
    let policy = ErrorPolicy::Stop.retry_topics(pauses);
    let names: Vec<_> = policy.retry_topics_of("orders").map(|(name, _)| name.to_string()).collect();
    let expected = ["1ms", "1s", "90s", "1m", "2h"].map(|pause| format!("orders-retry-{pause}"));
    assert_eq!(names, expected);
}

#[test]
fn a_dead_letter_goes_where_the_policy_says() {
    let record = ConsumerRecord::new("orders", 0, 1);
    let error = Error::closed("x");
    let by = ErrorPolicy::Stop.then_dead_letter_by(|record, _| format!("{}-dead", record.topic));
    assert_eq!(by.dead_letter_topic(&record, &error).as_deref(), Some("orders-dead"));
    assert_eq!(ErrorPolicy::dead_letter("d").dead_letter_topic(&record, &error).as_deref(), Some("d"));
    assert_eq!(ErrorPolicy::Skip.dead_letter_topic(&record, &error), None);
}
