//! The form of records that leave their partition, as dead letters or to wait in a retry topic, and how one that has
//! waited is read again. Pure.

use std::{sync::Arc, time::Duration};

use super::policy::causes;
use crate::{
    error::Error,
    record::{ConsumerRecord, Header, ProducerRecord},
};

/// The prefix of the headers of dead letters.
pub(super) const DEAD: &str = "dtkafka-dead-letter-";
/// The prefix of the headers of records that wait in a retry topic.
const RETRY: &str = "dtkafka-retry-";

/// The headers that say where a record came from, what was tried, and why it failed.
fn origin(prefix: &str, record: &ConsumerRecord, attempts: u32, error: &Error) -> Vec<Header> {
    let headers = [
        ("topic", record.topic.to_string()),
        ("partition", record.partition.to_string()),
        ("offset", record.offset.to_string()),
        ("timestamp", record.timestamp.to_string()),
        ("attempts", attempts.to_string()),
        ("error", chain(error)),
    ];
    headers.into_iter().map(|(name, text)| Header::new(format!("{prefix}{name}"), text)).collect()
}

/// The longest text of an error in a letter, in bytes, so that it does not make the record too large for its topic.
const LONGEST_TEXT: usize = 2048;

/// No more of a text than a letter can hold.
pub(super) fn bounded(mut text: String) -> String {
    if text.len() > LONGEST_TEXT {
        let end = (0..=LONGEST_TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The error's text and that of every cause that it does not name itself, up to a bound. Hints are left out: they are for
/// whoever runs the program, and not for readers of the letter.
pub(super) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    if let Some(hint) = error.hint()
        && let Some(said) = text.strip_suffix(hint).and_then(|text| text.strip_suffix("; "))
    {
        text.truncate(said.len());
    }
    for cause in causes(error).skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    bounded(text)
}

/// The headers of a dead letter: the record's own, then what happened to it.
pub(super) fn dead_letter_headers(record: &ConsumerRecord, attempts: u32, error: &Error) -> Vec<Header> {
    let own = record.headers.iter().filter(|header| !header.key.starts_with(RETRY));
    own.cloned().chain(origin(DEAD, record, attempts, error)).collect()
}

/// Whether a record became a dead letter in this topic before, according to its headers.
pub(super) fn was_in(record: &ConsumerRecord, topic: &str) -> bool {
    let name = format!("{DEAD}topic");
    record
        .headers
        .iter()
        .any(|header| header.key == name && header.value.as_deref() == Some(topic.as_bytes()))
}

/// The headers of a letter that holds a whole batch, which cannot be read: `record` is its first offset and its bytes.
pub(super) fn batch_headers(record: &ConsumerRecord, last_offset: i64, error: &Error) -> Vec<Header> {
    let last = Header::new(format!("{DEAD}{LAST_OFFSET}"), last_offset.to_string());
    origin(DEAD, record, 1, error).into_iter().chain([last]).collect()
}

/// Whether a letter holds a whole batch. The headers that were added last decide, which begin with the topic.
pub(super) fn is_of_batch(letter: &ConsumerRecord) -> bool {
    let last = |name: &str| {
        letter.headers.iter().rposition(|header| header.key.strip_prefix(DEAD).is_some_and(|key| key == name))
    };
    last(LAST_OFFSET) > last("topic")
}

const LAST_OFFSET: &str = "last-offset";

/// The headers of a record that waits in a retry topic until `due` (milliseconds since the Unix epoch), as the work of
/// this group.
pub(super) fn retry_headers(
    record: &ConsumerRecord,
    attempts: u32,
    error: &Error,
    due: i64,
    group: &str,
) -> Vec<Header> {
    let own = record.headers.iter().filter(|header| !header.key.starts_with(RETRY));
    let due = Header::new(format!("{RETRY}due"), due.to_string());
    let group = Header::new(format!("{RETRY}{GROUP}"), group.to_owned());
    own.cloned().chain(origin(RETRY, record, attempts, error)).chain([due, group]).collect()
}

/// The group that a record with these headers waits for, if that is not this one.
pub(super) fn other_group<'a, K: AsRef<str>>(
    headers: impl Iterator<Item = (K, Option<&'a [u8]>)>,
    group: &str,
) -> Option<String> {
    let is_name = |key: &str| key.strip_prefix(RETRY) == Some(GROUP);
    let named = headers.filter(|(key, _)| is_name(key.as_ref())).last()?.1?;
    (named != group.as_bytes()).then(|| String::from_utf8_lossy(named).into_owned())
}

const GROUP: &str = "group";

/// The record with these headers, on its way to another topic, where it gets a new timestamp: with the old one the broker
/// could delete it as expired before it is read.
pub(super) fn forwarded<'a>(
    topic: &'a str,
    record: &'a ConsumerRecord,
    headers: &'a [Header],
) -> ProducerRecord<'a> {
    let mut letter = ProducerRecord::new(topic).headers(headers);
    if let Some(key) = &record.key {
        letter = letter.key(key);
    }
    if let Some(value) = &record.value {
        letter = letter.value(value);
    }
    letter
}

