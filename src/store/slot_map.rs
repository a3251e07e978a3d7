//! Where each chunk of a snapshot is, for the read path.
//!
//! A [`SlotMap`] is the whole view of one snapshot: its own rows over those of its predecessors.
//! It is a radix tree of shared pages, so a thousand snapshots of a large volume cost what their
//! differences cost, and a clone costs one reference. Reactors read it without a lock: a map that
//! is shared is never changed, [`SlotMap::insert`] copies the pages on its path that are.

use std::{fmt, sync::Arc};

use crate::{
    engine::records::{SlotIndex, SlotRef},
    gate::ChunkIndex,
};

/// Entries per page. 64 entries of 8 bytes: a change copies 512 bytes per level, four levels
/// reach 16 Mi chunks (4 TiB of 256 KiB chunks).
const FANOUT: usize = 64;
const FANOUT_BITS: u32 = FANOUT.trailing_zeros();

/// Highest number that a slot may have: two entry values are taken.
pub const SLOT_INDEX_MAX: u32 = u32::MAX - 2;

/// A leaf entry: 0 is absent, 1 is all zeros, else slot + 2 in the high and the checksum in the low
/// half.
type Entry = u64;
const ABSENT: Entry = 0;
const ZERO: Entry = 1;

fn encode(slot_ref: SlotRef) -> Entry {
    match slot_ref {
        SlotRef::Zero => ZERO,
        SlotRef::Slot { slot, crc32c } => {
            assert!(slot.0 <= SLOT_INDEX_MAX, "slot {} is behind the last possible", slot.0);
            u64::from(slot.0 + 2) << 32 | u64::from(crc32c)
        }
    }
}

fn decode(entry: Entry) -> Option<SlotRef> {
    match entry {
        ABSENT => None,
        ZERO => Some(SlotRef::Zero),
        _ => {
            Some(SlotRef::Slot { slot: SlotIndex((entry >> 32) as u32 - 2), crc32c: entry as u32 })
        }
    }
}

#[derive(Clone)]
enum Page {
    Leaf([Entry; FANOUT]),
    Inner([Option<Arc<Page>>; FANOUT]),
}

impl Page {
    fn empty(level: u32) -> Arc<Page> {
        Arc::new(if level == 0 {
            Page::Leaf([ABSENT; FANOUT])
        } else {
            Page::Inner([const { None }; FANOUT])
        })
    }
}

/// A persistent map from chunk to slot; see the module.
#[derive(Clone)]
pub struct SlotMap {
    root: Arc<Page>,
    /// Levels above the leaves.
    height: u32,
    chunk_count: u32,
    /// Entries that are not absent.
    entry_count: u32,
}

impl fmt::Debug for SlotMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotMap")
            .field("chunk_count", &self.chunk_count)
            .field("entry_count", &self.entry_count)
            .finish_non_exhaustive()
    }
}

fn index_at(chunk: ChunkIndex, level: u32) -> usize {
    (chunk.0 >> (level * FANOUT_BITS)) as usize % FANOUT
}

impl SlotMap {
    /// An empty map for a volume of `chunk_count` chunks.
    pub fn new(chunk_count: u32) -> Self {
        let last = chunk_count.saturating_sub(1);
        let height = last.checked_ilog2().map_or(0, |bits| bits / FANOUT_BITS);
        SlotMap { root: Page::empty(height), height, chunk_count, entry_count: 0 }
    }

    /// Chunks of the volume.
    pub fn chunk_count(&self) -> u32 {
        self.chunk_count
    }

    /// Chunks that have an entry.
    pub fn entry_count(&self) -> u32 {
        self.entry_count
    }

    /// Where the chunk is; `None` where no row of the chain names it, or behind the volume's end.
    /// No allocation, no lock, one step per level.
    #[inline]
    pub fn get(&self, chunk: ChunkIndex) -> Option<SlotRef> {
        if chunk.0 >= self.chunk_count {
            return None;
        }
        let mut page = &*self.root;
        let mut level = self.height;
        loop {
            match page {
                Page::Leaf(entries) => return decode(entries[index_at(chunk, 0)]),
                Page::Inner(children) => {
                    page = children[index_at(chunk, level)].as_deref()?;
                    level -= 1;
                }
            }
        }
    }

