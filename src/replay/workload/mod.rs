//! Made-up workloads: what volumes commonly see, in any amount, on volumes of any size.
//!
//! Real traces are few and short. Models are trained on these beside them, and scale is tested with
//! these. Each is several *actors* side by side (a log, a checkpointer, a user at a desk), whose rates,
//! sizes and places are drawn from the seed; the same seed gives the same records.
//!
//! | workload | what it is made of |
//! | --- | --- |
//! | `hot-spots` | a few busy places that move on after minutes |
//! | `day` | updates and file writes whose rate follows a day, shortened to 20 to 120 min |
//! | `database` | a circular log, pages updated unevenly and written by checkpoints, a control file |
//! | `lsm` | a log, flushes and compactions that write new files and unmap old ones |
//! | `mail` | mailboxes of uneven popularity appended to, their index, now and then a clean-up |
//! | `boot-storm` | many virtual machines on one volume that start together, then idle with periodic writes |
//! | `zipf` | independent updates by a power law with exponent 0.5 to 1.3 |
//! | `ingest` | large files one after the other, each with its metadata |
//! | `backup` | little writing, and a scan that reads everything |
//! | `desktop` | bursts of a user's work over caches, logs and a registry, and background services |
//!
//! Every file system here also has a journal and metadata that follow its other writes.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::manual_midpoint,
    reason = "times and rates are drawn, not exact"
)]

mod actors;
#[cfg(test)]
mod tests;

use std::collections::BinaryHeap;

use super::trace::TraceRecord;
use crate::predict::random::Random;
use actors::{Actor, Region, Rhythm};

/// Names of the workloads.
pub const WORKLOADS: [&str; 10] = [
    "hot-spots",
    "day",
    "database",
    "lsm",
    "mail",
    "boot-storm",
    "zipf",
    "ingest",
    "backup",
    "desktop",
];

/// Size and length of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkloadOptions {
    /// All chance follows from it.
    pub seed: u64,
    /// How long it lasts.
    pub span_s: u64,
    /// Size of the volume, 1 GiB or more.
    pub volume_bytes: u64,
    /// It ends early after so many records.
    pub records_max: usize,
}

/// The records of a workload sorted by time; `None` if none of [`WORKLOADS`] has this name.
pub fn generate(name: &str, options: WorkloadOptions) -> Option<Vec<TraceRecord>> {
    let index = WORKLOADS.iter().position(|workload| *workload == name)?;
    let mut random = Random::new(options.seed ^ (index as u64) << 56);
    let mut space = Space { left: Region { start: 0, bytes: options.volume_bytes } };
    let actors = match name {
        "hot-spots" => hot_spots(&mut space, &mut random),
        "day" => day(&mut space, &mut random),
        "database" => database(&mut space, &mut random),
        "lsm" => lsm(&mut space, &mut random),
        "mail" => mail(&mut space, &mut random),
        "boot-storm" => boot_storm(&mut space, &mut random),
        "zipf" => zipf(&mut space, &mut random),
        "ingest" => ingest(&mut space, &mut random),
        "backup" => backup(&mut space, &mut random),
        _ => desktop(&mut space, &mut random),
    };
    Some(play(actors, options, random))
}

/// Lets actors act in order of their times.
fn play(mut actors: Vec<Actor>, options: WorkloadOptions, mut random: Random) -> Vec<TraceRecord> {
    let end_us = options.span_s * 1_000_000;
    let mut records = vec![];
    // Earliest first; std's heap has the largest on top.
    let mut next = BinaryHeap::new();
    for index in 0..actors.len() {
        let first_us = random.below(30_000_000);
        next.push((std::cmp::Reverse(first_us), index));
    }
    while let Some((std::cmp::Reverse(now_us), index)) = next.pop() {
        if now_us >= end_us || records.len() >= options.records_max {
            break;
        }
        let wait_s = actors[index](now_us, &mut random, &mut records);
        // At least a microsecond, so that time goes on.
        next.push((std::cmp::Reverse(now_us + ((wait_s * 1e6) as u64).max(1)), index));
    }
    // What an actor writes over a while was put in at once.
    records.retain(|record| record.time_us < end_us);
    records.sort_by_key(|record| record.time_us);
    records.truncate(options.records_max);
    records
}

/// The part of a volume that is not given away yet.
struct Space {
    left: Region,
}

