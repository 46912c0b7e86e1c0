//! The bytes that members of a classic group tell each other through the coordinator: subscription and assignment of the
//! `consumer` protocol type, versions 0 to 3.
//!
//! They are written by other clients: every length is checked against what is left, and a list never allocates by its
//! announced length. KIP-429 (owned partitions), KIP-792 (generation), KIP-881 (rack).

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    error::{Error, Result},
    record::TopicPartition,
};

/// What a member asks for when it joins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MemberSubscription {
    /// Sorted, without duplicates.
    pub(crate) topics: Vec<Arc<str>>,
    /// What the member owned when it joined (version 1); empty with eager rebalancing.
    pub(crate) owned: Vec<TopicPartition>,
    /// The generation `owned` is of (version 2); -1 where unknown.
    pub(crate) generation: i32,
    /// Version 3.
    pub(crate) rack: Option<String>,
    /// What the assignor adds.
    pub(crate) user_data: Option<Bytes>,
}

/// The version that is written. Every client understands it, because readers take the fields that they know from any
/// higher version.
const SUBSCRIPTION_VERSION: i16 = 3;
const ASSIGNMENT_VERSION: i16 = 3;

pub(crate) fn encode_subscription(subscription: &MemberSubscription) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(SUBSCRIPTION_VERSION);
    out.put_i32(length(subscription.topics.len()));
    for topic in &subscription.topics {
        put_string(&mut out, topic);
    }
    match &subscription.user_data {
        Some(data) => {
            out.put_i32(length(data.len()));
            out.put_slice(data);
        }
        None => out.put_i32(-1),
    }
    put_partitions(&mut out, &subscription.owned);
    out.put_i32(subscription.generation);
    match &subscription.rack {
        Some(rack) => put_string(&mut out, rack),
        None => out.put_i16(-1),
    }
    out.freeze()
}

pub(crate) fn decode_subscription(bytes: &[u8]) -> Result<MemberSubscription> {
    let mut input = Input { left: bytes, what: "subscription" };
    let version = input.int16()?;
    if version < 0 {
        return Err(input.bad("a negative version"));
    }
    let mut topics = input.list(|input| input.string())?;
    topics.sort();
    topics.dedup();
    let mut subscription = MemberSubscription { topics, generation: -1, ..Default::default() };
    // Some clients (kafka-go, sarama) announce version 1 and end before its fields. Only the topics are needed: other
    // fields that are missing or cannot be read keep their defaults.
    let _ = read_rest(&mut input, version, &mut subscription);
    Ok(subscription)
}

fn read_rest(input: &mut Input<'_>, version: i16, subscription: &mut MemberSubscription) -> Result<()> {
    if let Ok(length @ 1..) = usize::try_from(input.int32()?) {
        subscription.user_data = Some(Bytes::copy_from_slice(input.take(length)?));
    }
    if version >= 1 {
        subscription.owned = input.partitions()?;
    }
    if version >= 2 {
        subscription.generation = input.int32()?;
    }
    if version >= 3 {
        subscription.rack = input.nullable_string()?.map(|rack| rack.to_string());
    }
    Ok(())
}

/// What a member of Java's `StickyAssignor` says of itself: what it had, and of which generation.
pub(crate) fn encode_sticky(owned: &[TopicPartition], generation: i32) -> Bytes {
    let mut out = BytesMut::new();
    put_partitions(&mut out, owned);
    out.put_i32(generation);
    out.freeze()
}

/// The same, as far as it can be read: older members leave out the generation.
pub(crate) fn decode_sticky(data: &[u8]) -> (Vec<TopicPartition>, i32) {
    let mut input = Input { left: data, what: "subscription" };
    let owned = input.partitions().unwrap_or_default();
    (owned, input.int32().unwrap_or(-1))
}

/// What a member of Java's `CooperativeStickyAssignor` adds: its generation alone.
pub(crate) fn encode_generation(generation: i32) -> Bytes {
    Bytes::copy_from_slice(&generation.to_be_bytes())
}

pub(crate) fn decode_generation(data: &[u8]) -> i32 {
    Input { left: data, what: "subscription" }.int32().unwrap_or(-1)
}

pub(crate) fn encode_assignment(partitions: &[TopicPartition]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(ASSIGNMENT_VERSION);
    put_partitions(&mut out, partitions);
    out.put_i32(-1); // user data: none
    out.freeze()
}

