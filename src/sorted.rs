//! Maps and sets over sorted vectors, and the one sort that all types share.
//!
//! They are what small state is kept in: same order and same results as a `BTreeMap`, of which each further pair of types costs
//! some 7,000 lines of LLVM's code and so seconds of every build. A pair costs a tenth of that here.
//!
//! They must never hold what can be large and changes one by one, at random or from its front, because each insertion and removal
//! moves all that is behind it: lanes, for instance, or the partitions of a consumer, are in a `BTreeMap`.

use std::{borrow::Borrow, cmp::Ordering, fmt, ops::Index, slice, vec};

/// A `BTreeMap` for few entries, or for those that come in order. Collecting and extending sort once.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Map<K, V>(Vec<(K, V)>);

impl<K, V> Map<K, V> {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn iter(&self) -> Entries<'_, K, V> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    pub(crate) fn iter_mut(&mut self) -> EntriesMut<'_, K, V> {
        self.0.iter_mut().map(|(key, value)| (&*key, value))
    }

    pub(crate) fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + ExactSizeIterator {
        self.0.iter().map(|(key, _)| key)
    }

    pub(crate) fn values(&self) -> impl DoubleEndedIterator<Item = &V> + ExactSizeIterator {
        self.0.iter().map(|(_, value)| value)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    pub(crate) fn into_keys(self) -> impl ExactSizeIterator<Item = K> {
        self.0.into_iter().map(|(key, _)| key)
    }

    pub(crate) fn into_values(self) -> impl ExactSizeIterator<Item = V> {
        self.0.into_iter().map(|(_, value)| value)
    }

    pub(crate) fn retain(&mut self, mut keeps: impl FnMut(&K, &mut V) -> bool) {
        self.0.retain_mut(|(key, value)| keeps(key, value));
    }
}

impl<K: Ord, V> Map<K, V> {
    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> Result<usize, usize>
    where
        K: Borrow<Q>,
    {
        self.0.binary_search_by(|(has, _)| has.borrow().cmp(key))
    }

    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.find(key).ok().map(|at| &self.0[at].1)
    }

    pub(crate) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.find(key).ok().map(|at| &mut self.0[at].1)
    }

    pub(crate) fn get_key_value<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        self.find(key).ok().map(|at| (&self.0[at].0, &self.0[at].1))
    }

    pub(crate) fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.find(key).is_ok()
    }

    /// The value that stood there before. The key that stands there stays.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, value)),
            Err(at) => {
                self.0.insert(at, (key, value));
                None
            }
        }
    }

    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.find(key).ok().map(|at| self.0.remove(at).1)
    }

    /// Sorts entries that were added in any order behind the first `sorted` ones. Of entries with the same key the last
    /// stays.
    fn settle(&mut self, sorted: usize) {
        let compare = |a: &(K, V), b: &(K, V)| a.0.cmp(&b.0);
        if sort(sorted, self.0.len(), &mut Items { items: &mut self.0, compare }) {
            for entry in std::mem::take(&mut self.0) {
                match self.0.last_mut() {
                    Some(last) if last.0 == entry.0 => *last = entry,
                    _ => self.0.push(entry),
                }
            }
        }
    }

    pub(crate) fn entry(&mut self, key: K) -> Entry<'_, K, V> {
        Entry { place: self.find(&key), key, entries: &mut self.0 }
    }
}

/// The place of a key, whether it is there or not.
pub(crate) struct Entry<'a, K, V> {
    place: Result<usize, usize>,
    key: K,
    entries: &'a mut Vec<(K, V)>,
}

