//! JSON in and out, beyond what serde_json does: an error of reading says where in the value and what was expected, and
//! never shows the value; an error of writing is made of what JSON has no form for.
//!
//! The fast path is serde_json's own. Only a value that could not be read is looked at again.

mod explain;
mod finite;

use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, ErrorKind, Result};

/// Reads a record's value as JSON; a tombstone reads as `null`.
#[inline]
pub(crate) fn read<T: DeserializeOwned>(
    value: Option<&[u8]>,
    topic: &Arc<str>,
    partition: i32,
    offset: i64,
) -> Result<T> {
    let value = value.unwrap_or(b"null");
    serde_json::from_slice(value)
        .map_err(|cause| unreadable(explain::<T>(value, &cause), topic, partition, offset))
}

/// Reads a value as JSON; the error is a text that names no value.
pub(crate) fn read_text<T: DeserializeOwned>(value: &[u8]) -> std::result::Result<T, String> {
    serde_json::from_slice(value).map_err(|cause| explain::<T>(value, &cause).0)
}

/// Writes a value as JSON; NaN and the infinities, which JSON does not have, are an error.
#[inline]
pub(crate) fn write<V: Serialize + ?Sized>(
    buffer: &mut Vec<u8>,
    value: &V,
) -> std::result::Result<(), serde_json::Error> {
    value.serialize(finite::Finite(&mut serde_json::Serializer::new(buffer)))
}

/// Why `value` is no `T`, and whether it is JSON at all. What serde_json says of no JSON names a place and no value; where
/// it is JSON of another type, it would quote the value.
#[cold]
fn explain<T: DeserializeOwned>(value: &[u8], cause: &serde_json::Error) -> (String, bool) {
    let value = match serde_json::from_slice(value) {
        Ok(value) => value,
        Err(cause) => return (cause.to_string(), false),
    };
    // In `value` a field is there once.
    let text = match cause.to_string().starts_with("duplicate field ") {
        true => Some("a field is there twice".to_owned()),
        false => explain::explain::<T>(&value),
    };
    let text = text.unwrap_or_else(|| "another type of value was expected".to_owned());
    match cause.line() {
        // Of tagged and untagged enums serde reads a copy, whose places nobody knows.
        0 => (text, true),
        line => (format!("{text}, at line {line} column {}", cause.column()), true),
    }
}

#[cold]
fn unreadable((cause, is_json): (String, bool), topic: &Arc<str>, partition: i32, offset: i64) -> Error {
    let text = match is_json {
        true => "the record's value is JSON of another type than expected",
        false => "the record's value is not JSON",
    };
    Error::new(ErrorKind::Json, text)
        .with_topic(Arc::clone(topic))
        .with_partition(partition)
        .with_offset(offset)
        .with_boxed_source(cause.into())
        .with_hint(
            "read the value as bytes, or let the error policy of a Consumer skip or dead-letter the record",
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Once {
        id: u32,
    }

    fn fails(json: &str) -> Error {
        read::<u32>(Some(json.as_bytes()), &"orders".into(), 3, 42).unwrap_err()
    }

    #[test]
    fn an_error_of_reading_says_where_and_never_shows_the_value() {
        let text = fails("\"hunter2\"").to_string();
        assert!(text.contains("topic orders partition 3, offset 42") && !text.contains("hunter2"), "{text}");
        assert!(text.contains("expected u32, found a string, at line 1 column 9"), "{text}");
        assert!(fails("").to_string().contains("EOF"), "{}", fails(""));
        let twice = read_text::<Once>(br#"{"id": 1, "id": 2}"#).unwrap_err();
        assert!(twice.contains("a field is there twice, at line 1"), "{twice}");
        assert!(fails("{nope").to_string().contains("is not JSON"), "{}", fails("{nope"));
        assert!(read::<Option<u32>>(None, &"orders".into(), 3, 42).unwrap().is_none(), "a tombstone is null");
    }

    #[test]
    fn where_serde_knows_no_place_none_is_named() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(tag = "type")]
        #[expect(dead_code, reason = "only read")]
        enum Event {
            Paid { euros: u8 },
        }
        let text = read_text::<Event>(br#"{"type": "Paid", "euros": 300}"#).unwrap_err();
        assert_eq!(text, "expected u8, found a number out of its range");
    }

    #[test]
    fn what_serde_json_writes_is_written_alike() {
        #[derive(Serialize)]
        enum Kind {
            Plain,
            New(u8),
            Tuple(u8, f32),
            Struct { a: Option<u8> },
        }
        #[derive(Serialize)]
        struct Whole<'a> {
            text: &'a str,
            kinds: Vec<Kind>,
            map: std::collections::BTreeMap<i64, (char, bool)>,
            wide: (i128, u128),
            float: f64,
            unit: (),
            bytes: &'a [u8],
        }
        let value = Whole {
            text: "say \"hé\"",
            kinds: vec![Kind::Plain, Kind::New(1), Kind::Tuple(2, 0.5), Kind::Struct { a: None }],
            map: [(-1, ('x', true)), (7, ('"', false))].into(),
            wide: (i128::MIN, u128::MAX),
            float: 1e-7,
            unit: (),
            bytes: b"ab",
        };
        let mut written = Vec::new();
        write(&mut written, &value).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), serde_json::to_string(&value).unwrap());
    }

    #[test]
    fn numbers_that_json_does_not_have_are_an_error_wherever_they_stand() {
        use std::collections::BTreeMap;
        let mut buffer = Vec::new();
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let errors = [
                write(&mut buffer, &value).unwrap_err(),
                write(&mut buffer, &(value as f32)).unwrap_err(),
                write(&mut buffer, &Some(vec![(1, value)])).unwrap_err(),
                write(&mut buffer, &BTreeMap::from([("price", value)])).unwrap_err(),
            ];
            for error in errors {
                assert!(error.to_string().contains("NaN"), "{error}");
            }
        }
    }
}
