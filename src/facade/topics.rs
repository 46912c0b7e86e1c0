//! The topics that a handler or a policy is for. Pure.

use std::{fmt, sync::Arc};

use super::consumed::Consumed;
use crate::error::{Error, ErrorKind, Result};

/// The topics of a handler or a policy: one by name, those that match a pattern, or all that have no other handler.
///
/// ```
/// use dtkafka::Topics;
///
/// let one: Topics = "orders".into();
/// let some = Topics::glob("orders-*");
/// let rest = Topics::others();
/// # let _ = (one, some, rest);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics(Selector);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Selector {
    Named(Arc<str>),
    Glob(Arc<str>),
    Others,
}

impl Topics {
    /// Topics whose whole name matches: `*` stands for any characters, `?` for one. Not a regular expression, unlike
    /// [`Consumer::matching`](crate::Consumer::matching).
    pub fn glob(pattern: &str) -> Self {
        Self(Selector::Glob(pattern.into()))
    }

    /// Topics that have no other handler.
    pub fn others() -> Self {
        Self(Selector::Others)
    }

    pub(super) fn is_others(&self) -> bool {
        self.0 == Selector::Others
    }

    /// Whether it is this topic alone, by its name.
    pub(super) fn is_named(&self, topic: &str) -> bool {
        matches!(&self.0, Selector::Named(name) if **name == *topic)
    }

    fn takes_none_of(&self, own: &Consumed) -> bool {
        match (&self.0, own) {
            (Selector::Others, _) | (Selector::Glob(_), Consumed::Matching { .. }) => false,
            (Selector::Named(name), _) => own.excludes(name),
            (Selector::Glob(_), Consumed::Named(names)) => !names.iter().any(|topic| self.names(topic)),
        }
    }

    /// Refuses topics that are not consumed: their handlers and policies would never be used.
    pub(super) fn refuse_strangers(&self, own: &Consumed) -> Result<()> {
        if !self.takes_none_of(own) {
            return Ok(());
        }
        let what = match &self.0 {
            Selector::Glob(_) => "the consumer consumes no topic that matches the pattern",
            _ => "the consumer does not consume this topic",
        };
        let error = Error::new(ErrorKind::InvalidArgument, what).with_topic(self.to_string());
        Err(error.with_hint(own.to_string()))
    }

    /// Whether a topic that is not known yet may have handlers of both.
    pub(super) fn may_meet(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Selector::Others, Selector::Others) => true,
            (Selector::Others, _) | (_, Selector::Others) => false,
            (Selector::Named(name), _) => other.names(name),
            (_, Selector::Named(name)) => self.names(name),
            (Selector::Glob(_), Selector::Glob(_)) => true,
        }
    }

    /// Whether it names this topic, by its name or a pattern, instead of taking what is left.
    pub(super) fn names(&self, topic: &str) -> bool {
        match &self.0 {
            Selector::Named(name) => **name == *topic,
            Selector::Glob(pattern) => matches(pattern.as_bytes(), topic.as_bytes()),
            Selector::Others => false,
        }
    }
}

impl<T: AsRef<str> + ?Sized> From<&T> for Topics {
    fn from(name: &T) -> Self {
        Self(Selector::Named(name.as_ref().into()))
    }
}

impl From<String> for Topics {
    fn from(name: String) -> Self {
        Self(Selector::Named(name.into()))
    }
}

impl fmt::Display for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Selector::Named(name) | Selector::Glob(name) => f.write_str(name),
            Selector::Others => f.write_str("all other topics"),
        }
    }
}

/// Matches `*` and `?` without recursion: whenever what follows the last star does not fit, the star takes one more
/// character.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b'?') => (p, t) = (p + 1, t + 1),
            Some(byte) if *byte == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, t) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("orders-*", "orders-eu", true),
            ("orders-*", "orders-", true),
            ("orders-*", "my-orders-eu", false),
            ("*", "", true),
            ("*-eu", "orders-eu-eu", true),
            ("o?ders", "orders", true),
            ("o?ders", "oders", false),
            ("a*b*c", "aXXbYbZc", true),
            ("a*b*c", "aXXbYbZ", false),
            ("orders", "orders", true),
            ("orders", "orders2", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }
}
