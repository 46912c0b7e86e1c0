//! Numbers as Prometheus reads them: its text format, version 0.0.4.

use std::{
    fmt::{Display, Write as _},
    time::Duration,
};

/// The numbers of one client.
pub(crate) struct Page {
    text: String,
    labels: String,
}

impl Page {
    /// With these labels at each number.
    pub(crate) fn new(labels: &[(&str, &str)]) -> Self {
        let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<_> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        Self { text: String::new(), labels: labels.join(",") }
    }

    pub(crate) fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.number("counter", name, help, value);
    }

    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.number("gauge", name, help, value);
    }

    fn number(&mut self, kind: &str, name: &str, help: &str, value: impl Display) {
        let Self { text, labels } = self;
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{{{labels}}} {value}");
    }

    /// Counts of durations by the upper bounds of their classes; the last has none. `sum`: of all of them, where it is known.
    pub(crate) fn histogram(
        &mut self,
        name: &str,
        help: &str,
        classes: impl Iterator<Item = (Option<Duration>, u64)>,
        sum: Option<Duration>,
    ) {
        let Self { text, labels } = self;
        let comma = if labels.is_empty() { "" } else { "," };
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut below = 0;
        for (bound, count) in classes {
            below += count;
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.as_secs_f64().to_string());
            let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}");
        }
        if let Some(sum) = sum {
            let _ = writeln!(text, "{name}_sum{{{labels}}} {}", sum.as_secs_f64());
        }
        let _ = writeln!(text, "{name}_count{{{labels}}} {below}");
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }
}
