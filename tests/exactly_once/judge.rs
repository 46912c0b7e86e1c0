//! What a reader saw of the copy, and what of it must never be. Pure: no clients.

use std::collections::BTreeMap;

/// A record of the copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) partition: i32,
    pub(crate) key: String,
    pub(crate) value: u64,
}

impl Seen {
    /// Of `partition<TAB>key<TAB>value`.
    pub(crate) fn parse(line: &str) -> Self {
        let words: Vec<&str> = line.split('\t').collect();
        let [partition, key, value] = words[..] else { panic!("no record: {line}") };
        Self { partition: partition.parse().unwrap(), key: key.to_owned(), value: value.parse().unwrap() }
    }
}

/// All that one reader saw, in its order.
#[derive(Debug)]
pub(crate) struct Judge {
    /// How often each value was seen.
    times: Vec<u8>,
    /// Of each key: its partition and the last value.
    last: BTreeMap<String, (i32, u64)>,
    wrong: Vec<String>,
}

impl Judge {
    /// The copy has the values from 0 to `records`.
    pub(crate) fn new(records: u64) -> Self {
        let times = vec![0; usize::try_from(records).unwrap()];
        Self { times, last: BTreeMap::new(), wrong: Vec::new() }
    }

    pub(crate) fn saw(&mut self, seen: Seen) {
        match self.times.get_mut(usize::try_from(seen.value).unwrap()) {
            Some(times) => *times = times.saturating_add(1),
            None => self.wrong.push(format!("invented: {seen:?}")),
        }
        let (partition, value) = (seen.partition, seen.value);
        if let Some((place, last)) = self.last.insert(seen.key.clone(), (partition, value)) {
            if place != partition {
                self.wrong.push(format!("moved: {seen:?} after partition {place}"));
            } else if last > value {
                self.wrong.push(format!("reordered: {seen:?} after {last}"));
            }
        }
    }

    fn violations(mut self) -> Vec<String> {
        for (value, times) in self.times.iter().enumerate() {
            match times {
                0 => self.wrong.push(format!("lost: {value}")),
                1 => {}
                _ => self.wrong.push(format!("doubled: {value} is there {times} times")),
            }
        }
        self.wrong
    }

    /// Fails with what is wrong.
    pub(crate) fn end(self, reader: &str) {
        let wrong = self.violations();
        let shown: Vec<&String> = wrong.iter().take(20).collect();
        assert!(wrong.is_empty(), "{reader} view: {} violations, the first: {shown:#?}", wrong.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(seen: &[(i32, &str, u64)]) -> Vec<String> {
        let mut judge = Judge::new(3);
        for (partition, key, value) in seen {
            judge.saw(Seen { partition: *partition, key: (*key).to_owned(), value: *value });
        }
        judge.violations().iter().map(|text| text.split(':').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn each_wrong_of_a_copy_is_called_by_its_name() {
        assert!(judged(&[(0, "a", 0), (1, "b", 1), (0, "a", 2)]).is_empty());
        assert_eq!(judged(&[(0, "a", 0), (1, "b", 1)]), ["lost"]);
        assert_eq!(judged(&[(0, "a", 0), (1, "b", 1), (1, "b", 1), (0, "a", 2)]), ["doubled"]);
        assert_eq!(judged(&[(0, "a", 2), (1, "b", 1), (0, "a", 0)]), ["reordered"]);
        assert_eq!(judged(&[(0, "a", 0), (1, "b", 1), (2, "a", 2)]), ["moved"]);
        assert_eq!(judged(&[(0, "a", 0), (1, "b", 1), (0, "a", 2), (0, "a", 3)]), ["invented"]);
        assert_eq!(Seen::parse("3\tk\t7"), Seen { partition: 3, key: "k".into(), value: 7 });
    }
}
