//! The value of a setting on its way in: text, whatever type the caller had.
//!
//! It may be a password, so it never shows itself.

use std::{fmt, time::Duration};

use super::{
    Acks, AutoOffsetReset, Compression, GroupProtocol, IsolationLevel, KeyHash, SaslMechanism,
    SecurityProtocol, secrecy::HIDDEN,
};

/// What a setter accepts: text, a number, a flag, a [`Duration`] (milliseconds, rounded up), one of this crate's enums, or a
/// list (joined with commas). It is checked when the configuration is used, not here.
#[derive(Clone, PartialEq, Eq)]
pub struct SettingValue(String);

impl SettingValue {
    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

impl fmt::Debug for SettingValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

macro_rules! from_display {
    ($($type:ty),+) => {
        $(impl From<$type> for SettingValue {
            fn from(value: $type) -> Self {
                Self(value.to_string())
            }
        })+
    };
}

from_display!(&str, &String, String, bool, i16, i32, i64, u16, u32, u64, usize);
from_display!(Acks, AutoOffsetReset, Compression, GroupProtocol, IsolationLevel, KeyHash);
from_display!(SaslMechanism, SecurityProtocol);

impl From<Duration> for SettingValue {
    fn from(value: Duration) -> Self {
        // Java's properties are whole milliseconds; rounding up keeps a tiny pause from becoming none.
        Self(value.as_nanos().div_ceil(1_000_000).to_string())
    }
}

macro_rules! from_list {
    ($([$($generic:tt)*] $type:ty;)+) => {
        $(impl<T: fmt::Display $($generic)*> From<$type> for SettingValue {
            fn from(items: $type) -> Self {
                Self(items.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
            }
        })+
    };
}

from_list! {
    [] Vec<T>;
    [] &Vec<T>;
    [] &[T];
    [, const N: usize] [T; N];
    [, const N: usize] &[T; N];
}
