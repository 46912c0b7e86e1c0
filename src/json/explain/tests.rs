//! Values that do not fit, and what is said of them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only read")]
struct Order {
    id: u64,
    items: Vec<Item>,
    #[serde(default)]
    prices: BTreeMap<u32, f64>,
    #[serde(default)]
    state: State,
    note: Option<String>,
    by: Option<By>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only read")]
struct Item {
    name: String,
    count: u8,
}

#[derive(Debug, Default, Deserialize)]
#[expect(dead_code, reason = "only read")]
enum State {
    #[default]
    Open,
    Paid {
        on: i64,
    },
    Moved(u32, u32),
    Boxed(Box<u16>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
#[expect(dead_code, reason = "only read")]
enum By {
    Id(u32),
    Name { first: String },
}

fn explained<T: DeserializeOwned>(json: &str) -> String {
    assert!(serde_json::from_str::<T>(json).is_err(), "{json}");
    explain::<T>(&serde_json::from_str(json).unwrap()).unwrap()
}

#[test]
fn the_path_and_both_kinds_are_named_and_the_value_is_not() {
    let table = [
        (r#"{"id": "hunter2", "items": []}"#, "at id: expected u64, found a string"),
        (r#"{"id": -1, "items": []}"#, "at id: expected u64, found a number out of its range"),
        (r#"{"id": 1.5, "items": []}"#, "at id: expected u64, found a number with a fraction"),
        (
            r#"{"id": 18446744073709551616, "items": []}"#,
            "at id: expected u64, found a number out of its range",
        ),
        (r#"{"id": -1e30, "items": []}"#, "at id: expected u64, found a number out of its range"),
        (r#"{"id": 1e3, "items": []}"#, "at id: expected u64, found a number with a point or an exponent"),
        (r#"{"id": 1, "items": {}}"#, "at items: expected a sequence, found an object"),
        (r#"{"id": 1}"#, "missing field `items`"),
        (
            r#"{"id": 1, "items": [{"name": "a", "count": 1}, {"name": "hunter2", "count": 300}]}"#,
            "at items[1].count: expected u8, found a number out of its range",
        ),
        (r#"{"id": 1, "items": [{"name": "hunter2"}]}"#, "at items[0]: missing field `count`"),
        (
            r#"{"id": 1, "items": [{"name": "a", "count": 1, "colour": "hunter2"}]}"#,
            "at items[0]: unknown field `colour`, expected one of `name`, `count`",
        ),
        (
            r#"{"id": 1, "items": [{"the hunter2's": 1}]}"#,
            "at items[0]: unknown field, expected one of `name`, `count`",
        ),
        (
            r#"{"id": 1, "items": [], "prices": {"7": 1, "8": "hunter2"}}"#,
            "at prices[a key]: expected f64, found a string",
        ),
        (r#"{"id": 1, "items": [], "prices": {"hunter2": 1}}"#, "at prices: expected u32, found a string"),
        (
            r#"{"id": 1, "items": [], "state": "hunter2"}"#,
            "at state: unknown variant, expected one of `Open`, `Paid`, `Moved`, `Boxed`",
        ),
        (
            r#"{"id": 1, "items": [], "state": {"Paid": {"on": "hunter2"}}}"#,
            "at state.on: expected i64, found a string",
        ),
        (
            r#"{"id": 1, "items": [], "state": {"Moved": [1]}}"#,
            "at state: expected tuple variant State::Moved with 2 elements, found 1 elements",
        ),
        (
            r#"{"id": 1, "items": [], "state": {"Boxed": 70000}}"#,
            "at state: expected u16, found a number out of its range",
        ),
        (r#"{"id": 1, "items": [], "note": ["hunter2"]}"#, "at note: expected a string, found an array"),
        (
            r#"{"id": 1, "items": [], "by": "hunter2"}"#,
            "at by: data did not match any variant of untagged enum By",
        ),
        (r#"["hunter2"]"#, "at [0]: expected u64, found a string"),
        (r#""hunter2""#, "expected struct Order, found a string"),
        ("null", "expected struct Order, found null"),
    ];
    for (json, expected) in table {
        let text = explained::<Order>(json);
        assert_eq!(text, expected, "{json}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn what_is_wrong_with_a_variant_is_said() {
    assert!(explained::<State>(r#"{"Open": 1}"#).contains("a variant without content"));
    assert!(explained::<State>(r#""Moved""#).contains("a variant with a tuple"));
    assert!(explained::<State>(r#"{"Open": null, "Paid": null}"#).contains("its only key"));
    assert!(explained::<State>("17").contains("found a number"));
    assert!(explained::<BTreeMap<bool, u8>>(r#"{"maybe": 1}"#).contains("a boolean"));
}

#[test]
fn a_number_of_128_bits_is_not_blamed_for_what_is_wrong_behind_it() {
    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Wide {
        signed: i128,
        unsigned: u128,
        id: u8,
    }
    let (signed, unsigned) = (i128::MIN, u128::MAX);
    let text = explained::<Wide>(&format!(r#"{{"signed": {signed}, "unsigned": {unsigned}, "id": "a"}}"#));
    assert_eq!(text, "at id: expected u8, found a string");
}

#[test]
fn whatever_the_form_of_an_enum_or_of_a_key_no_value_is_shown() {
    #[derive(Debug, Deserialize)]
    #[serde(tag = "type", deny_unknown_fields)]
    #[expect(dead_code, reason = "only read")]
    enum Tagged {
        Card { number: u64 },
    }
    #[derive(Debug, Deserialize)]
    #[serde(tag = "t", content = "c")]
    #[expect(dead_code, reason = "only read")]
    enum Adjacent {
        Card(u64),
    }
    #[derive(Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
    enum Name {
        Ann,
    }
    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Flat {
        id: u8,
        #[serde(flatten)]
        rest: Rest,
    }
    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Rest {
        price: f64,
    }
    for text in [
        explained::<Tagged>(r#"{"type": "hunter2"}"#),
        explained::<Tagged>(r#"{"type": "Card", "number": "hunter2"}"#),
        explained::<Tagged>(r#"{"type": "Card", "number": 1, "my hunter2": 2}"#),
        explained::<Tagged>(r#"{"number": "hunter2"}"#),
        explained::<Adjacent>(r#"{"t": "hunter2", "c": 1}"#),
        explained::<Adjacent>(r#"{"t": "Card", "c": "hunter2"}"#),
        explained::<BTreeMap<Name, u8>>(r#"{"hunter2": 1}"#),
        explained::<BTreeMap<char, u8>>(r#"{"hunter2": 1}"#),
        explained::<BTreeMap<u8, u8>>(r#"{"hunter2": 1}"#),
        explained::<Flat>(r#"{"id": 1, "price": "hunter2"}"#),
        explained::<Flat>(r#"{"id": "hunter2", "price": 1}"#),
        explained::<(u8, bool)>(r#"[1, "hunter2"]"#),
        explained::<[u8; 2]>(r#"[1, 2, "hunter2"]"#),
        explained::<char>(r#""hunter2""#),
        explained::<std::net::IpAddr>(r#""hunter2""#),
        explained::<std::num::NonZeroU8>("0"),
        explained::<std::time::Duration>(r#"{"secs": "hunter2", "nanos": 0}"#),
    ] {
        assert!(!text.contains("hunter2") && !text.is_empty(), "{text}");
        assert!(!text.starts_with("another type of value"), "{text}");
    }
}

#[test]
fn the_words_of_a_types_own_check_are_kept_back() {
    #[derive(Debug, Deserialize)]
    #[serde(try_from = "String")]
    struct Even;
    impl TryFrom<String> for Even {
        type Error = String;
        fn try_from(text: String) -> Result<Self, String> {
            Err(format!("{text} is not even"))
        }
    }
    let text = explained::<Vec<Even>>(r#"["hunter2"]"#);
    assert_eq!(text, "at [0]: the type's own check refuses this value");
}

#[test]
fn what_can_be_read_after_all_is_not_explained() {
    let json = serde_json::json!({"1": "Open", "2": {"Paid": {"on": 7}}, "3": null});
    assert_eq!(explain::<BTreeMap<u8, Option<State>>>(&json), None);
}

/// As serde_json's `RawValue`, which exists with its feature `raw_value` alone.
#[derive(Debug)]
#[expect(dead_code, reason = "only read")]
struct Raw(String);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any valid JSON value")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                assert_eq!(map.next_key::<String>()?.as_deref(), Some(RAW_VALUE));
                map.next_value().map(Raw)
            }
        }
        deserializer.deserialize_newtype_struct(RAW_VALUE, Text)
    }
}

#[test]
fn a_field_of_raw_json_fits_and_the_one_that_does_not_is_named() {
    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Envelope {
        payload: Raw,
        version: u32,
    }
    for payload in ["null", "1", "\"a\"", "[1, 2]", r#"{"a": 1}"#] {
        let json = format!(r#"{{"payload": {payload}, "version": "one"}}"#);
        assert_eq!(explained::<Envelope>(&json), "at version: expected u32, found a string");
    }
}
