use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::features::{SCALES, SEQUENTIAL_STEP};
use super::*;

const CHUNK_BYTES: u32 = 256 << 10;
const SECOND_US: u64 = 1_000_000;

fn options(active_chunks_max: usize) -> MonitorOptions {
    MonitorOptions { active_chunks_max, ..MonitorOptions::new(100_000, CHUNK_BYTES) }
}

fn modify(chunk: u32, time_us: u64) -> Access {
    let offset_bytes = u64::from(chunk) * u64::from(CHUNK_BYTES);
    Access::new(offset_bytes, 4096, AccessKind::Modify, time_us, CHUNK_BYTES)
}

fn read(chunk: u32, time_us: u64) -> Access {
    Access { kind: AccessKind::Read, ..modify(chunk, time_us) }
}

fn position_of(tick: &Tick<'_>, chunk: u32) -> usize {
    tick.rows.iter().position(|&row| row == chunk).expect("the chunk is active")
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) % end
    }
}

// ---- features against the definition ----------------------------------------------------------

/// All commands of each chunk since it became active, as (window, start, end, kind) each.
type History = BTreeMap<u32, Vec<(usize, u32, u32, AccessKind, u64)>>;

fn naive_log(value: f64, divisor: f64) -> f64 {
    ((1.0 + value).log2() / divisor).min(4.0)
}

