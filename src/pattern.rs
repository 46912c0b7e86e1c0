//! Topics by a regular expression, as the client matches it. Owns its reading and what of a cluster it takes.
//!
//! The whole name must match, as in Java and with the brokers' own patterns (KIP-848). It must never take an internal topic
//! that `exclude.internal.topics` leaves out.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};

/// A regular expression for the names of topics.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// Internal topics count as well (`exclude.internal.topics=false`).
    with_internal: bool,
    whole: Whole,
}

impl Pattern {
    /// Reads it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`], with the pattern, if it is none; [`ErrorKind::Unsupported`] in a build without the
    /// feature `pattern`.
    pub(crate) fn new(text: &str, with_internal: bool) -> Result<Arc<Self>> {
        let whole = Whole::new(text)?;
        Ok(Arc::new(Self { with_internal, whole }))
    }

    pub(crate) fn takes(&self, topic: &str, is_internal: bool) -> bool {
        (self.with_internal || !is_internal) && self.whole.matches(topic)
    }
}

/// Why a pattern cannot be used.
pub(crate) fn invalid(text: &str, why: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("'{text}' is no pattern for topics: {why}"))
}

#[cfg(feature = "pattern")]
#[derive(Debug)]
struct Whole(regex_lite::Regex);

#[cfg(feature = "pattern")]
impl PartialEq for Whole {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

#[cfg(feature = "pattern")]
impl Eq for Whole {}

#[cfg(feature = "pattern")]
impl Whole {
    fn new(text: &str) -> Result<Self> {
        let read = |text: &str| regex_lite::Regex::new(text);
        let wrong = |error: regex_lite::Error| {
            invalid(text, &error.to_string())
                .with_hint("patterns are regular expressions without look-around and back-references")
        };
        // By itself first: put into a group, `a)(b` would be one.
        read(text).map_err(wrong)?;
        read(&format!("^(?:{text})$")).map(Self).map_err(wrong)
    }

    fn matches(&self, topic: &str) -> bool {
        self.0.is_match(topic)
    }
}

#[cfg(not(feature = "pattern"))]
#[derive(Debug, PartialEq, Eq)]
struct Whole;

#[cfg(not(feature = "pattern"))]
impl Whole {
    fn new(text: &str) -> Result<Self> {
        Err(Error::new(ErrorKind::Unsupported, format!("topics cannot be matched with '{text}' in this build"))
            .with_hint("build dtkafka with its feature pattern, or leave the matching to brokers (group.protocol=consumer)"))
    }

    fn matches(&self, _topic: &str) -> bool {
        false
    }
}

#[cfg(all(test, feature = "pattern"))]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Result<Arc<Pattern>> {
        Pattern::new(text, false)
    }

    #[test]
    fn the_whole_name_must_match_whatever_alternatives_there_are() {
        let cases = [
            ("orders", "orders", true),
            ("orders", "orders-eu", false),
            ("orders", "my-orders", false),
            ("orders.*", "orders-eu", true),
            ("a|ab", "ab", true),
            ("a|ab", "abc", false),
            ("(eu|us)-[0-9]+", "eu-17", true),
            ("(eu|us)-[0-9]+", "eu-", false),
            ("(?i)ORDERS", "orders", true),
        ];
        for (text, topic, expected) in cases {
            assert_eq!(pattern(text).unwrap().takes(topic, false), expected, "{text} {topic}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_an_error_that_names_it() {
        for text in ["orders-(", "a)(b", "[z-a]", "*", "(?=x)"] {
            let error = pattern(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().contains(&format!("'{text}'")), "{error}");
        }
    }

    #[test]
    fn internal_topics_are_taken_only_where_that_is_wanted() {
        let takes =
            |with_internal| Pattern::new(".*", with_internal).unwrap().takes("__consumer_offsets", true);
        assert_eq!((takes(false), takes(true)), (false, true));
    }
}
