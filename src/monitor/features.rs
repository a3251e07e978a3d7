//! The numbers that describe a chunk at the end of a window.
//!
//! All lie in [0, 4]; counts and times are taken as logarithms, since a write after 2 s instead of
//! 1 s says as much as one after 20 min instead of 10.
//!
//! | feature | what | 0 is | 1 is |
//! | --- | --- | --- | --- |
//! | `writes` | modifying commands in the window | none | 3 |
//! | `bytes` | bytes modified in the window | none | 12 KiB |
//! | `reads` | reads, decayed with 32 s | none | 3 |
//! | `age` | time since the last modification | now | 7 s |
//! | `rate_4s` to `rate_2048s` | windows with a modification, decayed | none | 0.94 |
//! | `gap` | usual time between windows with modifications | none known (see below) | 7 s |
//! | `position` | where the last modification ended | chunk's start | chunk's end |
//! | `sequential` | share of modifications that began where the one before ended | none | all |
//! | `before` | `rate_4s` of the chunk before this one | | |
//! | `after` | `rate_4s` of the chunk after this one | | |
//! | `region` | sum of decayed windows (32 s) of the aligned 64 chunks around, without its own | | |
//! | `partners` | confidence with which partners point here, decayed with 4 s | none | 0.75 |
//! | `volume` | chunks modified in the window, in the whole volume | none | 15 |
//!
//! A chunk that was modified in one window only has no gap yet; its `gap` is 4, longer than any.

use super::hash::ChunkMap;
use super::{Monitor, NO_CHUNK, Row, Tick};

/// Numbers per chunk.
pub const FEATURES: usize = 16;

/// Names of the features, in their order.
pub const FEATURE_NAMES: [&str; FEATURES] = [
    "writes",
    "bytes",
    "reads",
    "age",
    "rate_4s",
    "rate_32s",
    "rate_256s",
    "rate_2048s",
    "gap",
    "position",
    "sequential",
    "before",
    "after",
    "region",
    "partners",
    "volume",
];

/// Number of scales that rates are taken at.
pub const SCALES: usize = 4;

/// Half-lives of the decayed counts, in seconds: from a burst to half an hour, a factor of eight
/// apart, which is what a sum of exponentials needs to look like a power law.
pub const HALF_LIVES_S: [f32; SCALES] = [4.0, 32.0, 256.0, 2048.0];

/// How fast the share of sequential modifications follows: half of it after some five commands.
pub(super) const SEQUENTIAL_STEP: f32 = 1.0 / 8.0;

/// How fast the usual gap follows.
const GAP_STEP: f32 = 1.0 / 4.0;

/// Chunks of a region, as a power of two.
const REGION_SHIFT: u32 = 6;

/// No feature is larger.
const LARGEST: f32 = 4.0;

fn log(value: f32, divisor: f32) -> f32 {
    ((1.0 + value).log2() / divisor).min(LARGEST)
}

fn log_seconds(us: u64) -> f32 {
    (1.0 + us as f32 / 1e6).log2()
}

/// The decayed count `windows` as a feature.
fn rate(windows: f32) -> f32 {
    log(16.0 * windows, 4.0)
}

/// What a tick gives out.
#[derive(Debug, Default)]
pub(super) struct Output {
    rows: Vec<u32>,
    slots: Vec<u32>,
    features: Vec<f32>,
    fresh: Vec<bool>,
    modified: Vec<bool>,
    age_us: Vec<u64>,
    decayed: Vec<[f32; SCALES]>,
    window_bytes: Vec<f32>,
    /// Decayed windows per region, of the tick being made.
    regions: ChunkMap<f32>,
}

impl Output {
    pub fn view(&self, index: u64, now_us: u64) -> Tick<'_> {
        Tick {
            index,
            now_us,
            rows: &self.rows,
            slots: &self.slots,
            features: &self.features,
            fresh: &self.fresh,
            modified: &self.modified,
            age_us: &self.age_us,
            decayed: &self.decayed,
            window_bytes: &self.window_bytes,
        }
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.slots.clear();
        self.features.clear();
        self.fresh.clear();
        self.modified.clear();
        self.age_us.clear();
        self.decayed.clear();
        self.window_bytes.clear();
        self.regions.clear();
    }

    pub fn memory_bytes(&self) -> usize {
        self.rows.capacity() * 4
            + self.slots.capacity() * 4
            + self.features.capacity() * 4
            + self.fresh.capacity()
            + self.modified.capacity()
            + self.age_us.capacity() * 8
            + self.decayed.capacity() * size_of::<[f32; SCALES]>()
            + self.window_bytes.capacity() * 4
            + self.regions.capacity() * 8 / 7 * (size_of::<(u32, f32)>() + 1)
    }
}

