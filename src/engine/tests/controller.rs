//! Step changes of what the controller sees, and what it makes of them.

#![allow(clippy::cast_sign_loss, reason = "times and bytes above 0")]

use super::*;

const MIB: u64 = 1 << 20;
const TEN_MIN_US: u64 = 600_000_000;

/// What a snapshot of 100 MiB was like.
#[derive(Clone, Copy)]
struct Load {
    took_ms: u64,
    left_chunks: u64,
    wasted_mib: u64,
    no_room: u64,
}

const WELL: Load = Load { took_ms: 150, left_chunks: 4, wasted_mib: 15, no_room: 0 };
const SLOW: Load = Load { took_ms: 900, left_chunks: 90, ..WELL };
const WASTEFUL: Load = Load { wasted_mib: 60, ..WELL };
const FULL: Load = Load { no_room: 500, ..WELL };

fn spent(load: Load) -> Spent {
    Spent {
        copied_bytes: (80 + load.wasted_mib) * MIB,
        kept_bytes: 80 * MIB,
        required_bytes: 100 * MIB,
        copies: 400,
        no_room: load.no_room,
    }
}

struct Bench {
    controller: Controller,
    now: Micros,
}

impl Bench {
    fn new(target_ms: u64) -> Self {
        let complete_us_max = (target_ms != 0).then_some(target_ms * 1000);
        let aims = Aims { threshold: Score::of(0.5), complete_us_max };
        Self { controller: Controller::new(aims, Micros(0)), now: Micros(0) }
    }

    /// A snapshot ten minutes after the one before.
    fn snapshot(&mut self, load: Load) -> Option<Change> {
        self.now.0 += TEN_MIN_US;
        let finished = Finished {
            took_us: load.took_ms * 1000,
            left_chunks: load.left_chunks,
            spent: spent(load),
        };
        let before = self.controller.threshold();
        let change = self.controller.finished(self.now, &finished);
        let (from, to) = change.map_or((before, before), |change| (change.from, change.to));
        assert_eq!((from, to), (before, self.controller.threshold()), "{change:?}");
        change
    }

    fn threshold(&self) -> f32 {
        self.controller.threshold().probability()
    }
}

#[test]
fn slow_snapshots_lower_the_threshold_step_by_step_and_not_below_its_bound() {
    let mut bench = Bench::new(200);
    assert_eq!(bench.snapshot(WELL), None);
    // Odds of 1 to those of the bound, by a factor of 1.5 each.
    for _ in 0..14 {
        let change = bench.snapshot(SLOW).expect("a step");
        assert!(change.to < change.from, "{change:?}");
        assert_eq!(change.reason, Reason::Slow { took_us: 900_000, target_us: 200_000 });
    }
    for _ in 0..5 {
        assert_eq!(bench.snapshot(SLOW), None);
    }
    assert!((bench.threshold() - THRESHOLD_MIN).abs() < 1e-3, "{}", bench.threshold());
}

#[test]
fn a_snapshot_with_nothing_left_to_copy_or_without_an_aim_lowers_nothing() {
    let mut bench = Bench::new(200);
    assert_eq!(bench.snapshot(Load { left_chunks: 0, ..SLOW }), None);
    let mut bench = Bench::new(0);
    assert_eq!(bench.snapshot(SLOW), None);
}

#[test]
fn copies_in_vain_raise_the_threshold_and_not_above_its_bound() {
    let mut bench = Bench::new(0);
    for _ in 0..8 {
        let change = bench.snapshot(WASTEFUL).expect("a step");
        assert!(change.to > change.from, "{change:?}");
        let (wasted_bytes, required_bytes) = (60 * MIB, 100 * MIB);
        assert_eq!(change.reason, Reason::Waste { wasted_bytes, required_bytes });
    }
    assert_eq!(bench.snapshot(WASTEFUL), None);
    assert!((bench.threshold() - THRESHOLD_MAX).abs() < 1e-3, "{}", bench.threshold());
}

#[test]
fn want_of_room_raises_the_threshold_even_when_snapshots_are_slow() {
    let mut bench = Bench::new(200);
    let change = bench.snapshot(FULL).expect("a step");
    assert!(change.to > change.from, "{change:?}");
    assert_eq!(change.reason, Reason::NoRoom { no_room: 500, copies: 400 });
    // Lower would not help.
    let change = bench.snapshot(Load { no_room: 500, ..SLOW }).expect("a step");
    assert!(change.to > change.from, "{change:?}");
}

/// Fails when slow snapshots and copies in vain pull the threshold to and fro.
#[test]
fn a_slow_snapshot_weighs_more_than_copies_in_vain() {
    let mut bench = Bench::new(200);
    let both = Load { wasted_mib: 60, ..SLOW };
    for _ in 0..3 {
        let change = bench.snapshot(both).expect("a step");
        assert!(change.to < change.from, "{change:?}");
        bench.now.0 += 2 * SETTLE_US;
        assert_eq!(bench.controller.look(bench.now, spent(both)), None);
    }
    // Later it may be tried again.
    let later = (0..=SLOW_REMEMBERED).filter_map(|_| bench.snapshot(WASTEFUL));
    let later: Vec<_> = later.collect();
    assert!(later.len() == 1 && later[0].to > later[0].from, "{later:?}");
}

