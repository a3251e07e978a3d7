//! The patterns that workloads are made of.

use crate::predict::random::Random;
use crate::replay::trace::{TraceKind, TraceRecord};

/// Acts at a time in microseconds: puts in what it does, and says after how many seconds it acts
/// again.
pub type Actor = Box<dyn FnMut(u64, &mut Random, &mut Vec<TraceRecord>) -> f64>;

/// A part of a volume.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub start: u64,
    pub bytes: u64,
}

/// Granularity of places.
const PAGE: u64 = 4096;

/// Unit of popularity: what lies closer together is as popular.
const EXTENT: u64 = 128 << 10;

impl Region {
    /// A place for `bytes` from `at` on, wrapped around.
    fn place(self, at: u64, bytes: u64) -> u64 {
        let room = self.bytes.saturating_sub(bytes).max(PAGE);
        self.start + (at % room) / PAGE * PAGE
    }

    fn extents(self) -> u64 {
        (self.bytes / EXTENT).max(1)
    }
}

/// How the rate of something changes over time.
#[derive(Clone, Copy, Debug)]
pub enum Rhythm {
    /// Not at all.
    Steady,
    /// At work and at rest in turns, with these mean lengths, the same for all that share `seed`.
    Bursts { work_s: f64, rest_s: f64, seed: u64 },
    /// Up and down once a period; at its lowest `night` of its highest.
    Day { period_s: f64, phase: f64, night: f64 },
}

impl Rhythm {
    pub fn bursts(random: &mut Random) -> Self {
        Self::Bursts {
            work_s: random.log_between(5.0, 300.0),
            rest_s: random.log_between(10.0, 900.0),
            seed: random.number(),
        }
    }

    /// Seconds until the next of events that come every `gap_s` on average when things are busy.
    fn wait(self, now_us: u64, gap_s: f64, random: &mut Random) -> f64 {
        let mut wait_s = 0.0;
        // Thinning: draw at the highest rate, keep by chance. Bounded, for a night may be long.
        for _ in 0..10_000 {
            wait_s += random.exponential(gap_s);
            if random.chance(self.level(now_us as f64 / 1e6 + wait_s)) {
                break;
            }
        }
        wait_s
    }

    /// Rate as a share of the highest.
    fn level(self, now_s: f64) -> f64 {
        match self {
            Self::Steady => 1.0,
            Self::Day { period_s, phase, night } => {
                let wave = (std::f64::consts::TAU * (now_s / period_s + phase)).sin();
                night + (1.0 - night) * (wave + 1.0) / 2.0
            }
            Self::Bursts { work_s, rest_s, seed } => {
                // Cells of equal length, in each one spell of work of its own length and place.
                let cell_s = work_s + rest_s;
                let cell = (now_s / cell_s).floor();
                let mut random = Random::new(seed ^ cell as u64);
                let length_s = random.exponential(work_s).min(cell_s);
                let start_s = random.between(0.0, cell_s - length_s);
                let into_s = now_s - cell * cell_s;
                if (start_s..start_s + length_s).contains(&into_s) { 1.0 } else { 0.0 }
            }
        }
    }
}

fn push(out: &mut Vec<TraceRecord>, time_us: u64, kind: TraceKind, place: u64, bytes: u64) {
    out.push(TraceRecord {
        time_us,
        kind,
        offset_bytes: place,
        length_bytes: (bytes / 512).max(1) * 512,
    });
}

fn write(out: &mut Vec<TraceRecord>, time_us: u64, place: u64, bytes: u64) {
    push(out, time_us, TraceKind::Write, place, bytes);
}

/// One of `count` ranks by a power law: the larger the exponent, the more often the first ones.
/// (Inverse of the continuous distribution function.)
fn rank(count: u64, exponent: f64, random: &mut Random) -> u64 {
    let (count_f, u) = (count as f64, random.unit());
    let end = count_f + 1.0;
    let value = if (exponent - 1.0).abs() < 1e-3 {
        end.powf(u)
    } else {
        let power = 1.0 - exponent;
        (u * (end.powf(power) - 1.0) + 1.0).powf(1.0 / power)
    };
    (value as u64).clamp(1, count) - 1
}