/// What was tried with a record of a retry topic before, and when its pause is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waited {
    pub(super) attempts: u32,
    /// Milliseconds since the Unix epoch.
    pub(super) due: i64,
}

/// The most attempts that a header is believed, since anyone can write headers.
const MOST_ATTEMPTS: u32 = 1_000_000;

/// Gives a record of a retry topic back its original topic, partition, offset, timestamp and headers. One that was not
/// written by this crate is due at once.
pub(super) fn restore(record: &mut ConsumerRecord) -> Waited {
    let number = |name: &str| number(&record.headers, name);
    let waited = Waited {
        attempts: number("attempts")
            .and_then(|attempts| u32::try_from(attempts.min(MOST_ATTEMPTS.into())).ok())
            .unwrap_or(0),
        due: waits_until(record),
    };
    let (partition, offset, timestamp) = (number("partition"), number("offset"), number("timestamp"));
    let topic = record.header_str(&format!("{RETRY}topic")).map(Arc::from);
    record.topic = topic.unwrap_or_else(|| Arc::clone(&record.topic));
    record.partition = partition.and_then(|number| i32::try_from(number).ok()).unwrap_or(record.partition);
    record.offset = offset.unwrap_or(record.offset);
    record.timestamp = timestamp.unwrap_or(record.timestamp);
    record.headers.retain(|header| !header.key.starts_with(RETRY));
    waited
}

/// When the pause of a record of a retry topic is over (milliseconds since the Unix epoch).
pub(super) fn waits_until(record: &ConsumerRecord) -> i64 {
    number(&record.headers, "due").unwrap_or(0)
}

