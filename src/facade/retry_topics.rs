//! How retry topics are named: after the topic whose records wait in them, and the pause. Pure.

use std::{sync::Arc, time::Duration};

/// Between the name of a topic and the pause of its retry topic.
pub(super) const SEPARATOR: &str = "-retry-";

/// The retry topic of `topic` with this pause, such as `orders-retry-1m`.
pub(super) fn name(topic: &str, pause: Duration) -> Arc<str> {
    format!("{topic}{SEPARATOR}{}", in_words(pause)).into()
}

/// A pause as text, as short as it can be said exactly: `90s`, `1m`, `500ms`.
pub(super) fn in_words(pause: Duration) -> String {
    let ms = pause.as_millis();
    match () {
        () if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        () if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        () if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        () => format!("{ms}ms"),
    }
}

/// The pause that [`in_words`] has written as this text.
pub(super) fn pause_of(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let unit = match unit {
        "h" => 3_600_000,
        "m" => 60_000,
        "s" => 1000,
        "ms" => 1,
        _ => return None,
    };
    let pause = Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(unit)?);
    (in_words(pause) == text).then_some(pause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_reads_as_it_was_written() {
        for ms in [1, 500, 1000, 1500, 60_000, 90_000, 3_600_000, 86_400_000, u64::MAX] {
            let pause = Duration::from_millis(ms);
            assert_eq!(pause_of(&in_words(pause)), Some(pause));
        }
        for text in ["", "m", "1", "01m", "60s", "1000ms", "1d", "-1m", "1m2", "99999999999999999999ms"] {
            assert_eq!(pause_of(text), None, "{text}");
        }
    }
}
