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

/// The pattern without the `$` at the end of its alternatives, which are needless since whole names must match, so that
/// something can be appended to it. `None` if it has other such anchors, so that nothing can be.
pub(crate) fn without_end(text: &str) -> Option<String> {
    let mut kept = String::with_capacity(text.len());
    // Groups, and classes of characters, that are open.
    let (mut groups, mut classes) = (0_usize, 0_usize);
    let mut rest = text.chars().peekable();
    while let Some(sign) = rest.next() {
        match sign {
            '\\' => {
                let escaped = rest.next()?;
                if matches!(escaped, 'z' | 'Z' | 'Q') {
                    return None;
                }
                kept.extend([sign, escaped]);
                continue;
            }
            '[' => {
                classes += 1;
                kept.push(sign);
                // In the first place of a class a `]` stands for itself.
                kept.extend(rest.next_if_eq(&'^'));
                kept.extend(rest.next_if_eq(&']'));
                continue;
            }
            ']' => classes = classes.saturating_sub(1),
            '(' if classes == 0 => groups += 1,
            ')' if classes == 0 => groups = groups.saturating_sub(1),
            '$' if classes == 0 && groups == 0 && matches!(rest.peek(), None | Some('|')) => continue,
            '$' if classes == 0 => return None,
            _ => {}
        }
        kept.push(sign);
    }
    (classes == 0).then_some(kept)
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
        // Read by itself first: within a group, `a)(b` would pass as a pattern.
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
    fn something_can_be_put_behind_a_pattern_whose_alternatives_end_with_an_anchor() {
        let cases = [
            ("orders", Some("orders")),
            ("^orders-[a-z]{2}$", Some("^orders-[a-z]{2}")),
            ("a$|^b$", Some("a|^b")),
            (r"orders\$", Some(r"orders\$")),
            ("orders[$]", Some("orders[$]")),
            ("[]$]x$", Some("[]$]x")),
            ("[^]$]x$", Some("[^]$]x")),
            ("[[:alpha:]$]", Some("[[:alpha:]$]")),
            ("(a|b)$", Some("(a|b)")),
            ("(a$|b)", None),
            (r"orders\z", None),
            ("a$b", None),
            ("", Some("")),
        ];
        for (text, expected) in cases {
            assert_eq!(without_end(text).as_deref(), expected, "{text}");
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
