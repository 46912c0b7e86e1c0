//! Why JSON does not fit a type: the value is read a second time by a deserializer that knows where it is, and whose errors
//! are made of kinds and of names that stand in the program. What stands in the value is never shown, nor are the keys of
//! maps, which are data as well.

use std::fmt::{self, Display};

use serde::{
    de::{
        self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer as _,
        MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
    },
    forward_to_deserialize_any,
};
use serde_json::Value;

/// Where and why a value is no `T`; `None` if that cannot be told.
#[cold]
pub(super) fn explain<T: DeserializeOwned>(value: &Value) -> Option<String> {
    let mismatch = T::deserialize(Reader { value, path: &Path::Root }).err()?;
    Some(match mismatch.path {
        Some(path) if !path.is_empty() => format!("at {path}: {}", mismatch.text),
        _ => mismatch.text,
    })
}

/// The way to a value.
enum Path<'a> {
    Root,
    Field(&'a Self, &'static str),
    /// A value of a map, or of a field that the type does not know.
    Entry(&'a Self),
    Index(&'a Self, usize),
}

impl Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Path::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Entry(parent) => write!(f, "{parent}[a key]"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// An error without a value.
#[derive(Debug)]
struct Mismatch {
    text: String,
    /// Set by the innermost reader that sees the error.
    path: Option<String>,
}

impl Mismatch {
    fn new(text: String) -> Self {
        Self { text, path: None }
    }

    fn at(mut self, path: &Path<'_>) -> Self {
        self.path.get_or_insert_with(|| path.to_string());
        self
    }
}

impl Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: Display>(message: T) -> Self {
        // Serde's own words for an untagged enum; those of others may quote the value.
        let text = message.to_string();
        match text.starts_with("data did not match any variant of untagged enum") {
            true => Self::new(text),
            false => Self::new("the type's own check refuses this value".to_owned()),
        }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {expected}, found {}", kind(&found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(match found {
            Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => {
                format!("expected {expected}, found a number out of its range")
            }
            _ => format!("expected {expected}, found {} that is none", kind(&found)),
        })
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {expected}, found {length} elements"))
    }

    fn unknown_variant(_found: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("unknown variant, expected {}", one_of(expected)))
    }

    fn unknown_field(found: &str, expected: &'static [&'static str]) -> Self {
        // The name of a field is no value, unless somebody uses a map's keys as one.
        let is_name = !found.is_empty()
            && found.len() <= 40
            && found.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        let name = if is_name { format!(" `{found}`") } else { String::new() };
        Self::new(format!("unknown field{name}, expected {}", one_of(expected)))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(format!("missing field `{field}`"))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(format!("the field `{field}` stands there twice"))
    }
}

fn one_of(names: &[&str]) -> String {
    match names {
        [] => "none at all".to_owned(),
        [one] => format!("`{one}`"),
        _ => format!("one of `{}`", names.join("`, `")),
    }
}

/// 2^63, which no `i64` holds.
const TOO_LARGE: f64 = 9_223_372_036_854_775_808.0;

fn kind(found: &Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "a boolean",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "a number",
        // Whole numbers too large for 64 bits are read as these, as is what is written with a fraction or an exponent.
        Unexpected::Float(value) if value.fract() == 0.0 && value.abs() >= TOO_LARGE => {
            "a number out of its range"
        }
        Unexpected::Float(value) if value.fract() == 0.0 => "a number with a point or an exponent",
        Unexpected::Float(_) => "a number with a fraction",
        Unexpected::Char(_) | Unexpected::Str(_) | Unexpected::Bytes(_) => "a string",
        Unexpected::Unit | Unexpected::Option => "null",
        Unexpected::Seq => "an array",
        Unexpected::Map => "an object",
        Unexpected::Enum
        | Unexpected::UnitVariant
        | Unexpected::NewtypeVariant
        | Unexpected::TupleVariant
        | Unexpected::StructVariant => "another kind of variant",
        _ => "another value",
    }
}

/// Reads one value, as serde_json reads it.
struct Reader<'de, 'p> {
    value: &'de Value,
    path: &'p Path<'p>,
}

impl<'de> Reader<'de, '_> {
    fn read<V: Visitor<'de>>(
        self,
        visitor: V,
        fields: &'static [&'static str],
    ) -> Result<V::Value, Mismatch> {
        let Self { value, path } = self;
        let read = match value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(value), _, _) => visitor.visit_u64(value),
                (None, Some(value), _) => visitor.visit_i64(value),
                (None, None, value) => visitor.visit_f64(value.unwrap_or(f64::MAX)),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(values) => {
                let mut elements = Elements { values: values.iter(), path, index: 0 };
                visitor.visit_seq(&mut elements).and_then(|read| match elements.index {
                    count if count == values.len() => Ok(read),
                    count => Err(Mismatch::new(format!("expected {count} elements, found {}", values.len()))),
                })
            }
            Value::Object(entries) => {
                visitor.visit_map(Entries { entries: entries.iter(), path, fields, value: None })
            }
        };
        read.map_err(|mismatch| mismatch.at(path))
    }
}

impl Reader<'_, '_> {
    /// A whole number of more than 64 bits, of which only about this much is known.
    fn wide(&self) -> Option<f64> {
        let Value::Number(number) = self.value else { return None };
        number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() >= TOO_LARGE)
    }
}

