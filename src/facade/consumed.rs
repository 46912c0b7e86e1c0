//! Which topics a consumer with handlers consumes: those it names, or all that match a pattern. Pure.

use std::{fmt, sync::Arc};

use crate::{
    error::{Error, ErrorKind, Result},
    pattern::Pattern,
};

#[derive(Debug, Clone)]
pub(super) enum Consumed {
    Named(Arc<[Arc<str>]>),
    Matching {
        /// A regular expression for whole names.
        text: Arc<str>,
        /// `None` where only brokers read it.
        pattern: Option<Arc<Pattern>>,
    },
}

impl Consumed {
    /// These topics.
    pub(super) fn named(topics: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self> {
        let topics: Arc<[Arc<str>]> = topics.into_iter().map(|topic| Arc::from(topic.as_ref())).collect();
        if topics.is_empty() || topics.iter().any(|topic| topic.trim().is_empty()) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "no topic is named, or one with an empty name",
            )
            .with_hint("name the topics to consume"));
        }
        Ok(Self::Named(topics))
    }

    /// All that match. `by_brokers`: this client need not be able to read it.
    pub(super) fn matching(text: &str, by_brokers: bool) -> Result<Self> {
        let pattern = match Pattern::new(text, false) {
            Ok(pattern) => Some(pattern),
            Err(_) if by_brokers => None,
            Err(error) => return Err(error),
        };
        Ok(Self::Matching { text: text.into(), pattern })
    }

    /// Whether it is known to consume this topic.
    pub(super) fn takes(&self, topic: &str) -> bool {
        match self {
            Self::Named(names) => names.iter().any(|name| **name == *topic),
            Self::Matching { pattern, .. } => pattern.as_ref().is_some_and(|own| own.takes(topic, false)),
        }
    }

    /// Whether it is known that it never consumes this topic.
    pub(super) fn excludes(&self, topic: &str) -> bool {
        match self {
            Self::Matching { pattern: None, .. } => false,
            _ => !self.takes(topic),
        }
    }
}

impl fmt::Display for Consumed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(names) => write!(f, "its topics are {}", names.join(", ")),
            Self::Matching { text, .. } => write!(f, "its topics are those that match {text}"),
        }
    }
}