/// Where the extent of a rank lies: scattered, but neighbours in rank often close together.
fn scatter(rank: u64, count: u64, seed: u64) -> u64 {
    let cluster = rank / 4;
    let place = Random::new(seed ^ cluster).below(count);
    (place + rank % 4) % count
}

/// Appends to a circular log: `kib` from and to, every `gap_s`.
pub fn log(region: Region, rhythm: Rhythm, gap_s: f64, kib: (f64, f64)) -> Actor {
    let mut at = 0;
    Box::new(move |now_us, random, out| {
        let bytes = (random.log_between(kib.0, kib.1) * 1024.0) as u64 / 512 * 512;
        write(out, now_us, region.place(at, bytes), bytes);
        at = (at + bytes.max(512)) % region.bytes;
        rhythm.wait(now_us, gap_s, random)
    })
}

/// Rewrites one place every `period_s`, off by `jitter` of that.
pub fn periodic(place: u64, period_s: f64, jitter: f64) -> Actor {
    Box::new(move |now_us, random, out| {
        write(out, now_us, place / PAGE * PAGE, PAGE);
        period_s * (1.0 + jitter * random.normal()).clamp(0.1, 2.0)
    })
}

/// Independent updates by a power law over the region.
pub fn updates(
    region: Region,
    rhythm: Rhythm,
    gap_s: f64,
    exponent: f64,
    random: &mut Random,
) -> Actor {
    let seed = random.number();
    Box::new(move |now_us, random, out| {
        let count = region.extents();
        let extent = scatter(rank(count, exponent, random), count, seed);
        let bytes = PAGE << random.below(5);
        write(out, now_us, region.place(extent * EXTENT + random.below(EXTENT), bytes), bytes);
        rhythm.wait(now_us, gap_s, random)
    })
}

/// Reads here and there.
pub fn reads(region: Region, rhythm: Rhythm, gap_s: f64) -> Actor {
    Box::new(move |now_us, random, out| {
        let count = region.extents();
        let extent = scatter(rank(count, 0.9, random), count, region.start);
        let bytes = PAGE << random.below(6);
        push(out, now_us, TraceKind::Read, region.place(extent * EXTENT, bytes), bytes);
        rhythm.wait(now_us, gap_s, random)
    })
}

/// Reads everything from start to end, `mib_per_s`, then rests.
pub fn scan(region: Region, mib_per_s: f64, rest_s: f64) -> Actor {
    let mut at = 0;
    Box::new(move |now_us, random, out| {
        let bytes = 4 << 20;
        push(out, now_us, TraceKind::Read, region.place(at, bytes), bytes);
        at += bytes;
        if at >= region.bytes {
            at = 0;
            return random.exponential(rest_s);
        }
        4.0 / mib_per_s
    })
}

/// A few busy places at a time, each for about `stay_s`, then another takes its turn.
pub fn hot_spots(region: Region, count: usize, stay_s: f64, gap_s: f64) -> Actor {
    let mut spots: Vec<(u64, u64)> = vec![];
    Box::new(move |now_us, random, out| {
        spots.retain(|spot| spot.1 > now_us);
        while spots.len() < count {
            let until_us = now_us + (random.exponential(stay_s) * 1e6) as u64;
            spots.push((random.below(region.extents()) * EXTENT, until_us));
        }
        // Some of the busy ones are busier.
        let (extent, _) = spots[rank(count as u64, 0.7, random) as usize];
        let bytes = PAGE << random.below(4);
        write(out, now_us, region.place(extent + random.below(EXTENT), bytes), bytes);
        random.exponential(gap_s)
    })
}

/// Every `period_s`, the pages that became dirty since are written, spread over `share` of the
/// time until the next.
pub fn checkpoints(region: Region, period_s: f64, share: f64, pages: f64, exponent: f64) -> Actor {
    Box::new(move |now_us, random, out| {
        let count = region.extents();
        let pages = (pages * random.log_between(0.5, 2.0)) as u64 + 1;
        let mut places: Vec<_> = (0..pages)
            .map(|_| {
                let extent = scatter(rank(count, exponent, random), count, region.start);
                region.place(extent * EXTENT + random.below(EXTENT), 2 * PAGE)
            })
            .collect();
        places.sort_unstable();
        places.dedup();
        let step_us = (period_s * share * 1e6) as u64 / places.len() as u64;
        for (index, place) in places.iter().enumerate() {
            write(out, now_us + index as u64 * step_us, *place, 2 * PAGE);
        }
        period_s * (1.0 + 0.05 * random.normal()).clamp(0.5, 1.5)
    })
}