/// The partitions of an assignment, sorted. No bytes at all mean that the leader assigned nothing.
pub(crate) fn decode_assignment(bytes: &[u8]) -> Result<Vec<TopicPartition>> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let mut input = Input { left: bytes, what: "assignment" };
    if input.int16()? < 0 {
        return Err(input.bad("a negative version"));
    }
    let mut partitions = input.partitions()?;
    partitions.sort();
    partitions.dedup();
    Ok(partitions)
}

/// No member has more partitions: a consumer keeps something for each.
const MOST_PARTITIONS: usize = 50_000;

/// # Errors
/// `Protocol` for more partitions than any member of a group has.
pub(crate) fn check_count(what: &str, count: usize) -> Result<()> {
    match count <= MOST_PARTITIONS {
        true => Ok(()),
        false => {
            Err(Error::protocol(format!("the group's {what} names more than {MOST_PARTITIONS} partitions"))
                .with_hint("start more members: a consumer keeps something for each of its partitions"))
        }
    }
}

fn length(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}

fn put_string(out: &mut BytesMut, text: &str) {
    // Topic names and racks are far below 32 KiB: brokers refuse longer ones.
    let text = text.get(..text.len().min(i16::MAX as usize)).unwrap_or_default();
    out.put_i16(i16::try_from(text.len()).unwrap_or(0));
    out.put_slice(text.as_bytes());
}

fn put_partitions(out: &mut BytesMut, partitions: &[TopicPartition]) {
    let mut sorted: Vec<_> = partitions.iter().collect();
    sorted.sort();
    let topics: Vec<_> = sorted.chunk_by(|a, b| a.topic == b.topic).collect();
    out.put_i32(length(topics.len()));
    for of_topic in topics {
        if let Some(first) = of_topic.first() {
            put_string(out, &first.topic);
        }
        out.put_i32(length(of_topic.len()));
        for partition in of_topic {
            out.put_i32(partition.partition);
        }
    }
}

struct Input<'a> {
    left: &'a [u8],
    what: &'static str,
}

impl<'a> Input<'a> {
    fn bad(&self, problem: &str) -> Error {
        Error::protocol(format!("a group member's {} cannot be read: {problem}", self.what))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let Some((head, tail)) = self.left.split_at_checked(length) else {
            return Err(self.bad("it is cut short"));
        };
        self.left = tail;
        Ok(head)
    }

    fn int16(&mut self) -> Result<i16> {
        let head = self.take(2)?;
        Ok(i16::from_be_bytes([head[0], head[1]]))
    }

    fn int32(&mut self) -> Result<i32> {
        let head = self.take(4)?;
        Ok(i32::from_be_bytes([head[0], head[1], head[2], head[3]]))
    }