impl Space {
    /// A region of about this many bytes, with a gap before it; what is left if that is less.
    fn take(&mut self, bytes: f64, random: &mut Random) -> Region {
        let bytes = (bytes as u64 & !0xfff).max(1 << 20);
        let gap = (random.exponential(bytes as f64 / 4.0) as u64).min(self.left.bytes / 8) & !0xfff;
        let start = self.left.start + gap;
        let bytes = (bytes.min((self.left.bytes - gap) / 2) & !0xfff).max(1 << 20);
        self.left =
            Region { start: start + bytes, bytes: (self.left.bytes - gap).saturating_sub(bytes) };
        Region { start, bytes }
    }

    /// A region of `low` to `high` MiB, each doubling alike.
    fn mib(&mut self, low: f64, high: f64, random: &mut Random) -> Region {
        let mib = random.log_between(low, high);
        self.take(mib * f64::from(1 << 20), random)
    }
}

/// What comes with a file system that is written to now and then.
fn file_system(space: &mut Space, random: &mut Random, rhythm: Rhythm) -> Vec<Actor> {
    let journal = space.mib(16.0, 512.0, random);
    let metadata = space.mib(4.0, 64.0, random);
    let commit_s = if random.chance(0.5) { 5.0 } else { random.log_between(1.0, 60.0) };
    vec![
        actors::log(journal, rhythm, commit_s, (4.0, 64.0)),
        actors::updates(metadata, rhythm, commit_s * random.log_between(0.3, 4.0), 1.1, random),
        actors::periodic(metadata.start, random.log_between(5.0, 120.0), 0.1),
    ]
}

fn hot_spots(space: &mut Space, random: &mut Random) -> Vec<Actor> {
    let mut all = file_system(space, random, Rhythm::Steady);
    for _ in 0..=random.index(3) {
        let region = space.mib(256.0, 8192.0, random);
        let stay_s = random.log_between(30.0, 1800.0);
        let gap_s = random.log_between(0.05, 2.0);
        all.push(actors::hot_spots(region, 4 + random.index(60), stay_s, gap_s));
    }
    all
}

fn day(space: &mut Space, random: &mut Random) -> Vec<Actor> {
    let rhythm = Rhythm::Day {
        period_s: random.log_between(1200.0, 7200.0),
        phase: random.unit(),
        night: random.between(0.01, 0.3),
    };
    let mut all = file_system(space, random, rhythm);
    for _ in 0..2 + random.index(3) {
        let region = space.mib(64.0, 4096.0, random);
        let gap_s = random.log_between(0.1, 3.0);
        all.push(actors::updates(region, rhythm, gap_s, random.between(0.6, 1.3), random));
    }
    let files = space.mib(512.0, 8192.0, random);
    all.push(actors::files(files, rhythm, random.log_between(10.0, 200.0), (0.25, 64.0), 100.0));
    all
}

fn database(space: &mut Space, random: &mut Random) -> Vec<Actor> {
    let rhythm = if random.chance(0.5) { Rhythm::Steady } else { Rhythm::bursts(random) };
    let mut all = file_system(space, random, rhythm);
    let log = space.mib(64.0, 2048.0, random);
    let control = space.mib(1.0, 2.0, random);
    let tables = space.mib(256.0, 16_384.0, random);
    let checkpoint_s = random.log_between(15.0, 900.0);
    all.push(actors::log(log, rhythm, random.log_between(0.02, 1.0), (0.5, 32.0)));
    all.push(actors::periodic(control.start, checkpoint_s, 0.02));
    all.push(actors::checkpoints(
        tables,
        checkpoint_s,
        random.log_between(0.1, 0.9),
        random.log_between(20.0, 2000.0),
        random.between(0.5, 1.2),
    ));
    all.push(actors::reads(tables, rhythm, random.log_between(0.1, 2.0)));
    all
}

fn lsm(space: &mut Space, random: &mut Random) -> Vec<Actor> {
    let rhythm = if random.chance(0.5) { Rhythm::Steady } else { Rhythm::bursts(random) };
    let mut all = file_system(space, random, rhythm);
    let log = space.mib(32.0, 512.0, random);
    let tables = space.mib(1024.0, 16_384.0, random);
    all.push(actors::log(log, rhythm, random.log_between(0.02, 0.5), (1.0, 32.0)));
    all.push(actors::tables(
        tables,
        random.log_between(4.0, 64.0),
        random.log_between(10.0, 300.0),
    ));
    all
}