/// A number in the headers of a record of a retry topic.
fn number(headers: &[Header], name: &str) -> Option<i64> {
    let value = crate::record::last_header(headers, &format!("{RETRY}{name}"))?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// When a pause that begins now is over.
pub(super) fn due(now_ms: i64, pause: Duration) -> i64 {
    now_ms.saturating_add(i64::try_from(pause.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn other(record: &ConsumerRecord, group: &str) -> Option<String> {
        other_group(record.headers.iter().map(|header| (&header.key, header.value.as_deref())), group)
    }

    fn record() -> ConsumerRecord {
        ConsumerRecord::new("orders", 3, 42)
            .with_key("k")
            .with_value("{}")
            .with_header("trace", "t1")
            .with_timestamp(1_700_000_000_000)
    }

    #[derive(Debug, thiserror::Error)]
    #[error("could not store")]
    struct Store(#[source] std::io::Error);

    fn failed() -> Error {
        let cause = Store(std::io::Error::other("disk full"));
        Error::new(ErrorKind::Handler, "the handler failed").with_boxed_source(cause.into())
    }

    fn text<'a>(headers: &'a [Header], name: &str) -> &'a str {
        std::str::from_utf8(crate::record::last_header(headers, name).unwrap()).unwrap()
    }

    #[test]
    fn a_dead_letter_says_where_it_came_from_and_keeps_its_headers() {
        let headers = dead_letter_headers(&record(), 5, &failed());
        assert_eq!(headers[0], Header::new("trace", "t1"));
        for (name, value) in [
            ("topic", "orders"),
            ("partition", "3"),
            ("offset", "42"),
            ("timestamp", "1700000000000"),
            ("attempts", "5"),
            ("error", "the handler failed: could not store: disk full"),
        ] {
            assert_eq!(text(&headers, &format!("{DEAD}{name}")), value, "{name}");
        }
    }

    #[test]
    fn a_letter_says_what_failed_and_not_which_setting_to_change() {
        let headers = dead_letter_headers(&record(), 1, &failed().with_hint("choose another policy"));
        assert_eq!(text(&headers, &format!("{DEAD}error")), "the handler failed: could not store: disk full");
    }

    #[test]
    fn a_letter_of_a_letter_says_all_the_topics_it_came_from() {
        let mut record = record();
        for topic in ["a", "b", "c"] {
            record.topic = topic.into();
            assert!(!was_in(&record, topic), "{topic}");
            record.headers = dead_letter_headers(&record, 1, &failed());
            assert!(was_in(&record, topic) && was_in(&record, "a"), "{topic}");
        }
        assert!(!was_in(&record, "d"));
    }

    #[test]
    fn an_error_of_any_length_is_bounded_in_a_letter() {
        let cause = std::io::Error::other("ä".repeat(100_000));
        let error = Error::new(ErrorKind::Handler, "the handler failed").with_boxed_source(cause.into());
        let headers = dead_letter_headers(&record(), 1, &error);
        let told = text(&headers, &format!("{DEAD}error"));
        assert!(told.starts_with("the handler failed") && told.ends_with('…'), "{told}");
        assert!(told.len() <= LONGEST_TEXT + '…'.len_utf8(), "{}", told.len());
    }

    #[test]
    fn a_letter_keeps_key_and_value_is_stamped_anew_and_a_tombstone_stays_one() {
        let record = record();
        let letter = forwarded("dead", &record, &[]);
        assert_eq!((letter.key, letter.value), (Some(&b"k"[..]), Some(&b"{}"[..])));
        assert_eq!((letter.topic, letter.timestamp), ("dead", None), "or retention may delete it at once");
        let tombstone = ConsumerRecord::new("orders", 0, 0);
        let letter = forwarded("dead", &tombstone, &[]);
        assert_eq!((letter.key, letter.value, letter.timestamp), (None, None, None));
    }

    #[test]
    fn a_record_that_has_waited_is_again_what_it_was() {
        let mut waiting = record();
        waiting.headers = retry_headers(&record(), 3, &failed(), 1_700_000_060_000, "billing");
        assert_eq!(
            (other(&waiting, "audit"), other(&waiting, "billing")),
            (Some("billing".to_owned()), None)
        );
        (waiting.topic, waiting.partition, waiting.offset) = ("orders-retry-1m".into(), 0, 7);
        waiting.timestamp = 1_800_000_000_000;
        // A second pause replaces what the first has noted.
        let mut again = waiting.clone();
        assert_eq!(restore(&mut waiting), Waited { attempts: 3, due: 1_700_000_060_000 });
        assert_eq!(waiting, record());
        again.headers = retry_headers(&again, 6, &failed(), 1, "billing");
        assert_eq!(again.headers.iter().filter(|header| header.key == "dtkafka-retry-due").count(), 1);
        let headers = dead_letter_headers(&again, 9, &failed());
        assert!(!headers.iter().any(|header| header.key.starts_with(RETRY)), "{headers:?}");
    }

    #[test]
    fn what_somebody_else_wrote_into_a_retry_topic_is_due_at_once() {
        let mut foreign = record();
        assert_eq!(other(&foreign, "billing"), None);
        assert_eq!(restore(&mut foreign), Waited { attempts: 0, due: 0 });
        assert_eq!(foreign, record());
        foreign.headers =
            vec![Header::new("dtkafka-retry-due", "soon"), Header::new("dtkafka-retry-partition", "x")];
        assert_eq!(restore(&mut foreign).due, 0);
        assert_eq!(foreign.partition, 3);
        for (text, attempts) in
            [("-1", 0), ("4294967295", MOST_ATTEMPTS), ("9223372036854775807", MOST_ATTEMPTS)]
        {
            let mut foreign = record().with_header("dtkafka-retry-attempts", text);
            assert_eq!(restore(&mut foreign).attempts, attempts, "{text}");
        }
    }
}