impl<'a, K, V> Entry<'a, K, V> {
    pub(crate) fn or_insert(self, value: V) -> &'a mut V {
        let (Ok(at) | Err(at)) = self.place;
        if self.place.is_err() {
            self.entries.insert(at, (self.key, value));
        }
        &mut self.entries[at].1
    }

    pub(crate) fn or_insert_with(self, value: impl FnOnce() -> V) -> &'a mut V {
        match self.place {
            Ok(at) => &mut self.entries[at].1,
            Err(_) => self.or_insert(value()),
        }
    }

    pub(crate) fn or_default(self) -> &'a mut V
    where
        V: Default,
    {
        self.or_insert_with(V::default)
    }
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl<K: Ord + Borrow<Q>, V, Q: Ord + ?Sized> Index<&Q> for Map<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        // For a key that is not there, the index is out of range.
        &self.0[self.find(key).unwrap_or(usize::MAX)].1
    }
}

/// Of entries with the same key the last stays.
impl<K: Ord, V> FromIterator<(K, V)> for Map<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self(entries.into_iter().collect());
        map.settle(0);
        map
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for Map<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

/// Sorts once, so that many may come in any order; what comes behind the last key costs no more than itself.
impl<K: Ord, V> Extend<(K, V)> for Map<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        let sorted = self.0.len();
        self.0.extend(entries);
        self.settle(sorted);
    }
}

impl<K, V> IntoIterator for Map<K, V> {
    type Item = (K, V);
    type IntoIter = vec::IntoIter<(K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// What [`Map::iter`] gives.
pub(crate) type Entries<'a, K, V> = std::iter::Map<slice::Iter<'a, (K, V)>, fn(&'a (K, V)) -> (&'a K, &'a V)>;

/// What [`Map::iter_mut`] gives.
pub(crate) type EntriesMut<'a, K, V> =
    std::iter::Map<slice::IterMut<'a, (K, V)>, fn(&'a mut (K, V)) -> (&'a K, &'a mut V)>;

impl<'a, K, V> IntoIterator for &'a Map<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Entries<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a, K, V> IntoIterator for &'a mut Map<K, V> {
    type Item = (&'a K, &'a mut V);
    type IntoIter = EntriesMut<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

/// A `BTreeSet` for few items, or for those that come in order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Set<T>(Vec<T>);

impl<T> Set<T> {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn iter(&self) -> slice::Iter<'_, T> {
        self.0.iter()
    }

    pub(crate) fn retain(&mut self, keeps: impl FnMut(&T) -> bool) {
        self.0.retain(keeps);
    }
}

impl<T: Ord> Set<T> {
    fn find<Q: Ord + ?Sized>(&self, item: &Q) -> Result<usize, usize>
    where
        T: Borrow<Q>,
    {
        self.0.binary_search_by(|has| has.borrow().cmp(item))
    }

    pub(crate) fn contains<Q: Ord + ?Sized>(&self, item: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.find(item).is_ok()
    }

    /// False if it stood there already.
    pub(crate) fn insert(&mut self, item: T) -> bool {
        let place = self.find(&item).err();
        if let Some(at) = place {
            self.0.insert(at, item);
        }
        place.is_some()
    }

    /// Sorts items that were added in any order behind the first `sorted` ones.
    fn settle(&mut self, sorted: usize) {
        if sort(sorted, self.0.len(), &mut Items { items: &mut self.0, compare: T::cmp }) {
            self.0.dedup();
        }
    }

    /// False if it did not stand there.
    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, item: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.find(item).map(|at| self.0.remove(at)).is_ok()
    }
}

impl<T> Default for Set<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: fmt::Debug> fmt::Debug for Set<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self).finish()
    }
}

impl<T: Ord> FromIterator<T> for Set<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut set = Self(items.into_iter().collect());
        set.settle(0);
        set
    }
}

/// As that of a map.
impl<T: Ord> Extend<T> for Set<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, items: I) {
        let sorted = self.0.len();
        self.0.extend(items);
        self.settle(sorted);
    }
}

