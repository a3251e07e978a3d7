//! The simulated devices. Contents are tags, one per device block of the volume: the number of the
//! write that landed there last, 0 for zeros.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::random::Random;
use crate::engine::records::SlotIndex;
use crate::store::device::Device;
use crate::store::sim_device::{CrashMode, SimDevice};

/// What a device block holds.
pub(super) type Tag = u32;

/// Writes that a power cut may undo on a master with a volatile cache.
const MASTER_CACHE_WRITES: usize = 64;

/// The master.
#[derive(Debug)]
pub(super) struct Master {
    live: Vec<Tag>,
    /// Latest writes: place, and what was there before.
    cached: Vec<(usize, Tag)>,
}

impl Master {
    pub fn new(lbas: u64) -> Self {
        Self { live: vec![0; lbas as usize], cached: Vec::new() }
    }

    pub fn read(&self, lba: u64) -> Tag {
        self.live[lba as usize]
    }

    pub fn write(&mut self, lba: u64, tag: Tag) {
        let place = lba as usize;
        if self.cached.len() == MASTER_CACHE_WRITES {
            self.cached.remove(0);
        }
        self.cached.push((place, self.live[place]));
        self.live[place] = tag;
    }

    pub fn content(&self) -> Vec<Tag> {
        self.live.clone()
    }

    pub fn flush(&mut self) {
        self.cached.clear();
    }

    /// What is there after a power cut: any of the cached writes may be lost.
    pub fn crash(&mut self, random: &mut Random) {
        while let Some((place, before)) = self.cached.pop() {
            if random.chance(300) {
                self.live[place] = before;
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Slots {
    live: Vec<Tag>,
    durable: Vec<Tag>,
    /// Writes that are not durable: by place, oldest first, each with its number.
    unflushed: BTreeMap<usize, Vec<(u64, Tag)>>,
    writes: u64,
}

/// The store's device: the catalog's part in bytes, the slots in tags.
#[derive(Debug)]
pub(super) struct StoreDisk {
    pub catalog: SimDevice,
    /// A flush by the catalog does not make the slots durable. On one NVMe namespace it does; but the
    /// store room promises nothing for blocks that it has not written, and a bdev may be made of parts.
    flushes_apart: bool,
    /// Tags per slot.
    slot_tags: usize,
    slots: Mutex<Slots>,
}

impl StoreDisk {
    pub fn new(catalog: SimDevice, flushes_apart: bool, slot_count: u32, slot_tags: usize) -> Self {
        // What slots hold before their first write is nothing that a volume could hold.
        let fresh = vec![Tag::MAX; slot_count as usize * slot_tags];
        let slots =
            Slots { live: fresh.clone(), durable: fresh, unflushed: BTreeMap::new(), writes: 0 };
        Self { catalog, flushes_apart, slot_tags, slots: Mutex::new(slots) }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, slot: SlotIndex, lba: u64) -> usize {
        slot.0 as usize * self.slot_tags + lba as usize
    }

    pub fn read_slot(&self, slot: SlotIndex, lba: u64) -> Tag {
        self.lock().live[self.place(slot, lba)]
    }

    /// What a slot holds.
    pub fn slot(&self, slot: SlotIndex) -> Vec<Tag> {
        let first = self.place(slot, 0);
        self.lock().live[first..first + self.slot_tags].to_vec()
    }

    pub fn write_slot(&self, slot: SlotIndex, lba: u64, tag: Tag) {
        let place = self.place(slot, lba);
        let mut slots = self.lock();
        slots.writes += 1;
        let number = slots.writes;
        slots.live[place] = tag;
        slots.unflushed.entry(place).or_default().push((number, tag));
    }

    /// A slot does not hold any more what was written to it.
    pub fn damage_slot(&self, slot: SlotIndex) {
        let first = self.place(slot, 0);
        let mut slots = self.lock();
        for place in first..first + self.slot_tags {
            slots.live[place] = Tag::MAX;
            slots.durable[place] = Tag::MAX;
            slots.unflushed.remove(&place);
        }
    }

    /// Number of the latest write: a flush submitted now makes it and those before durable.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// Carries out a flush that was submitted after write number `writes`.
    pub fn flush_slots(&self, writes: u64) {
        let mut slots = self.lock();
        let Slots { durable, unflushed, .. } = &mut *slots;
        unflushed.retain(|place, versions| {
            let done = versions.partition_point(|(number, _)| *number <= writes);
            if let Some((_, tag)) = versions[..done].last() {
                durable[*place] = *tag;
            }
            versions.drain(..done);
            !versions.is_empty()
        });
    }

    /// The device after a power cut. Catalog and slots each in their own way: what is likely to
    /// hurt is one of them whole and the other lost.
    pub fn crash(&self, catalog: CrashMode, slots_mode: CrashMode) -> StoreDisk {
        let slots = self.lock();
        let image = match slots_mode {
            CrashMode::LoseAll => slots.durable.clone(),
            CrashMode::KeepAll => slots.live.clone(),
            CrashMode::Scramble { seed } => {
                let mut random = Random::new(seed);
                let mut image = slots.durable.clone();
                for (place, versions) in &slots.unflushed {
                    let choice = random.below(versions.len() as u64 + 1) as usize;
                    if let Some((_, tag)) = versions.get(choice) {
                        image[*place] = *tag;
                    }
                }
                image
            }
        };
        let slots =
            Slots { live: image.clone(), durable: image, unflushed: BTreeMap::new(), writes: 0 };
        StoreDisk {
            catalog: self.catalog.crash(catalog),
            flushes_apart: self.flushes_apart,
            slot_tags: self.slot_tags,
            slots: Mutex::new(slots),
        }
    }
}

impl Device for StoreDisk {
    fn block_bytes(&self) -> u32 {
        self.catalog.block_bytes()
    }

    fn size_bytes(&self) -> u64 {
        self.catalog.size_bytes()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.catalog.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.catalog.write(offset, data)
    }

    fn flush(&self) -> io::Result<()> {
        self.catalog.flush()?;
        if !self.flushes_apart {
            self.flush_slots(u64::MAX);
        }
        Ok(())
    }
}
