//! Why JSON does not fit a type: the value is read a second time by a deserializer that knows where it is, and whose errors
//! are made of kinds and of names that stand in the program. What stands in the value is never shown, nor are the keys of
//! maps, which are data as well.

mod mismatch;
mod parts;

use std::fmt::{self, Display};

use serde::{
    de::{DeserializeOwned, Deserializer, Visitor, value::MapDeserializer},
    forward_to_deserialize_any,
};
use serde_json::Value;

use self::{
    mismatch::{Mismatch, TOO_LARGE},
    parts::{Elements, Entries, Variant},
};

/// The name by which serde_json's `RawValue` asks for its text, as a map of one entry. It accepts any value.
const RAW_VALUE: &str = "$serde_json::private::RawValue";

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
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        if name == RAW_VALUE {
            return visitor.visit_map(MapDeserializer::new(std::iter::once((name, self.value.to_string()))));
        }
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

#[cfg(test)]
mod tests;