    /// Sets where the chunk is and returns what was there. Pages on the path that another map
    /// shares are copied. Panics on a chunk behind the volume's end.
    pub fn insert(&mut self, chunk: ChunkIndex, slot_ref: SlotRef) -> Option<SlotRef> {
        let old = self.replace(chunk, encode(slot_ref));
        self.entry_count += u32::from(old.is_none());
        old
    }

    /// Makes the chunk absent and returns what was there. Panics on a chunk behind the volume's
    /// end.
    pub fn remove(&mut self, chunk: ChunkIndex) -> Option<SlotRef> {
        self.get(chunk)?;
        let old = self.replace(chunk, ABSENT);
        self.entry_count -= 1;
        old
    }

    fn replace(&mut self, chunk: ChunkIndex, entry: Entry) -> Option<SlotRef> {
        assert!(chunk.0 < self.chunk_count, "chunk {} of {}", chunk.0, self.chunk_count);
        let mut page = Arc::make_mut(&mut self.root);
        let mut level = self.height;
        loop {
            match page {
                Page::Leaf(entries) => {
                    let place = &mut entries[index_at(chunk, 0)];
                    return decode(std::mem::replace(place, entry));
                }
                Page::Inner(children) => {
                    let child = children[index_at(chunk, level)]
                        .get_or_insert_with(|| Page::empty(level - 1));
                    page = Arc::make_mut(child);
                    level -= 1;
                }
            }
        }
    }

    /// All entries, by chunk.
    pub fn iter(&self) -> Iter<'_> {
        self.iter_from(ChunkIndex(0))
    }

    /// The entries of `first` and later chunks, by chunk. Absent parts cost one step per page.
    pub fn iter_from(&self, first: ChunkIndex) -> Iter<'_> {
        Iter { map: self, next: Some(first.0) }
    }

    /// Bytes of the pages that this map alone holds, and of those that it shares.
    pub fn memory_bytes(&self) -> MapMemory {
        fn add(page: &Arc<Page>, shared_above: bool, memory: &mut MapMemory) {
            let shared = shared_above || Arc::strong_count(page) > 1;
            let bytes = (size_of::<Page>() + 2 * size_of::<usize>()) as u64;
            *(if shared { &mut memory.shared } else { &mut memory.own }) += bytes;
            if let Page::Inner(children) = &**page {
                for child in children.iter().flatten() {
                    add(child, shared, memory);
                }
            }
        }
        let mut memory = MapMemory::default();
        add(&self.root, false, &mut memory);
        memory
    }

    /// The first chunk at or behind `chunk` that has an entry.
    fn next_entry(&self, chunk: u32) -> Option<(ChunkIndex, SlotRef)> {
        let mut chunk = u64::from(chunk);
        'from_root: while chunk < u64::from(self.chunk_count) {
            let mut page = &*self.root;
            let mut level = self.height;
            loop {
                let here = index_at(ChunkIndex(chunk as u32), level);
                match page {
                    Page::Leaf(entries) => {
                        for (skipped, entry) in (0u64..).zip(&entries[here..]) {
                            if let Some(slot_ref) = decode(*entry) {
                                return Some((ChunkIndex((chunk + skipped) as u32), slot_ref));
                            }
                        }
                        chunk = (chunk | (FANOUT as u64 - 1)) + 1;
                        continue 'from_root;
                    }
                    Page::Inner(children) => {
                        let span_bits = level * FANOUT_BITS;
                        let Some(child) = children[here].as_deref() else {
                            chunk = ((chunk >> span_bits) + 1) << span_bits;
                            continue 'from_root;
                        };
                        page = child;
                        level -= 1;
                    }
                }
            }
        }
        None
    }
}

/// Memory that the pages of a map take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapMemory {
    /// Bytes of pages that no other map shares.
    pub own: u64,
    /// Bytes of pages shared with other maps.
    pub shared: u64,
}