fn mail(space: &mut Space, random: &mut Random) -> Vec<Actor> {
    let rhythm = Rhythm::Day { period_s: 5400.0, phase: random.unit(), night: 0.2 };
    let mut all = file_system(space, random, rhythm);
    let boxes = space.mib(256.0, 8192.0, random);
    let index = space.mib(8.0, 128.0, random);
    let gap_s = random.log_between(0.1, 3.0);
    all.push(actors::mailboxes(boxes, rhythm, gap_s, random.between(0.7, 1.2), random));
    all.push(actors::updates(index, rhythm, gap_s, random.between(0.7, 1.2), random));
    all.push(actors::reads(boxes, rhythm, gap_s));
    all
}

fn boot_storm(space: &mut Space, random: &mut Random) -> Vec<Actor> {
    let storm_us = random.below(1_200_000_000);
    let machines = 8 + random.index(40);
    let mut all = vec![];
    for _ in 0..machines {
        let disk = space.take(space.left.bytes as f64 / machines as f64 / 2.0, random);
        let start_us = storm_us + (random.exponential(20.0) * 1e6) as u64;
        all.push(actors::boot(disk, start_us, random.log_between(20.0, 90.0)));
        let mut inner = Space { left: disk };
        let rhythm = Rhythm::bursts(random);
        all.extend(file_system(&mut inner, random, rhythm));
        for _ in 0..=random.index(3) {
            let place = disk.start + random.below(disk.bytes);
            let period_s = [10.0, 30.0, 60.0, 300.0, 600.0, 1800.0][random.index(6)];
            all.push(actors::periodic(place, period_s, random.log_between(0.001, 0.2)));
        }
    }
    all
}

fn zipf(space: &mut Space, random: &mut Random) -> Vec<Actor> {
    let region = space.mib(512.0, 16_384.0, random);
    let exponent = random.between(0.5, 1.3);
    vec![
        actors::updates(region, Rhythm::Steady, random.log_between(0.03, 0.5), exponent, random),
        actors::reads(region, Rhythm::Steady, random.log_between(0.1, 1.0)),
    ]
}

fn ingest(space: &mut Space, random: &mut Random) -> Vec<Actor> {
    let rhythm = if random.chance(0.5) { Rhythm::Steady } else { Rhythm::bursts(random) };
    let mut all = file_system(space, random, rhythm);
    for _ in 0..=random.index(4) {
        let region = space.mib(2048.0, 65_536.0, random);
        let mib_per_s = random.log_between(0.5, 80.0);
        let gap_s = random.log_between(2.0, 120.0);
        all.push(actors::files(region, rhythm, gap_s, (4.0, 1024.0), mib_per_s));
    }
    all
}

fn backup(space: &mut Space, random: &mut Random) -> Vec<Actor> {
    let rhythm = Rhythm::bursts(random);
    let mut all = file_system(space, random, rhythm);
    let data = space.mib(2048.0, 32_768.0, random);
    all.push(actors::scan(data, random.log_between(20.0, 200.0), random.log_between(60.0, 1800.0)));
    let gap_s = random.log_between(0.5, 10.0);
    all.push(actors::updates(data, Rhythm::bursts(random), gap_s, 0.9, random));
    all
}

fn desktop(space: &mut Space, random: &mut Random) -> Vec<Actor> {
    let user = Rhythm::bursts(random);
    let mut all = file_system(space, random, user);
    let registry = space.mib(16.0, 128.0, random);
    let logs = space.mib(8.0, 64.0, random);
    let caches = space.mib(256.0, 4096.0, random);
    let files = space.mib(1024.0, 32_768.0, random);
    let page_file = space.mib(256.0, 4096.0, random);
    all.push(actors::updates(registry, user, random.log_between(1.0, 20.0), 1.2, random));
    all.push(actors::updates(caches, user, random.log_between(0.1, 2.0), 0.8, random));
    all.push(actors::files(files, user, random.log_between(5.0, 120.0), (0.05, 32.0), 60.0));
    all.push(actors::updates(page_file, Rhythm::bursts(random), 0.5, 0.6, random));
    all.push(actors::reads(files, user, 0.5));
    for _ in 0..2 + random.index(6) {
        let place = logs.start + random.below(logs.bytes);
        all.push(actors::periodic(
            place,
            random.log_between(5.0, 900.0),
            random.log_between(0.001, 0.5),
        ));
    }
    all
}