#[test]
fn between_too_much_and_little_nothing_moves() {
    let mut bench = Bench::new(200);
    bench.snapshot(SLOW);
    let low = bench.threshold();
    for took_ms in [200, 110, 150, 199].repeat(10) {
        assert_eq!(bench.snapshot(Load { took_ms, wasted_mib: 10, ..WELL }), None);
    }
    for wasted_mib in [13, 25, 20].repeat(10) {
        assert_eq!(bench.snapshot(Load { took_ms: 50, wasted_mib, ..WELL }), None);
    }
    assert!((bench.threshold() - low).abs() < 1e-6);
}

#[test]
fn when_all_is_well_it_goes_back_to_where_it_began_and_stays() {
    for (first, target_ms) in [(SLOW, 200), (WASTEFUL, 200), (WASTEFUL, 0)] {
        let mut bench = Bench::new(target_ms);
        for _ in 0..3 {
            assert!(bench.snapshot(first).is_some());
        }
        let calm = Load { took_ms: 50, wasted_mib: 5, ..WELL };
        let changes: Vec<_> = (0..40).filter_map(|_| bench.snapshot(calm)).collect();
        assert_eq!(changes.len(), 3, "{changes:?}");
        assert!(changes.iter().all(|change| change.reason == Reason::Calm));
        assert_eq!(bench.controller.threshold(), Score::of(0.5));
    }
}

/// What happened under another threshold is no reason to move the present one.
#[test]
fn a_threshold_is_judged_only_once_it_was_in_force_for_a_while() {
    let mut bench = Bench::new(200);
    assert!(bench.snapshot(SLOW).is_some());
    let finished = Finished { took_us: 900_000, left_chunks: 90, spent: spent(SLOW) };
    let soon = Micros(bench.now.0 + SETTLE_US - 1);
    assert_eq!(bench.controller.finished(soon, &finished), None);
    // Nor if it is over only because the snapshot took so long.
    let finished = Finished { took_us: SETTLE_US, ..finished };
    let later = Micros(bench.now.0 + 2 * SETTLE_US - 1);
    assert_eq!(bench.controller.finished(later, &finished), None);
    assert!(bench.controller.finished(Micros(later.0 + 1), &finished).is_some());
}

/// While no snapshot comes: each step is for what was copied in vain since the step before.
#[test]
fn without_snapshots_waste_is_looked_at_each_minute_and_counts_once() {
    let mut bench = Bench::new(0);
    let mut so_far = spent(WASTEFUL);
    let minute = |bench: &mut Bench, so_far: Spent| {
        bench.now.0 += SETTLE_US;
        assert!(bench.controller.is_due(bench.now));
        let change = bench.controller.look(bench.now, so_far);
        assert!(!bench.controller.is_due(bench.now));
        change
    };
    assert!(minute(&mut bench, so_far).is_some());
    for _ in 0..5 {
        assert_eq!(minute(&mut bench, so_far), None);
    }
    so_far.copied_bytes += 60 * MIB;
    assert!(minute(&mut bench, so_far).is_some());
    // A snapshot takes it all in; then counting begins anew.
    assert_eq!(bench.snapshot(Load { wasted_mib: 120, ..WELL }), None);
    assert!(bench.snapshot(WASTEFUL).is_some());
}

/// A volume whose snapshots take the longer the higher the threshold is, and whose waste grows the
/// lower it is: after a step of the load the threshold finds its place, and stays.
#[test]
fn after_a_step_of_the_load_it_finds_its_place() {
    let mut bench = Bench::new(200);
    let mut steps = 0;
    for snapshot in 0..80 {
        let slowness = if snapshot < 40 { 300.0 } else { 1200.0 };
        let threshold = bench.threshold();
        let load = Load {
            took_ms: 20 + (threshold * slowness) as u64,
            left_chunks: 50,
            wasted_mib: (3.0 / threshold) as u64,
            no_room: 0,
        };
        let changed = bench.snapshot(load).is_some();
        steps += u32::from(changed);
        if (20..40).contains(&snapshot) || snapshot >= 60 {
            assert!(!changed, "{snapshot}: still moving, at {threshold}");
            assert!(load.took_ms <= 200, "{snapshot}: {} ms", load.took_ms);
        }
    }
    assert!((1..12).contains(&steps), "{steps}");
}

#[test]
fn the_last_changes_are_kept_and_no_more() {
    let mut bench = Bench::new(0);
    for _ in 0..30 {
        bench.snapshot(WASTEFUL);
        bench.controller.level = 0;
    }
    let kept: Vec<_> = bench.controller.changes().collect();
    assert_eq!(kept.len(), CHANGES_KEPT);
    assert!(kept.windows(2).all(|pair| pair[0].at < pair[1].at));
    assert_eq!(kept.last().map(|change| change.at), Some(bench.now));
    let text = kept[0].reason.to_string();
    assert_eq!(text, "60 MiB were copied in vain, with 100 MiB required");
}