/// Files of `mib` from and to, written from start to end at `mib_per_s`, into free space that is
/// used again once its end is reached.
pub fn files(region: Region, rhythm: Rhythm, gap_s: f64, mib: (f64, f64), mib_per_s: f64) -> Actor {
    let mut at = 0;
    Box::new(move |now_us, random, out| {
        let bytes = (random.log_between(mib.0, mib.1) * f64::from(1 << 20)) as u64;
        let step = (64_u64 << 10) << random.below(5);
        let step_us = (step as f64 / mib_per_s / 1.048_576) as u64;
        let parts = bytes.div_ceil(step).min(4096);
        for part in 0..parts {
            write(out, now_us + part * step_us, region.place(at + part * step, step), step);
        }
        at = (at + parts * step + random.below(8) * EXTENT) % region.bytes;
        (parts * step_us) as f64 / 1e6 + rhythm.wait(now_us + parts * step_us, gap_s, random)
    })
}

/// Sorted tables: each flush writes a new one, every fourth is merged with others into a larger
/// one, and those are unmapped. Freed space is written again, oldest first.
pub fn tables(region: Region, table_mib: f64, gap_s: f64) -> Actor {
    let table = ((table_mib * f64::from(1 << 20)) as u64).min(region.bytes / 64) / PAGE * PAGE;
    let mut live: Vec<u64> = vec![];
    let (mut at, mut flushes) = (0, 0);
    Box::new(move |now_us, random, out| {
        flushes += 1;
        let merged = if flushes % 4 == 0 { live.len().min(4) } else { 0 };
        let step = 256 << 10;
        let parts = table.div_ceil(step).min(512) * (1 + merged as u64);
        let step_us = 2_000 + random.below(8_000);
        for part in 0..parts {
            write(out, now_us + part * step_us, region.place(at + part * step, step), step);
        }
        let end_us = now_us + parts * step_us;
        for old in live.drain(..merged) {
            push(out, end_us, TraceKind::Unmap, region.place(old, table), table);
        }
        live.push(at);
        at = (at + parts * step) % region.bytes;
        (parts * step_us) as f64 / 1e6 + random.exponential(gap_s)
    })
}

/// Messages appended to mailboxes of uneven popularity; now and then one is cleaned up, which
/// writes it anew from its start.
pub fn mailboxes(
    region: Region,
    rhythm: Rhythm,
    gap_s: f64,
    exponent: f64,
    random: &mut Random,
) -> Actor {
    let count = (region.bytes >> 21).clamp(8, 2000);
    let room = region.bytes / count;
    let mut ends: Vec<u64> = (0..count).map(|_| random.below(room)).collect();
    Box::new(move |now_us, random, out| {
        let mailbox = rank(count, exponent, random);
        let start = mailbox * room;
        let end = &mut ends[mailbox as usize];
        if random.chance(0.002) {
            let bytes = (*end / 2).max(PAGE);
            write(out, now_us, region.place(start, bytes), bytes);
            *end = bytes;
        } else {
            let bytes = (random.log_between(1.0, 256.0) * 1024.0) as u64 / 512 * 512;
            write(out, now_us, region.place(start + *end, bytes), bytes);
            *end = (*end + bytes) % room;
        }
        rhythm.wait(now_us, gap_s, random)
    })
}

/// A machine that starts at `start_us`: for `length_s` it reads a lot and writes logs and caches;
/// afterwards nothing.
pub fn boot(disk: Region, start_us: u64, length_s: f64) -> Actor {
    Box::new(move |now_us, random, out| {
        if now_us < start_us {
            return (start_us - now_us) as f64 / 1e6;
        }
        if now_us > start_us + (length_s * 1e6) as u64 {
            return 1e9;
        }
        let early = random.index(3);
        let place = disk.place(random.below(disk.bytes >> (2 * early)), 64 << 10);
        if random.chance(0.75) {
            push(out, now_us, TraceKind::Read, place, 64 << 10);
        } else {
            write(out, now_us, place, PAGE << random.below(5));
        }
        random.exponential(length_s / 400.0)
    })
}
