//! What is wrong with a value, in kinds and in names that stand in the program; never with the value itself.

use std::fmt::{self, Display};

use serde::de::{self, Expected, Unexpected};

use super::Path;

/// An error without a value.
#[derive(Debug)]
pub(super) struct Mismatch {
    pub(super) text: String,
    /// Set by the innermost reader that sees the error.
    pub(super) path: Option<String>,
}

impl Mismatch {
    pub(super) fn new(text: String) -> Self {
        Self { text, path: None }
    }

    pub(super) fn at(mut self, path: &Path<'_>) -> Self {
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
pub(super) const TOO_LARGE: f64 = 9_223_372_036_854_775_808.0;

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