impl<'de> Deserializer<'de> for Reader<'de, '_> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.read(visitor, &[])
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.read(visitor, fields)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value {
            Value::String(text) => visitor
                .visit_borrowed_bytes(text.as_bytes())
                .map_err(|mismatch: Mismatch| mismatch.at(self.path)),
            _ => self.read(visitor, &[]),
        }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_i128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.wide() {
            Some(number) => visitor.visit_i128(number as i128),
            None => self.read(visitor, &[]),
        }
    }

    fn deserialize_u128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.wide() {
            Some(number) if number > 0.0 => visitor.visit_u128(number as u128),
            _ => self.read(visitor, &[]),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let path = self.path;
        let (name, content) = match self.value {
            Value::String(name) => (name, None),
            Value::Object(entries) => match (entries.iter().next(), entries.len()) {
                (Some((name, content)), 1) => (name, Some(content)),
                _ => {
                    let expected = "expected an object with the variant's name as its only key".to_owned();
                    return Err(Mismatch::new(expected).at(path));
                }
            },
            other => {
                let found = Reader { value: other, path }.read(Nothing, &[]);
                return Err(found.err().unwrap_or_else(|| Mismatch::new("expected a variant".to_owned())));
            }
        };
        visitor.visit_enum(Variant { name, content, path }).map_err(|mismatch| mismatch.at(path))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string unit unit_struct seq tuple
        tuple_struct map identifier
    }
}

/// Accepts nothing, to say what was found in place of a variant.
struct Nothing;

impl Visitor<'_> for Nothing {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a variant's name, or an object with it as its only key")
    }
}

struct Elements<'de, 'p> {
    values: std::slice::Iter<'de, Value>,
    path: &'p Path<'p>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Elements<'de, '_> {
    type Error = Mismatch;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Mismatch> {
        let Some(value) = self.values.next() else { return Ok(None) };
        let path = Path::Index(self.path, self.index);
        self.index += 1;
        // What a type says of a value that was read is of that value as well.
        seed.deserialize(Reader { value, path: &path }).map(Some).map_err(|mismatch| mismatch.at(&path))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.values.len())
    }
}

struct Entries<'de, 'p> {
    entries: serde_json::map::Iter<'de>,
    path: &'p Path<'p>,
    /// Those that the type knows; empty for a map.
    fields: &'static [&'static str],
    value: Option<(&'de str, &'de Value)>,
}

impl<'de> MapAccess<'de> for Entries<'de, '_> {
    type Error = Mismatch;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mismatch> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some((key, value));
        seed.deserialize(Key(key)).map(Some).map_err(|mismatch| mismatch.at(self.path))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mismatch> {
        let Some((key, value)) = self.value.take() else {
            return Err(Mismatch::new("a value was asked for before its key".to_owned()));
        };
        let path = match self.fields.iter().find(|field| **field == key) {
            Some(field) => Path::Field(self.path, field),
            None => Path::Entry(self.path),
        };
        seed.deserialize(Reader { value, path: &path }).map_err(|mismatch| mismatch.at(&path))
    }
}

/// The key of an entry: text that may stand for a number or a boolean.
struct Key<'de>(&'de str);

/// Keys that are numbers in the type.
macro_rules! numbers {
    ($($method:ident)+) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
            match (self.0.parse::<u64>(), self.0.parse::<i64>()) {
                (Ok(number), _) => visitor.visit_u64(number),
                (_, Ok(number)) => visitor.visit_i64(number),
                _ => visitor.visit_borrowed_str(self.0),
            }
        }
    )+};
}

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.0 {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            other => visitor.visit_borrowed_str(other),
        }
    }

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.0.parse() {
            Ok(number) => visitor.visit_f64(number),
            Err(_) => visitor.visit_borrowed_str(self.0),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let key: de::value::BorrowedStrDeserializer<'de, Mismatch> =
            de::value::BorrowedStrDeserializer::new(self.0);
        key.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Variant<'de, 'p> {
    name: &'de str,
    content: Option<&'de Value>,
    path: &'p Path<'p>,
}

impl<'de, 'p> EnumAccess<'de> for Variant<'de, 'p> {
    type Error = Mismatch;
    type Variant = Content<'de, 'p>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Content<'de, 'p>), Mismatch> {
        let variant = seed.deserialize(self.name.into_deserializer())?;
        Ok((variant, Content { content: self.content, path: self.path }))
    }
}

/// What stands behind the name of a variant.
struct Content<'de, 'p> {
    content: Option<&'de Value>,
    path: &'p Path<'p>,
}

impl<'de, 'p> Content<'de, 'p> {
    fn reader(self, expected: &dyn Expected) -> Result<Reader<'de, 'p>, Mismatch> {
        match self.content {
            Some(value) => Ok(Reader { value, path: self.path }),
            None => Err(de::Error::invalid_type(Unexpected::UnitVariant, expected)),
        }
    }
}

impl<'de> VariantAccess<'de> for Content<'de, '_> {
    type Error = Mismatch;

    fn unit_variant(self) -> Result<(), Mismatch> {
        match self.content {
            None | Some(Value::Null) => Ok(()),
            Some(_) => Err(de::Error::invalid_type(Unexpected::NewtypeVariant, &"a variant without content")),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Mismatch> {
        seed.deserialize(self.reader(&"a variant with content")?)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _length: usize, visitor: V) -> Result<V::Value, Mismatch> {
        self.reader(&"a variant with a tuple")?.read(visitor, &[])
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.reader(&"a variant with fields")?.read(visitor, fields)
    }
}

#[cfg(test)]
mod tests {
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
            (
                r#"{"id": 1e3, "items": []}"#,
                "at id: expected u64, found a number with a point or an exponent",
            ),
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
            (
                r#"{"id": 1, "items": [], "prices": {"hunter2": 1}}"#,
                "at prices: expected u32, found a string",
            ),
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
        let text =
            explained::<Wide>(&format!(r#"{{"signed": {signed}, "unsigned": {unsigned}, "id": "a"}}"#));
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
}