impl<T> IntoIterator for Set<T> {
    type Item = T;
    type IntoIter = vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a Set<T> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// As `slice::sort_by`: equal items stay in their order. All types share the code, which sorts places.
pub(crate) fn sort_by<T>(items: &mut [T], compare: impl Fn(&T, &T) -> Ordering) {
    sort(0, items.len(), &mut Items { items, compare });
}

/// Items, as far as sorting is concerned.
trait Places {
    fn compare(&self, a: usize, b: usize) -> Ordering;

    fn swap(&mut self, a: usize, b: usize);
}

struct Items<'a, T, C> {
    items: &'a mut [T],
    compare: C,
}

impl<T, C: Fn(&T, &T) -> Ordering> Places for Items<'_, T, C> {
    fn compare(&self, a: usize, b: usize) -> Ordering {
        (self.compare)(&self.items[a], &self.items[b])
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.items.swap(a, b);
    }
}

/// True if some are equal. The first `sorted` are in order, and differ. Takes no memory for what is sorted already.
fn sort(sorted: usize, len: usize, places: &mut dyn Places) -> bool {
    let follows =
        |places: &dyn Places, from: usize| (from.max(1)..len).map(|at| places.compare(at - 1, at)).max();
    let mut most = follows(&*places, sorted);
    if most == Some(Ordering::Greater) {
        let mut order: Vec<usize> = (0..len).collect();
        order.sort_unstable_by(|a, b| places.compare(*a, *b).then(a.cmp(b)));
        arrange(order, places);
        most = follows(&*places, 0);
    }
    most == Some(Ordering::Equal)
}