/// Iterator over the entries of a [`SlotMap`].
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    map: &'a SlotMap,
    next: Option<u32>,
}

impl Iterator for Iter<'_> {
    type Item = (ChunkIndex, SlotRef);

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.map.next_entry(self.next?);
        self.next = found.and_then(|(chunk, _)| chunk.0.checked_add(1));
        found
    }
}

impl<'a> IntoIterator for &'a SlotMap {
    type Item = (ChunkIndex, SlotRef);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn slot_refs() -> impl Strategy<Value = SlotRef> {
        prop_oneof![
            1 => Just(SlotRef::Zero),
            4 => (0..=SLOT_INDEX_MAX, any::<u32>())
                .prop_map(|(slot, crc32c)| SlotRef::Slot { slot: SlotIndex(slot), crc32c }),
        ]
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32, SlotRef),
        Remove(u32),
        /// Keeps a clone, which must never change again.
        Keep,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (any::<u32>(), slot_refs()).prop_map(|(chunk, at)| Step::Insert(chunk, at)),
            2 => any::<u32>().prop_map(Step::Remove),
            1 => Just(Step::Keep),
        ];
        prop::collection::vec(step, 1..300)
    }

    fn assert_same(map: &SlotMap, model: &BTreeMap<u32, SlotRef>) {
        assert_eq!(map.entry_count() as usize, model.len());
        let listed: Vec<_> = map.iter().map(|(chunk, at)| (chunk.0, at)).collect();
        let expected: Vec<_> = model.iter().map(|(chunk, at)| (*chunk, *at)).collect();
        assert_eq!(listed, expected);
        for (chunk, at) in model {
            assert_eq!(map.get(ChunkIndex(*chunk)), Some(*at));
            let from = map.iter_from(ChunkIndex(*chunk)).next();
            assert_eq!(from, Some((ChunkIndex(*chunk), *at)));
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_tree_map_and_clones_never_change(
            chunk_count in prop_oneof![1u32..200, 1u32..300_000, Just(u32::MAX)],
            steps in steps(),
        ) {
            let mut map = SlotMap::new(chunk_count);
            let mut model = BTreeMap::new();
            let mut kept = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(chunk, at) => {
                        let chunk = chunk % chunk_count;
                        let old = map.insert(ChunkIndex(chunk), at);
                        prop_assert_eq!(old, model.insert(chunk, at));
                    }
                    Step::Remove(chunk) => {
                        let chunk = chunk % chunk_count;
                        prop_assert_eq!(map.remove(ChunkIndex(chunk)), model.remove(&chunk));
                    }
                    Step::Keep => kept.push((map.clone(), model.clone())),
                }
            }
            assert_same(&map, &model);
            for (map, model) in &kept {
                assert_same(map, model);
            }
        }
    }

    #[test]
    fn a_chunk_behind_the_end_is_absent() {
        let map = SlotMap::new(100);
        assert_eq!(map.get(ChunkIndex(100)), None);
        assert_eq!(map.get(ChunkIndex(u32::MAX)), None);
        assert_eq!(SlotMap::new(0).get(ChunkIndex(0)), None);
    }

    #[test]
    fn snapshots_share_what_did_not_change() {
        // 16 GiB of 256 KiB chunks, a thousand snapshots that change ten chunks each.
        let chunk_count = 65_536;
        let mut view = SlotMap::new(chunk_count);
        for chunk in 0..chunk_count {
            view.insert(ChunkIndex(chunk), SlotRef::Slot { slot: SlotIndex(chunk), crc32c: 1 });
        }
        let full_bytes = view.memory_bytes().own;
        let mut views = vec![view.clone()];
        for snapshot in 0..1000u32 {
            for change in 0..10 {
                let chunk = ChunkIndex((snapshot * 7919 + change * 6151) % chunk_count);
                view.insert(chunk, SlotRef::Zero);
            }
            views.push(view.clone());
        }
        // The last two share all but the changed paths: ten leaves and three levels.
        drop(view);
        let own = views[1000].memory_bytes().own;
        assert!(own < 33 * 600, "{own} bytes of its own, {full_bytes} in all");
    }
}
