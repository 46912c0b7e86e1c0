//! The environment and `.properties` text as sources of a configuration.

use std::ffi::OsString;

use super::{KafkaConfig, properties, secrecy};
use crate::sorted;

impl KafkaConfig {
    /// `set_from_env` with the variables passed in.
    pub(super) fn set_from_variables(
        mut self,
        prefix: &str,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        // The environment has no order of its own; aliases of one property must not race.
        let mut variables: Vec<_> = variables.into_iter().collect();
        sorted::sort_by(&mut variables, Ord::cmp);
        for (variable, value) in variables {
            let Some(variable) = variable.to_str() else { continue };
            let Some(name) = variable.strip_prefix(prefix).filter(|name| !name.is_empty()) else { continue };
            match (properties::find(name), value.to_str()) {
                (Some(_), Some("")) => {}
                (Some(_), Some(value)) => self = self.set(name, value),
                (Some(_), None) => self.problems.push(format!("the variable {variable} is not UTF-8")),
                (None, _) => {
                    if let Some(nearest) = near_miss(name) {
                        tracing::warn!(
                            variable,
                            nearest,
                            "this variable is not taken: no property has that name, but one nearly"
                        );
                    }
                }
            }
        }
        self
    }
}

/// The property that a variable probably means: at most one letter in four is wrong, two at most.
pub(super) fn near_miss(name: &str) -> Option<&'static str> {
    let (nearest, apart) = properties::nearest_below(name, 3);
    (apart <= 2 && apart * 4 <= name.len()).then_some(nearest)
}

/// Takes every pair of a `.properties` file, in order. What cannot be read is a problem, named by its line alone: it may
/// be a part of a key whose lines were not joined.
pub(super) fn take_properties(config: &mut KafkaConfig, text: &str) {
    // First and last of neighbouring lines without a known name.
    let mut strangers: Option<(usize, usize)> = None;
    for (line, pair) in read_properties(text) {
        let stranger = match pair {
            Ok((name, value)) => {
                let known = config.take(&name, value);
                match secrecy::name(&name) {
                    Some(name) if !known => {
                        let nearest = properties::nearest(name).0;
                        config.problems.push(format!(
                            "line {line} of the properties: {name:?} is not a known property; the nearest known one is \
                             {nearest}"
                        ));
                        false
                    }
                    _ => !known,
                }
            }
            Err(problem) => {
                config.problems.push(problem);
                false
            }
        };
        strangers = match (stranger, strangers) {
            (true, Some((first, _))) => Some((first, line)),
            (true, None) => Some((line, line)),
            (false, Some(lines)) => {
                config.problems.push(strange_lines(lines));
                None
            }
            (false, None) => None,
        };
    }
    config.problems.extend(strangers.map(strange_lines));
}

fn strange_lines((first, last): (usize, usize)) -> String {
    let lines = if first == last { format!("line {first}") } else { format!("lines {first} to {last}") };
    format!(
        "{lines} of the properties: no known property is named there (not repeated: it may be a part of a secret); a value \
         goes on in the next line only after a \\ at the end, and a key can be written in one line with \\n"
    )
}

/// A property's name and value, or what is wrong.
type Pair = Result<(String, String), String>;

/// The pairs of a `.properties` file, in order, each with the number of its first line.
pub(super) fn read_properties(text: &str) -> Vec<(usize, Pair)> {
    let mut pairs = Vec::new();
    // Editors put a byte order mark in front.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n");
    // Java: a line ends with either, or both.
    let mut lines = text.split(['\n', '\r']).zip(1..);
    while let Some((line, number)) = lines.next() {
        let mut line = line.trim_start().to_owned();
        if line.is_empty() || line.starts_with(['#', '!']) {
            continue;
        }
        while ends_with_continuation(&line) {
            line.pop();
            let Some((more, _)) = lines.next() else { break };
            line.push_str(more.trim_start());
        }
        let pair =
            split_pair(&line).ok_or_else(|| format!("line {number} of the properties has a bad \\u escape"));
        pairs.push((number, pair));
    }
    pairs
}

/// An odd number of backslashes at the end joins the next line.
fn ends_with_continuation(line: &str) -> bool {
    line.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 1
}

/// Java: the name ends at the first `=`, `:` or white space that is not escaped.
fn split_pair(line: &str) -> Option<(String, String)> {
    let mut escaped = false;
    let end = line
        .find(|c: char| {
            let ends = !escaped && (matches!(c, '=' | ':') || c.is_whitespace());
            escaped = c == '\\' && !escaped;
            ends
        })
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest).trim_start();
    Some((unescape(name)?, unescape(rest)?))
}

fn unescape(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            plain.push(c);
            continue;
        }
        match chars.next() {
            Some('t') => plain.push('\t'),
            Some('n') => plain.push('\n'),
            Some('r') => plain.push('\r'),
            Some('f') => plain.push('\u{c}'),
            Some('u') => {
                let mut code = 0;
                for _ in 0..4 {
                    code = code * 16 + chars.next()?.to_digit(16)?;
                }
                plain.push(char::from_u32(code)?);
            }
            Some(other) => plain.push(other),
            None => {}
        }
    }
    Some(plain)
}