    fn nullable_string(&mut self) -> Result<Option<Arc<str>>> {
        let Ok(length) = usize::try_from(self.int16()?) else { return Ok(None) };
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| self.bad("a name is not UTF-8"))?;
        Ok(Some(Arc::from(text)))
    }

    fn string(&mut self) -> Result<Arc<str>> {
        self.nullable_string()?.ok_or_else(|| self.bad("a name is null"))
    }

    /// Each item takes at least one byte, so the list ends with the input however long it claims to be.
    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let length = self.int32()?;
        let mut items = Vec::new();
        for _ in 0..length {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn partitions(&mut self) -> Result<Vec<TopicPartition>> {
        let mut partitions = Vec::new();
        let what = self.what;
        self.list(|input| {
            let topic = input.string()?;
            for partition in input.list(Self::int32)? {
                partitions.push(TopicPartition { topic: Arc::clone(&topic), partition });
            }
            check_count(what, partitions.len())
        })?;
        Ok(partitions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(list: &[(&str, i32)]) -> Vec<TopicPartition> {
        list.iter().map(|(topic, partition)| TopicPartition::new(*topic, *partition)).collect()
    }

    #[test]
    fn a_subscription_survives_the_round_trip() {
        let subscription = MemberSubscription {
            topics: vec!["a".into(), "b".into()],
            owned: partitions(&[("a", 0), ("a", 3), ("b", 1)]),
            generation: 7,
            rack: Some("r1".to_owned()),
            user_data: Some(Bytes::from_static(b"xy")),
        };
        assert_eq!(decode_subscription(&encode_subscription(&subscription)).unwrap(), subscription);
    }

    #[test]
    fn more_partitions_than_any_member_has_are_not_read() {
        let of =
            |count: usize| -> Vec<_> { (0..).take(count).map(|n| TopicPartition::new("a", n)).collect() };
        let read = |count| decode_assignment(&encode_assignment(&of(count)));
        assert_eq!(read(MOST_PARTITIONS).unwrap().len(), MOST_PARTITIONS);
        let error = read(MOST_PARTITIONS + 1).unwrap_err();
        assert!(error.to_string().contains("assignment names more than 50000"), "{error}");
        assert!(error.to_string().contains("start more members"), "{error}");
    }

    #[test]
    fn an_assignment_survives_the_round_trip_and_comes_back_sorted() {
        let assignment = partitions(&[("b", 1), ("a", 2), ("a", 0)]);
        let read = decode_assignment(&encode_assignment(&assignment)).unwrap();
        assert_eq!(read, partitions(&[("a", 0), ("a", 2), ("b", 1)]));
        assert_eq!(decode_assignment(b"").unwrap(), []);
    }

    #[test]
    fn older_and_newer_versions_are_read() {
        // Version 0: topics and user data only.
        let v0 = b"\0\0\0\0\0\x01\0\x01t\0\0\0\x02xy";
        assert_eq!(
            decode_subscription(v0).unwrap(),
            MemberSubscription {
                topics: vec!["t".into()],
                generation: -1,
                user_data: Some(Bytes::from_static(b"xy")),
                ..Default::default()
            }
        );
        // A version to come: the fields known today, then something else.
        let mut newer =
            encode_subscription(&MemberSubscription { topics: vec!["t".into()], ..Default::default() })
                .to_vec();
        newer[1] = 9;
        newer.extend_from_slice(b"more");
        assert_eq!(decode_subscription(&newer).unwrap().topics, vec![Arc::<str>::from("t")]);
    }

    #[test]
    fn a_version_that_ends_before_its_later_fields_is_read_as_far_as_it_goes() {
        // (what a foreign client writes, what is read of it beside the topics)
        type Owned = &'static [(&'static str, i32)];
        let cases: [(&[u8], Owned); 6] = [
            (b"\0\x01\0\0\0\x01\0\x01t\xff\xff\xff\xff", &[]),
            (b"\0\x01\0\0\0\x01\0\x01t\0\0\0\0", &[]),
            (b"\0\x01\0\0\0\x01\0\x01t", &[]),
            (b"\0\x03\0\0\0\x01\0\x01t\xff\xff\xff\xff\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x05", &[("t", 5)]),
            (b"\0\x02\0\0\0\x01\0\x01t\xff\xff\xff\xff\xff\xff\xff\xff\0\0", &[]),
            (b"\0\x01\0\0\0\x01\0\x01t\x7f\xff\xff\xff", &[]),
        ];
        for (bytes, owned) in cases {
            let read = decode_subscription(bytes).unwrap();
            let expected = MemberSubscription {
                topics: vec!["t".into()],
                owned: partitions(owned),
                generation: -1,
                rack: None,
                user_data: None,
            };
            assert_eq!(read, expected, "{bytes:?}");
        }
    }

    #[test]
    fn every_cut_and_every_wild_length_is_an_error_and_never_a_panic() {
        let subscription = encode_subscription(&MemberSubscription {
            topics: vec!["topic".into()],
            owned: partitions(&[("topic", 1)]),
            generation: 1,
            rack: Some("rack".to_owned()),
            user_data: None,
        });
        let topics_end = 2 + 4 + 2 + "topic".len();
        for cut in 0..subscription.len() {
            let read = decode_subscription(&subscription[..cut]);
            match cut < topics_end {
                true => assert!(read.is_err(), "cut at {cut}"),
                false => assert_eq!(read.unwrap().topics, [Arc::<str>::from("topic")], "cut at {cut}"),
            }
        }
        for at in 0..subscription.len() {
            let mut wild = subscription.to_vec();
            wild[at] = 0x7f;
            let _ = decode_subscription(&wild);
        }
        assert!(decode_assignment(b"\0\x01\x7f\xff\xff\xff").is_err());
    }
}
