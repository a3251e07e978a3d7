//! Staging and copying in the order that a predictor gives.

use super::super::Score;
use super::super::controller::{Aims, Reason};
use super::*;

/// A volume that stages what is scored 0.5 or more.
fn scored(chunks: u64, slots: u32, staging_slots_max: u64) -> Bench {
    let mut bench = Bench::new(chunks, slots);
    let policy = PolicyKind::Scored { threshold: Score::of(0.5) };
    let settings = Settings { policy, staging_slots_max, ..bench.engine.settings() };
    bench.engine.set_settings(settings, bench.now);
    for chunk in 0..chunks as u32 {
        bench.write(range(chunk, 0, 1));
    }
    bench
}

fn scores(scores: &[(u32, f32)]) -> Event {
    let pair = |&(chunk, score): &(u32, f32)| (ChunkIndex(chunk), Score::of(score));
    Event::Scores(scores.iter().map(pair).collect())
}

fn chunks(effects: &[Effect]) -> Vec<u32> {
    copies(effects).iter().map(|job| job.chunk.0).collect()
}

#[test]
fn what_is_scored_is_staged_the_best_first() {
    let mut bench = scored(8, 8, u64::MAX);
    bench.engine.set_limits(Limits { staging_in_flight_max: 2, ..Limits::default() });
    assert!(copies(&bench.tick_after(1_000)).is_empty(), "nothing is scored yet");
    let effects = bench.apply(scores(&[(1, 0.6), (2, 0.4), (3, 0.9), (4, 0.7), (5, 0.5)]));
    assert_eq!(chunks(&effects), [3, 4]);
    // Written since it was scored: it has to be scored again.
    bench.write(range(1, 0, 1));
    let jobs = copies(&effects);
    bench.copy_done(&jobs[0], written());
    let next = bench.copy_done(&jobs[1], written());
    assert!(next.is_empty(), "{next:?}");
    assert_eq!(bench.engine.staged_len(), 3, "5 was begun when 3 was done");
    assert_eq!(chunks(&bench.apply(scores(&[(1, 0.6), (3, 1.0)]))), [1], "3 is right as it is");
}

#[test]
fn what_nobody_follows_is_staged_after_a_while() {
    let mut bench = scored(8, 8, u64::MAX);
    bench.apply(scores(&[(0, 0.1), (1, 0.1), (2, 0.1), (3, 0.1), (4, 0.1), (5, 0.1), (6, 0.1)]));
    let before = bench.tick_after(59_000_000);
    assert!(copies(&before).is_empty(), "{before:?}");
    assert_eq!(chunks(&bench.tick_after(2_000_000)), [7]);
}

#[test]
fn staged_copies_give_way_to_better_ones() {
    let mut bench = scored(8, 8, 2);
    for job in copies(&bench.apply(scores(&[(0, 0.9), (1, 0.8)]))) {
        bench.copy_done(&job, written());
    }
    // Not much better than what is there: it would not pay.
    assert!(chunks(&bench.apply(scores(&[(0, 0.6), (1, 0.7), (2, 0.8)]))).is_empty());
    assert_eq!(bench.engine.counters().staging_refused, 1);
    let effects = bench.apply(scores(&[(0, 0.6), (1, 0.3), (2, 0.8)]));
    assert_eq!(chunks(&effects), [2]);
    assert_eq!(bench.engine.counters().evicted_copies, 1);
    assert!(bench.engine.staged_chunk(ChunkIndex(0)).is_some());
    assert!(bench.engine.staged_chunk(ChunkIndex(1)).is_none());
    assert_eq!(bench.slots.free(), 6, "its slot is free again");
}

#[test]
fn a_snapshot_begins_with_the_chunks_that_are_written_soonest() {
    let mut bench = Bench::new(8, 8);
    bench.engine.set_limits(Limits { copies_in_flight_max: 2, ..Limits::default() });
    for chunk in [1, 2, 3, 5, 6] {
        bench.write(range(chunk, 0, 1));
    }
    // 4 is not dirty.
    bench.apply(Event::Soonest([6, 4, 3].map(ChunkIndex).to_vec()));
    let effects = bench.cut(1);
    let jobs = copies(&effects);
    assert_eq!(chunks(&effects), [6, 3]);
    bench.parked(5);
    assert_eq!(chunks(&bench.copy_done(&jobs[0], written())), [5], "who waits goes before all");
    let mut left: Vec<u32> = Vec::new();
    let mut effects = bench.copy_done(&jobs[1], written());
    while let Some(job) = copies(&effects).first().copied() {
        left.push(job.chunk.0);
        effects = bench.copy_done(&job, written());
    }
    assert_eq!(left, [1, 2]);
}