impl Monitor {
    /// Brings all rows up to the end of the window and writes them out.
    pub(super) fn close_window(&mut self, now_us: u64) {
        let elapsed_us = match self.ticks {
            0 => self.options.tick_us,
            _ => now_us.saturating_sub(self.last_tick_us),
        };
        let elapsed = elapsed_us as f32 / 1e6;
        let kept = HALF_LIVES_S.map(|half_life_s| (-elapsed / half_life_s).exp2());
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        let mut modified_chunks = 0_u32;
        for (slot, row) in self.rows.iter_mut().enumerate() {
            if row.chunk == NO_CHUNK {
                continue;
            }
            row.decay(&kept, now_us);
            modified_chunks += u32::from(row.writes > 0);
            *out.regions.entry(row.chunk >> REGION_SHIFT).or_default() += row.decayed[1];
            out.rows.push(row.chunk);
            out.slots.push(slot as u32);
        }
        let volume = log(modified_chunks as f32, 4.0);
        for &slot in &out.slots {
            let row = &self.rows[slot as usize];
            let neighbour = |chunk: Option<u32>| {
                let slot = chunk.and_then(|chunk| self.index.get(&chunk));
                slot.map_or(0.0, |&slot| rate(self.rows[slot as usize].decayed[0]))
            };
            let region = out.regions[&(row.chunk >> REGION_SHIFT)] - row.decayed[1];
            let age_us = now_us.saturating_sub(row.last_modify_us);
            out.features.extend_from_slice(&[
                log(row.writes as f32, 2.0),
                log(row.bytes as f32 / 4096.0, 2.0),
                log(row.decayed_reads, 2.0),
                (log_seconds(age_us) / 3.0).min(LARGEST),
                rate(row.decayed[0]),
                rate(row.decayed[1]),
                rate(row.decayed[2]),
                rate(row.decayed[3]),
                row.gap_log2.map_or(LARGEST, |gap| (gap / 3.0).min(LARGEST)),
                row.position,
                row.sequential,
                neighbour(row.chunk.checked_sub(1)),
                neighbour(row.chunk.checked_add(1)),
                // A sum without its own part may come out below nothing by rounding.
                rate(region.max(0.0)),
                log(4.0 * row.pointed_at, 2.0),
                volume,
            ]);
            out.fresh.push(row.fresh);
            out.modified.push(row.writes > 0);
            out.age_us.push(age_us);
            out.decayed.push(row.decayed);
            out.window_bytes.push(row.window_bytes.unwrap_or_default());
        }
        for &slot in &out.slots {
            let row = &mut self.rows[slot as usize];
            (row.writes, row.reads, row.bytes, row.fresh) = (0, 0, 0, false);
        }
        self.modified_now.clear();
        self.out = out;
    }
}

impl Row {
    /// Lets the window that ends at `now_us` count; `kept` is what it leaves of what was before.
    fn decay(&mut self, kept: &[f32; SCALES], now_us: u64) {
        let modified = f32::from(u8::from(self.writes > 0));
        for (decayed, kept) in self.decayed.iter_mut().zip(kept) {
            *decayed = *decayed * kept + modified;
        }
        self.decayed_reads = self.decayed_reads * kept[1] + self.reads as f32;
        self.pointed_at = self.pointed_at * kept[0] + std::mem::take(&mut self.pointed_now);
        if self.writes == 0 {
            return;
        }
        let bytes = self.bytes as f32;
        let usual = self.window_bytes.get_or_insert(bytes);
        *usual += (bytes - *usual) * GAP_STEP;
        if let Some(before_us) = self.modified_window_us.replace(now_us) {
            let gap = log_seconds(now_us.saturating_sub(before_us));
            let usual = self.gap_log2.get_or_insert(gap);
            *usual += (gap - *usual) * GAP_STEP;
        }
    }
}