/// The features of `chunk` after `ends.len()` windows, straight from their definition.
fn naive_features(history: &History, ends: &[u64], chunk: u32) -> [f64; FEATURES] {
    let last = ends.len() - 1;
    let now = ends[last];
    let decay =
        |window: usize, half_life: f64| (-((now - ends[window]) as f64 / 1e6) / half_life).exp2();
    let modified_windows = |chunk: u32| {
        let mut windows: Vec<usize> = history
            .get(&chunk)
            .into_iter()
            .flatten()
            .filter(|c| c.3 == AccessKind::Modify)
            .map(|c| c.0)
            .collect();
        windows.dedup();
        windows
    };
    let decayed = |chunk: u32, half_life: f64| {
        modified_windows(chunk).iter().map(|&w| decay(w, half_life)).sum::<f64>()
    };
    let rate = |count: f64| naive_log(16.0 * count, 4.0);
    let own = &history[&chunk];
    let modifications: Vec<_> = own.iter().filter(|c| c.3 == AccessKind::Modify).collect();
    let in_window = || modifications.iter().filter(|c| c.0 == last);
    let latest = modifications.iter().map(|c| c.4).max().unwrap();
    let windows = modified_windows(chunk);
    let mut gap = None;
    for pair in windows.windows(2) {
        let this = (1.0 + (ends[pair[1]] - ends[pair[0]]) as f64 / 1e6).log2();
        gap = Some(gap.map_or(this, |gap: f64| gap + (this - gap) / 4.0));
    }
    let (mut sequential, mut expected) = (0.0, 0);
    for c in &modifications {
        let hit = if c.1 == expected { 1.0 } else { 0.0 };
        sequential += (hit - sequential) * f64::from(SEQUENTIAL_STEP);
        expected = c.2;
    }
    let region: f64 = history
        .keys()
        .filter(|&&c| c / 64 == chunk / 64 && c != chunk)
        .map(|&c| decayed(c, 32.0))
        .sum();
    let volume = history.keys().filter(|&&c| modified_windows(c).last() == Some(&last)).count();
    [
        naive_log(in_window().count() as f64, 2.0),
        naive_log(in_window().map(|c| f64::from(c.2 - c.1)).sum::<f64>() / 4096.0, 2.0),
        naive_log(
            own.iter().filter(|c| c.3 == AccessKind::Read).map(|c| decay(c.0, 32.0)).sum(),
            2.0,
        ),
        naive_log((now - latest) as f64 / 1e6, 3.0),
        rate(decayed(chunk, 4.0)),
        rate(decayed(chunk, 32.0)),
        rate(decayed(chunk, 256.0)),
        rate(decayed(chunk, 2048.0)),
        gap.map_or(4.0, |gap| (gap / 3.0).min(4.0)),
        f64::from(expected) / f64::from(CHUNK_BYTES),
        sequential,
        chunk.checked_sub(1).map_or(0.0, |c| rate(decayed(c, 4.0))),
        rate(decayed(chunk + 1, 4.0)),
        rate(region),
        f64::NAN,
        naive_log(volume as f64, 4.0),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn features_are_what_their_definition_says(
        windows in prop::collection::vec(
            (
                200_000..3_000_000_u64,
                prop::collection::vec(
                    (0..90_u64, 0..64_u64, 1..200_u64, any::<bool>(), 0..100_u64), 0..12),
            ),
            1..30,
        )
    ) {
        let mut monitor = Monitor::new(options(1000));
        let mut history = History::new();
        let mut ends: Vec<u64> = Vec::new();
        let mut now = 0;
        for (index, (length_us, commands)) in windows.iter().enumerate() {
            // The first window counts as one of the planned length.
            let length_us = if index == 0 { SECOND_US } else { *length_us };
            for &(chunk, block, blocks, writes, at) in commands {
                let time_us = now + length_us * at / 100;
                let kind = if writes { AccessKind::Modify } else { AccessKind::Read };
                let offset = chunk * u64::from(CHUNK_BYTES) + block * 4096;
                let access = Access::new(offset, blocks * 4096, kind, time_us, CHUNK_BYTES);
                monitor.record(&access);
                let end = offset + blocks * 4096;
                for chunk in access.chunk_first..=access.chunk_last {
                    if kind == AccessKind::Read && !history.contains_key(&chunk) {
                        continue;
                    }
                    let base = u64::from(chunk) * u64::from(CHUNK_BYTES);
                    let from = offset.saturating_sub(base) as u32;
                    let to = (end - base).min(u64::from(CHUNK_BYTES)) as u32;
                    history.entry(chunk).or_default().push((index, from, to, kind, time_us));
                }
            }
            now += length_us;
            ends.push(now);
            let tick = monitor.tick(now);
            prop_assert_eq!(tick.index, index as u64);
            let mut chunks = tick.rows.to_vec();
            chunks.sort_unstable();
            prop_assert_eq!(&chunks, &history.keys().copied().collect::<Vec<_>>());
            for (row, &chunk) in tick.rows.iter().enumerate() {
                let expected = naive_features(&history, &ends, chunk);
                for (feature, (&got, want)) in
                    tick.features_of(row).iter().zip(expected).enumerate()
                {
                    prop_assert!((0.0..=4.0).contains(&got));
                    prop_assert!(
                        want.is_nan() || (f64::from(got) - want).abs() < 2e-3,
                        "{} of chunk {chunk} in window {index}: {got}, not {want}",
                        FEATURE_NAMES[feature]
                    );
                }
                let mut written = history[&chunk].iter().filter(|c| c.3 == AccessKind::Modify);
                let first = written.clone().next().unwrap().0;
                prop_assert_eq!(tick.fresh[row], first == index);
                prop_assert_eq!(tick.modified[row], written.next_back().unwrap().0 == index);
            }
        }
    }
}

// ---- rows ---------------------------------------------------------------------------------------

#[test]
fn a_row_id_stays_and_is_flagged_when_it_changes_hands() {
    let mut monitor = Monitor::new(options(50));
    let mut random = Random(7);
    let mut owner: HashMap<u32, u32> = HashMap::new();
    for window in 0..200 {
        for _ in 0..random.below(40) {
            monitor.record(&modify(random.below(300) as u32, window * SECOND_US));
        }
        let tick = monitor.tick((window + 1) * SECOND_US);
        assert!(tick.len() <= 50);
        let mut seen = HashMap::new();
        for (row, (&chunk, &slot)) in tick.rows.iter().zip(tick.slots).enumerate() {
            assert!((slot as usize) < 50, "row id {slot} out of bounds");
            assert!(seen.insert(slot, chunk).is_none(), "row id {slot} is given twice");
            assert!(tick.fresh[row] || owner.get(&slot) == Some(&chunk), "slot {slot}");
        }
        owner = seen;
    }
    assert!(monitor.counters().pushed_out > 100, "{:?}", monitor.counters());
}

#[test]
fn the_chunk_not_accessed_for_longest_is_pushed_out() {
    let mut monitor = Monitor::new(options(3));
    for chunk in [1, 2, 3] {
        monitor.record(&modify(chunk, 0));
    }
    monitor.record(&read(1, 1));
    monitor.record(&modify(4, 2));
    let mut rows = monitor.tick(SECOND_US).rows.to_vec();
    rows.sort_unstable();
    assert_eq!(rows, [1, 3, 4]);
}

#[test]
fn idle_chunks_are_forgotten() {
    let idle_evict_ticks = 5;
    let mut monitor = Monitor::new(MonitorOptions { idle_evict_ticks, ..options(100) });
    monitor.record(&modify(1, 0));
    monitor.record(&modify(2, 0));
    for window in 1..=10 {
        monitor.record(&read(2, window * SECOND_US - 1));
        let rows = monitor.tick(window * SECOND_US).rows.to_vec();
        assert_eq!(rows.contains(&1), window <= idle_evict_ticks, "window {window}");
        assert!(rows.contains(&2));
    }
    assert_eq!(monitor.counters().idle_evicted, 1);
}

#[test]
fn a_command_over_the_whole_volume_is_bounded() {
    let mut monitor = Monitor::new(options(10_000));
    let all = u64::from(CHUNK_BYTES) * 100_000;
    monitor.record(&Access::new(0, all * 2, AccessKind::Modify, 0, CHUNK_BYTES));
    monitor.record(&modify(200_000, 0));
    assert_eq!(monitor.tick(SECOND_US).len(), SPAN_CHUNKS_MAX as usize);
    assert_eq!(monitor.counters().spans_cut, 1);
}

#[test]
fn memory_is_what_the_documentation_says() {
    let active = 1 << 16;
    let mut monitor = Monitor::new(options(active));
    for window in 0..4 {
        for chunk in 0..90_000 {
            monitor.record(&modify(chunk, window * SECOND_US));
        }
        monitor.tick((window + 1) * SECOND_US);
    }
    assert_eq!(monitor.active_chunks(), active);
    let per_million = monitor.memory_bytes() as f64 / active as f64;
    assert!((250.0..350.0).contains(&per_million), "{per_million} MB per million chunks");
}

// ---- determinism, modified together ---------------------------------------------------------------

fn run(seed: u64) -> (Vec<u32>, Vec<u32>, Vec<Proposal>) {
    let mut random = Random(seed);
    let mut monitor = Monitor::new(options(200));
    let (mut bits, mut rows, mut proposals) = (Vec::new(), Vec::new(), Vec::new());
    for window in 0..100 {
        for _ in 0..random.below(30) {
            monitor.record(&modify((random.below(400) * random.below(3)) as u32, window));
        }
        let tick = monitor.tick((window + 1) * SECOND_US);
        rows.extend_from_slice(tick.rows);
        bits.extend(tick.features.iter().map(|feature| feature.to_bits()));
        proposals.extend_from_slice(monitor.proposals());
    }
    (rows, bits, proposals)
}

#[test]
fn the_same_commands_give_the_same_rows() {
    assert_eq!(run(3), run(3));
    assert_ne!(run(3).1, run(4).1);
}

/// Pairs far apart that are always modified together, in one window or across a border, among as
/// many chunks that are modified at random.
#[test]
fn partners_are_found_among_chance() {
    let mut random = Random(11);
    let mut monitor = Monitor::new(options(5_000));
    for window in 0..2_000_u64 {
        let now = window * SECOND_US;
        for pair in 0..10_u32 {
            if random.below(12) != 0 {
                continue;
            }
            monitor.record(&modify(pair * 100, now));
            for _ in 0..random.below(3) {
                monitor.record(&modify(20_000 + random.below(2_000) as u32, now));
            }
            if random.below(4) == 0 {
                monitor.tick(now + SECOND_US / 2);
            }
            monitor.record(&modify(10_000 + pair * 100, now + SECOND_US / 2));
        }
        monitor.tick(now + SECOND_US);
    }
    for pair in 0..10_u32 {
        for (chunk, partner) in
            [(pair * 100, 10_000 + pair * 100), (10_000 + pair * 100, pair * 100)]
        {
            let partners = monitor.partners(chunk);
            assert!(partners.len() <= PARTNERS);
            let found = partners.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
            assert_eq!(found.0, partner, "{chunk}: {partners:?}");
            assert!(found.1 > 0.7, "{chunk}: {partners:?}");
        }
    }
    // One half of a pair points at the other before that is modified, and at nothing else.
    monitor.record(&modify(300, 2_000 * SECOND_US));
    let tick = monitor.tick(2_001 * SECOND_US);
    let partners = FEATURE_NAMES.iter().position(|&name| name == "partners").unwrap();
    let pointed = |chunk| tick.features_of(position_of(&tick, chunk))[partners];
    assert!(pointed(10_300) > pointed(10_400) + 0.2, "{} {}", pointed(10_300), pointed(10_400));
}

#[test]
fn a_partner_that_is_not_active_is_proposed() {
    let idle_evict_ticks = 50;
    let mut monitor = Monitor::new(MonitorOptions { idle_evict_ticks, ..options(100) });
    let mut now = 0;
    for _ in 0..10 {
        now += 20 * SECOND_US;
        monitor.record(&modify(5, now));
        monitor.record(&modify(500, now));
        for _ in 0..3 {
            monitor.tick(now);
        }
    }
    for _ in 0..60 {
        now += SECOND_US;
        monitor.record(&read(5, now));
        monitor.tick(now);
        assert!(monitor.proposals().is_empty(), "nothing was modified");
    }
    monitor.record(&modify(5, now));
    monitor.tick(now + SECOND_US);
    let proposals = monitor.proposals();
    assert_eq!(proposals.len(), 1, "{proposals:?}");
    assert_eq!(proposals[0].chunk, 500);
    assert!(proposals[0].confidence > 0.5, "{proposals:?}");
}

#[test]
fn features_have_names_and_scales() {
    assert_eq!(FEATURE_NAMES.len(), FEATURES);
    assert_eq!(HALF_LIVES_S.len(), SCALES);
}

/// Times of records and ticks: `cargo test --release --no-default-features monitor -- --ignored
/// --nocapture measure`.
#[test]
#[ignore = "prints measurements"]
fn measure_a_tick() {
    for active in [4_096, 16_384, 65_536_u64] {
        let mut random = Random(5);
        let mut monitor = Monitor::new(MonitorOptions::new(1 << 22, CHUNK_BYTES));
        let (mut record_ns, mut tick_ns, mut records) = (0, 0, 0);
        for window in 0..60 {
            let accesses: Vec<Access> = (0..active)
                .map(|_| modify(random.below(active) as u32 * 64, window * SECOND_US))
                .collect();
            let began = std::time::Instant::now();
            for access in &accesses {
                monitor.record(access);
            }
            let recorded = std::time::Instant::now();
            let rows = monitor.tick((window + 1) * SECOND_US).len();
            if rows as u64 > active * 99 / 100 {
                record_ns += recorded.duration_since(began).as_nanos();
                tick_ns += recorded.elapsed().as_nanos();
                records += u128::from(active);
            }
        }
        let ticks = records / u128::from(active);
        println!(
            "{active} active chunks: {} ns a record, {} us a tick with as many records, {:.1} MB",
            record_ns / records,
            tick_ns / ticks / 1000,
            monitor.memory_bytes() as f64 / 1e6
        );
    }
}
