//! Durations as ISO 8601 and Java's `Duration.parse` write them: `P7D`, `PT12H`, `P1DT2H30M4.5S`. No months or years, whose
//! lengths vary, and nothing negative. Pure.

use std::time::Duration;

/// `None` where the text is no such duration, or beyond what a `Duration` holds.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let text = text.strip_prefix(['P', 'p'])?;
    let (days, time) = match text.split_once(['T', 't']) {
        // A `T` with nothing behind it is no time.
        Some((_, "")) => return None,
        Some((days, time)) => (days, time),
        None => (text, ""),
    };
    let mut total = Duration::ZERO;
    let mut parts = 0;
    for (part, units) in [(days, &[('D', 86_400)][..]), (time, &[('H', 3_600), ('M', 60), ('S', 1)])] {
        let mut units = units.iter();
        let mut rest = part;
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let (number, tail) = rest.split_at(end);
            let mut chars = tail.chars();
            let name = chars.next()?.to_ascii_uppercase();
            // In this order, each once.
            let (_, seconds) = units.find(|(unit, _)| *unit == name)?;
            total = total.checked_add(amount(number, *seconds)?)?;
            rest = chars.as_str();
            parts += 1;
        }
    }
    (parts > 0).then_some(total)
}

fn amount(number: &str, seconds: u64) -> Option<Duration> {
    let (whole, fraction) =
        number.split_once('.').map_or((number, None), |(whole, rest)| (whole, Some(rest)));
    let nanos = match fraction {
        None => 0,
        Some(digits) if seconds == 1 && (1..=9).contains(&digits.len()) => {
            format!("{digits:0<9}").parse::<u32>().ok()?
        }
        Some(_) => return None,
    };
    Some(Duration::new(whole.parse::<u64>().ok()?.checked_mul(seconds)?, nanos))
}

/// As [`parse`] reads it.
pub(crate) fn format(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    let parts = [(seconds / 86_400, 'D'), (seconds / 3_600 % 24, 'H'), (seconds / 60 % 60, 'M')];
    let part = |(number, unit): &(u64, char)| match number {
        0 => String::new(),
        _ => format!("{number}{unit}"),
    };
    let days = part(&parts[0]);
    let mut time: String = parts[1..].iter().map(part).collect();
    if nanos > 0 {
        time += &format!("{}.{}S", seconds % 60, format!("{nanos:09}").trim_end_matches('0'));
    } else if seconds % 60 > 0 || (days.is_empty() && time.is_empty()) {
        time += &format!("{}S", seconds % 60);
    }
    if time.is_empty() { format!("P{days}") } else { format!("P{days}T{time}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_exactly_and_written_as_they_are_read() {
        for (text, seconds, nanos) in [
            ("P7D", 604_800, 0),
            ("PT12H", 43_200, 0),
            ("P1DT2H30M4.5S", 86_400 + 9_000 + 4, 500_000_000),
            ("PT0S", 0, 0),
            ("PT0.000000001S", 0, 1),
            ("PT59M", 3_540, 0),
        ] {
            let duration = Duration::new(seconds, nanos);
            assert_eq!(parse(text), Some(duration), "{text}");
            assert_eq!(format(duration), text);
        }
        assert_eq!(parse("pt90m"), Some(Duration::from_secs(5_400)));
        assert_eq!(format(Duration::from_secs(5_400)), "PT1H30M");
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "P",
            "PT",
            "P1DT",
            "1D",
            "P1",
            "PD",
            "P1M",
            "P1Y",
            "P1W",
            "P-1D",
            "-P1D",
            "PT1M1H",
            "PT1H1H",
            "PT1.5H",
            "PT.5S",
            "PT1.S",
            "PT1.0123456789S",
            "P99999999999999999999D",
            "P213503982334602D",
            "PT1H ",
            "P1DT1D",
            "PTS",
            "P1ä",
            "PT1S1M",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