/// A snapshot whose chunks are all copied after the cut, each in a tenth of a second.
fn slow_snapshot(bench: &mut Bench, seq: u32) -> Vec<Effect> {
    let mut effects = bench.cut(seq);
    while let Some(job) = copies(&effects).first().copied() {
        bench.now.0 += 100_000;
        effects = bench.copy_done(&job, written());
    }
    assert!(flushes(&effects), "{effects:?}");
    bench.apply(Event::FlushDone(Ok(())));
    bench.catalog_done(CatalogStep::Complete)
}

/// Fails when the controller is not asked, or when what it says does not reach the policy.
#[test]
fn a_slow_snapshot_lowers_the_threshold_from_the_next_scores_on() {
    let mut bench = scored(4, 8, u64::MAX);
    let aims = Aims { threshold: Score::of(0.5), complete_us_max: Some(10_000) };
    let settings = Settings { aims: Some(aims), ..bench.engine.settings() };
    bench.engine.set_settings(settings, bench.now);
    bench.engine.set_limits(Limits { copies_in_flight_max: 1, ..Limits::default() });
    bench.now.0 += 120_000_000;
    assert!(chunks(&bench.apply(scores(&[(0, 0.45), (1, 0.45), (2, 0.45), (3, 0.45)]))).is_empty());
    let effects = slow_snapshot(&mut bench, 1);
    let moved = effects.iter().find_map(|effect| match effect {
        Effect::Threshold(change) => Some(*change),
        _ => None,
    });
    let moved = moved.expect("the threshold is moved");
    assert_eq!(moved.reason, Reason::Slow { took_us: 400_000, target_us: 10_000 });
    let (threshold, changes) = bench.engine.threshold().expect("the policy has one");
    assert_eq!((threshold, changes), (moved.to, vec![moved]));
    // Settings that do not concern it leave it alone.
    let settings = Settings { staging_slots_max: 4, ..bench.engine.settings() };
    bench.engine.set_settings(settings, bench.now);
    bench.write(range(2, 0, 1));
    assert_eq!(chunks(&bench.apply(scores(&[(2, 0.45)]))), [2]);
    // A fixed threshold is the end of it.
    let settings = Settings { aims: None, ..bench.engine.settings() };
    bench.engine.set_settings(settings, bench.now);
    assert_eq!(bench.engine.threshold(), Some((Score::of(0.5), vec![])));
}

/// Fails when what is copied again and again between two cuts is not seen as copied in vain.
#[test]
fn copies_in_vain_raise_the_threshold_while_no_snapshot_comes() {
    let mut bench = scored(64, 64, u64::MAX);
    let aims = Aims { threshold: Score::of(0.5), complete_us_max: None };
    let settings = Settings { aims: Some(aims), ..bench.engine.settings() };
    bench.engine.set_settings(settings, bench.now);
    for _ in 0..100 {
        bench.write(range(0, 0, CHUNK_LBAS));
        bench.now.0 += 1_000_000;
        for job in copies(&bench.apply(scores(&[(0, 0.9)]))) {
            bench.copy_done(&job, written());
        }
    }
    let (threshold, changes) = bench.engine.threshold().expect("the policy has one");
    assert!(threshold > Score::of(0.5), "{threshold:?}");
    assert!(matches!(changes[0].reason, Reason::Waste { .. }), "{changes:?}");
}

/// Fails when worthless copies keep their slots, or when worth is seen in what is outdated as a whole.
#[test]
fn outdated_copies_give_their_slots_back_after_a_while() {
    let mut bench = scored(4, 8, u64::MAX);
    for job in copies(&bench.apply(scores(&[(0, 0.9), (1, 0.9), (2, 0.9)]))) {
        bench.copy_done(&job, written());
    }
    bench.write(range(0, 0, CHUNK_LBAS));
    bench.write(range(1, 0, CHUNK_LBAS - 1));
    assert_eq!(bench.slots.free(), 5);
    bench.tick_after(31_000_000);
    let staged = |bench: &Bench, chunk| bench.engine.staged_chunk(ChunkIndex(chunk)).is_some();
    assert_eq!([0, 1, 2].map(|chunk| staged(&bench, chunk)), [false, true, true]);
    assert_eq!((bench.slots.free(), bench.engine.counters().cleaned_copies), (6, 1));
    // With little room left a half is not enough.
    let settings = Settings { staging_slots_max: 2, ..bench.engine.settings() };
    bench.engine.set_settings(settings, bench.now);
    bench.tick_after(31_000_000);
    assert_eq!([1, 2].map(|chunk| staged(&bench, chunk)), [false, true]);
    bench.gate.self_check().unwrap();
}
