//! What the gate costs. Measurements, not checks, so they are ignored by default:
//!
//! ```text
//! cargo test --release --no-default-features --test gate_speed -- --ignored --nocapture \
//!     --test-threads 1
//! ```
//!
//! Instructions: run `instructions` under `valgrind --tool=callgrind` with `GATE_ROUNDS=0` and
//! `GATE_ROUNDS=100000`, and divide the difference by 100000.
#![cfg(not(loom))]
#![allow(clippy::cast_precision_loss, reason = "printed to a tenth")]

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use presnap::gate::{ChunkIndex, Entry, Gate, Geometry, Initial, LbaRange, OperationNumber};

/// 16 TiB in chunks of 256 KiB.
const HUGE_CHUNKS: u64 = 64 << 20;
const CHUNK_LBAS: u64 = 64;
/// Repetitions of each measurement; the best and the middle one are printed, since others share
/// the machine.
const REPEATS: usize = 9;

fn gate(chunks: u64) -> Gate {
    let geometry = Geometry::new(256 << 10, 4096, chunks * CHUNK_LBAS).expect("in bounds");
    Gate::new(geometry, Initial::Clean, OperationNumber(0)).expect("address space")
}

fn write(gate: &Gate, range: LbaRange) {
    let entry = gate.enter(black_box(range));
    assert!(matches!(entry, Entry::Entered { .. }));
    gate.leave(black_box(range));
}

/// Runs `once(rounds)` several times and prints nanoseconds per round.
fn report(what: &str, rounds: u64, mut once: impl FnMut(u64)) {
    once(rounds / 10 + 1);
    let mut ns: Vec<f64> = (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            once(rounds);
            start.elapsed().as_nanos() as f64 / rounds as f64
        })
        .collect();
    ns.sort_by(f64::total_cmp);
    println!("{what:52} {:8.1} ns best {:8.1} ns median", ns[0], ns[REPEATS / 2]);
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
#[ignore = "a measurement"]
fn one_thread() {
    let gate = gate(1 << 20);
    let atomics = [const { AtomicU64::new(0) }; 2];
    report("  three uncontended locked additions alone", 2_000_000, |rounds| {
        (0..rounds).for_each(|_| {
            for atomic in [0, 1, 0] {
                black_box(&atomics)[atomic].fetch_add(1, Ordering::AcqRel);
            }
        });
    });
    let one = LbaRange::new(CHUNK_LBAS * 3 + 5, 1);
    report("enter + leave, one chunk", 2_000_000, |rounds| {
        (0..rounds).for_each(|_| write(&gate, one));
    });
    let two = LbaRange::new(CHUNK_LBAS * 3 - 1, 2);
    report("enter + leave, two chunks", 1_000_000, |rounds| {
        (0..rounds).for_each(|_| write(&gate, two));
    });
    let taken = gate.begin_copy(ChunkIndex(3)).expect("dirty");
    let _ = gate.end_copy(ChunkIndex(3), true, taken);
    report("enter + leave, one chunk, staged", 2_000_000, |rounds| {
        (0..rounds).for_each(|_| write(&gate, one));
    });
    let mut state = 88_172_645_463_325_252;
    report("  the random numbers alone", 10_000_000, |rounds| {
        (0..rounds).for_each(|_| {
            black_box(random(&mut state));
        });
    });
    for shift in [10, 16, 20] {
        report(
            &format!("enter + leave, random over {} Ki chunks", 1 << (shift - 10)),
            1_000_000,
            |rounds| {
                (0..rounds).for_each(|_| {
                    let chunk = random(&mut state) & ((1 << shift) - 1);
                    write(&gate, LbaRange::new(chunk * CHUNK_LBAS, 1));
                });
            },
        );
    }
}

/// Touches 1 GiB.
#[test]
#[ignore = "a measurement"]
fn huge_volume() {
    let start = Instant::now();
    let gate = gate(HUGE_CHUNKS);
    println!("{:52} {:8.1} us", "create, 64 Mi chunks", start.elapsed().as_secs_f64() * 1e6);
    let mut walk = gate.dirty_walk(gate.epoch());
    let start = Instant::now();
    while !gate.peek_dirty(&mut walk, 1024, |_| ()) {}
    println!(
        "{:52} {:8.1} us",
        "walk, 64 Mi clean chunks, cold",
        start.elapsed().as_secs_f64() * 1e6
    );
    let mut state = 88_172_645_463_325_252;
    let start = Instant::now();
    let first = 100_000;
    for _ in 0..first {
        write(&gate, LbaRange::new(random(&mut state) % HUGE_CHUNKS * CHUNK_LBAS, 1));
    }
    let ns = start.elapsed().as_secs_f64() * 1e9 / f64::from(first);
    println!("{:52} {ns:8.1} ns", "enter + leave, random over 64 Mi, first touch");
    report("enter + leave, random over 64 Mi chunks", 2_000_000, |rounds| {
        (0..rounds).for_each(|_| {
            write(&gate, LbaRange::new(random(&mut state) % HUGE_CHUNKS * CHUNK_LBAS, 1));
        });
    });
    let start = Instant::now();
    let cut = gate.cut().expect("the first");
    let cut_ns = start.elapsed().as_nanos();
    let (mut walk, mut dirty) = (gate.dirty_walk(cut.old_epoch), 0u64);
    let start = Instant::now();
    while !gate.take_dirty(&mut walk, 1024, |_| dirty += 1) {}
    let ms = start.elapsed().as_secs_f64() * 1e3;
    println!("{:52} {cut_ns:8} ns", "cut");
    println!("{:52} {ms:8.1} ms for {dirty} dirty of 64 Mi", "walk");
}

#[test]
#[ignore = "a measurement"]
fn two_threads() {
    let gate = gate(1 << 20);
    for (what, distance) in [("the same chunk", 0), ("chunks far apart", 1000)] {
        report(&format!("enter + leave, each of two threads, {what}"), 2_000_000, |rounds| {
            let barrier = Barrier::new(2);
            std::thread::scope(|scope| {
                for thread in 0..2 {
                    let (gate, barrier) = (&gate, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        let range = LbaRange::new((1 + thread * distance) * CHUNK_LBAS, 1);
                        (0..rounds).for_each(|_| write(gate, range));
                    });
                }
            });
        });
    }
}

/// For callgrind, see above.
#[test]
#[ignore = "a measurement"]
fn instructions() {
    let rounds = std::env::var("GATE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let gate = gate(16);
    let range = LbaRange::new(CHUNK_LBAS, 1);
    (0..rounds).for_each(|_| write(&gate, range));
}