/// Moves everything to its place, one cycle of the permutation after the other. `order`: for each place, where its item
/// stands.
fn arrange(mut order: Vec<usize>, places: &mut dyn Places) {
    for start in 0..order.len() {
        let mut place = start;
        loop {
            let from = std::mem::replace(&mut order[place], place);
            if from == start {
                break;
            }
            places.swap(place, from);
            place = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Change {
        Insert(u8, i32),
        Remove(u8),
        Add(u8, i32),
        Retain(u8),
        Extend(Vec<(u8, i32)>),
        Collect(Vec<(u8, i32)>),
        Clear,
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let entries = || proptest::collection::vec((0_u8..40, any::<i32>()), 0..60);
        proptest::collection::vec(
            prop_oneof![
                8 => (0_u8..40, any::<i32>()).prop_map(|(key, value)| Change::Insert(key, value)),
                6 => (0_u8..40).prop_map(Change::Remove),
                4 => (0_u8..40, any::<i32>()).prop_map(|(key, value)| Change::Add(key, value)),
                2 => (1_u8..5).prop_map(Change::Retain),
                1 => entries().prop_map(Change::Extend),
                1 => entries().prop_map(Change::Collect),
                1 => Just(Change::Clear),
            ],
            0..60,
        )
    }

    proptest! {
        #[test]
        fn a_map_does_what_a_btree_map_does(changes in changes()) {
            let (mut map, mut tree) = (Map::new(), BTreeMap::new());
            for change in changes {
                match change {
                    Change::Insert(key, value) => prop_assert_eq!(map.insert(key, value), tree.insert(key, value)),
                    Change::Remove(key) => prop_assert_eq!(map.remove(&key), tree.remove(&key)),
                    Change::Add(key, value) => {
                        let (ours, theirs) = (map.entry(key).or_default(), tree.entry(key).or_insert(0));
                        *ours = ours.wrapping_add(value);
                        *theirs = theirs.wrapping_add(value);
                    }
                    Change::Retain(keeps) => {
                        map.retain(|key, value| key % keeps == 0 || *value < 0);
                        tree.retain(|key, value| key % keeps == 0 || *value < 0);
                    }
                    Change::Extend(entries) => {
                        map.extend(entries.clone());
                        tree.extend(entries);
                    }
                    Change::Collect(entries) => {
                        map = entries.iter().copied().collect();
                        tree = entries.into_iter().collect();
                    }
                    Change::Clear => {
                        map.clear();
                        tree.clear();
                    }
                }
                prop_assert!(map.iter().eq(&tree) && map.iter_mut().eq(&mut tree));
                prop_assert!(map.keys().eq(tree.keys()) && map.values().eq(tree.values()));
                prop_assert_eq!(format!("{map:?}"), format!("{tree:?}"));
                prop_assert_eq!((map.len(), map.is_empty()), (tree.len(), tree.is_empty()));
                for key in 0..40 {
                    prop_assert_eq!(map.get(&key), tree.get(&key));
                    prop_assert_eq!(map.get_key_value(&key), tree.get_key_value(&key));
                    prop_assert_eq!(map.get_mut(&key), tree.get_mut(&key));
                    prop_assert_eq!(map.contains_key(&key), tree.contains_key(&key));
                }
            }
            prop_assert!(map.into_iter().eq(tree));
        }

        #[test]
        fn a_set_does_what_a_btree_set_does(changes in changes()) {
            let (mut set, mut tree) = (Set::new(), BTreeSet::new());
            for change in changes {
                match change {
                    Change::Insert(item, _) | Change::Add(item, _) => {
                        prop_assert_eq!(set.insert(item), tree.insert(item));
                    }
                    Change::Remove(item) => prop_assert_eq!(set.remove(&item), tree.remove(&item)),
                    Change::Retain(keeps) => {
                        set.retain(|item| item % keeps == 0);
                        tree.retain(|item| item % keeps == 0);
                    }
                    Change::Extend(items) => {
                        set.extend(items.iter().map(|(item, _)| *item));
                        tree.extend(items.iter().map(|(item, _)| *item));
                    }
                    Change::Collect(items) => {
                        set = items.iter().map(|(item, _)| *item).collect();
                        tree = items.iter().map(|(item, _)| *item).collect();
                    }
                    Change::Clear => {
                        set.clear();
                        tree.clear();
                    }
                }
                prop_assert!(set.iter().eq(&tree));
                prop_assert_eq!((set.len(), set.is_empty()), (tree.len(), tree.is_empty()));
                prop_assert_eq!(format!("{set:?}"), format!("{tree:?}"));
                for item in 0..40 {
                    prop_assert_eq!(set.contains(&item), tree.contains(&item));
                }
            }
            prop_assert!(set.into_iter().eq(tree));
        }

        #[test]
        fn it_sorts_as_the_standard_library_does(items in proptest::collection::vec((0_u8..9, any::<u8>()), 0..200)) {
            let (mut ours, mut theirs) = (items.clone(), items);
            sort_by(&mut ours, |a, b| a.0.cmp(&b.0));
            theirs.sort_by_key(|item| item.0);
            prop_assert_eq!(ours, theirs);
        }
    }

    /// Counts how often it is compared.
    #[derive(Debug, Clone)]
    struct Counted<'a>(u32, &'a std::cell::Cell<usize>);

    impl PartialEq for Counted<'_> {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other).is_eq()
        }
    }

    impl Eq for Counted<'_> {}

    impl PartialOrd for Counted<'_> {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    impl Ord for Counted<'_> {
        fn cmp(&self, other: &Self) -> Ordering {
            self.1.set(self.1.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    #[test]
    fn what_comes_in_order_one_by_one_costs_no_more_than_itself() {
        let count = std::cell::Cell::new(0);
        let (mut map, mut set) = (Map::new(), Set::new());
        for number in 0..10_000 {
            map.extend([(Counted(number, &count), ())]);
            set.extend([Counted(number, &count)]);
        }
        let (even, odd): (Map<_, _>, Map<_, _>) = map.into_iter().partition(|(key, ())| key.0 % 2 == 0);
        assert_eq!((even.len(), odd.len(), set.len()), (5000, 5000, 10_000));
        assert!(count.get() < 40_000, "{} comparisons", count.get());
    }
}
