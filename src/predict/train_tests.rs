use super::*;
use crate::monitor::{Access, AccessKind, MonitorOptions};

/// Two kinds of chunks whose bursts look alike until one remembers how the last ones went on: one
/// is written every 4 s, four times, and then rests for 10 min; the other goes on and on.
fn trace(seed: u64) -> Vec<Access> {
    let mut random = Random::new(seed);
    let mut accesses = vec![];
    for chunk in 0..40_u64 {
        let bursty = chunk % 2 == 0;
        let mut time_s = random.between(0.0, 60.0);
        let mut count = 0;
        while time_s < 1800.0 {
            let at_us = (time_s * 1e6) as u64;
            accesses.push(Access::new(chunk << 18, 4096, AccessKind::Modify, at_us, 1 << 18));
            count += 1;
            time_s += if bursty && count % 4 == 0 { random.between(300.0, 600.0) } else { 4.0 };
        }
    }
    accesses.sort_by_key(|access| access.time_us);
    accesses
}

fn source(seed: u64) -> Source {
    let options = MonitorOptions::new(64, 1 << 18);
    let sequences = Sequences::draw(&trace(seed), options, 60_000, &mut Random::new(seed));
    Source { name: "bursts".into(), sequences, weight: 1.0 }
}

fn options(steps: usize) -> TrainOptions {
    TrainOptions { seed: 1, steps, hidden: 8, tick_ms: 1000, report_steps: 50 }
}

#[test]
fn training_is_decided_by_its_seed() {
    let sources = [source(1)];
    let model = train(options(12), &sources, &[], |_| {});
    assert_eq!(model, train(options(12), &sources, &[], |_| {}));
    let other = TrainOptions { seed: 2, ..options(12) };
    assert_ne!(model, train(other, &sources, &[], |_| {}));
}

#[test]
fn training_learns_what_holds_for_other_traces() {
    let (sources, held_out) = ([source(1), source(2)], [source(3)]);
    let mut reports = vec![];
    let model = train(options(150), &sources, &held_out, |progress| reports.push(progress));
    assert_eq!(reports.len(), 3);
    let first = reports[0].held_out_loss.unwrap();
    let last = loss_of(&model, &held_out);
    assert!(last < 0.8 * first, "held out: {first} after 50 steps, {last} in the end");
}
