//! What predicting costs: the time of a tick, memory, and the time of training.

use std::time::Instant;

use serde::Serialize;

use crate::monitor::{Access, AccessKind, MonitorOptions};
use crate::predict::baseline::Rate;
use crate::predict::logistic::Logistic;
use crate::predict::model::Model;
use crate::predict::{Adviser, Predictor, Terms};

/// Active chunks at which a tick is timed.
const SIZES: [u32; 4] = [1024, 4096, 16_384, 65_536];
/// Ticks timed; the middle one counts.
const TICKS: u64 = 9;
/// In each tick one in so many chunks is modified.
const MODIFIED: u32 = 16;
const CHUNK_BYTES: u32 = 256 << 10;
/// Training steps timed, and those of the shipped model.
#[cfg(feature = "lstm")]
const TRAINING_STEPS: usize = 50;
#[cfg(feature = "lstm")]
const SHIPPED_STEPS: usize = 3000;

/// All of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cost {
    /// Per predictor and number of chunks.
    pub ticks: Vec<TickCost>,
    /// How long training takes; `None`: not measured.
    pub training: Option<TrainingCost>,
}

/// One predictor with so many active chunks.
#[derive(Clone, Debug, Serialize)]
pub struct TickCost {
    /// The predictor.
    pub predictor: String,
    /// Active chunks.
    pub chunks: u32,
    /// Time of a tick, all of it: monitor, features, prediction, scores. The middle one.
    pub tick_ms: f64,
    /// The longest one.
    pub tick_ms_max: f64,
    /// What the monitor says it takes, in megabytes per million active chunks.
    pub monitor_mb_per_million: f64,
    /// What the process grew by, likewise: monitor, predictor, and advice of a tick. Rough where
    /// chunks are few.
    pub process_mb_per_million: f64,
}

/// Training.
#[derive(Clone, Debug, Serialize)]
pub struct TrainingCost {
    /// Preparing one of each made-up workload, in seconds.
    pub prepare_s: f64,
    /// Rows that were drawn.
    pub rows: usize,
    /// Time of a step.
    pub step_ms: f64,
    /// Steps of the shipped model, at that time, in seconds.
    pub shipped_s: f64,
}

/// Measures; `tell` hears what is being done.
pub fn measure(model: &Model, quick: bool, tell: &mut dyn FnMut(&str)) -> Cost {
    let mut ticks = vec![];
    // What was freed before would be used again and hide growth: the largest ones first.
    for &chunks in SIZES.iter().rev() {
        for predictor in predictors(model) {
            tell(&format!("measuring a tick of {} with {chunks} chunks", predictor.name()));
            ticks.push(tick_cost(predictor, chunks));
        }
    }
    ticks.sort_by_key(|cost| cost.chunks);
    let training = if quick { None } else { training(tell) };
    Cost { ticks, training }
}

fn predictors(model: &Model) -> Vec<Box<dyn Predictor>> {
    #[cfg(feature = "lstm")]
    use crate::predict::{
        Lstm,
        tune::{TuneOptions, Tuned},
    };
    vec![
        #[cfg(feature = "lstm")]
        Box::new(Tuned::new(model.clone(), TuneOptions::default())),
        #[cfg(feature = "lstm")]
        Box::new(Lstm::new(model.clone())),
        Box::new(Logistic::new(model.clone())),
        Box::new(Rate),
    ]
}

fn tick_cost(predictor: Box<dyn Predictor>, chunks: u32) -> TickCost {
    let before = resident_bytes();
    let name = predictor.name().to_owned();
    let options = MonitorOptions::new(2 * chunks, CHUNK_BYTES);
    let mut adviser = Adviser::new(predictor, options);
    let mut times_ms = vec![];
    let mut process_bytes = 0;
    for tick in 0..=TICKS {
        let begin_us = tick * options.tick_us;
        // All at first, which is not timed.
        let step = if tick == 0 { 1 } else { MODIFIED };
        let first = (tick as u32 * 5) % step;
        for (place, chunk) in (first..chunks).step_by(step as usize).enumerate() {
            let time_us = begin_us + place as u64 % options.tick_us;
            let offset = u64::from(chunk) * 2 * u64::from(CHUNK_BYTES);
            let kind = AccessKind::Modify;
            adviser.record(&Access::new(offset, 4096, kind, time_us, CHUNK_BYTES));
        }
        let began = Instant::now();
        let advice = adviser.tick(begin_us + options.tick_us, &Terms::default(), |_| Some(4096));
        if tick > 0 {
            times_ms.push(began.elapsed().as_secs_f64() * 1e3);
        }
        process_bytes = resident_bytes().saturating_sub(before);
        drop(advice);
    }
    times_ms.sort_by(f64::total_cmp);
    let per_million = |bytes: usize| bytes as f64 / f64::from(chunks);
    TickCost {
        predictor: name,
        chunks,
        tick_ms: times_ms[times_ms.len() / 2],
        tick_ms_max: times_ms[times_ms.len() - 1],
        monitor_mb_per_million: per_million(adviser.monitor().memory_bytes()),
        process_mb_per_million: per_million(process_bytes),
    }
}

/// What this process holds in memory; 0 where the system does not say.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|text| text.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(feature = "lstm")]
fn training(tell: &mut dyn FnMut(&str)) -> Option<TrainingCost> {
    use crate::replay::training::{Happening, TrainingOptions, run};
    let options =
        TrainingOptions { seed: 1, steps: TRAINING_STEPS, hidden: 32, workload_instances: 1 };
    let began = Instant::now();
    let (mut rows, mut ready_s) = (0, None);
    run(options, &[], |happening| match happening {
        Happening::Preparing(what) => tell(&format!("measuring training: {what}")),
        Happening::Prepared(count, _) => {
            rows = count;
            ready_s = Some(began.elapsed().as_secs_f64());
        }
        Happening::Training(_) => {}
    });
    let prepare_s = ready_s?;
    let step_s = (began.elapsed().as_secs_f64() - prepare_s) / TRAINING_STEPS as f64;
    let shipped_s = step_s * SHIPPED_STEPS as f64;
    Some(TrainingCost { prepare_s, rows, step_ms: step_s * 1e3, shipped_s })
}

#[cfg(not(feature = "lstm"))]
fn training(_: &mut dyn FnMut(&str)) -> Option<TrainingCost> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_has_its_time_and_its_memory() {
        let cost = tick_cost(Box::new(Rate), 1024);
        assert_eq!((cost.predictor.as_str(), cost.chunks), ("rate", 1024));
        assert!(cost.tick_ms > 0.0 && cost.tick_ms <= cost.tick_ms_max, "{cost:?}");
        assert!(cost.monitor_mb_per_million > 100.0, "{cost:?}");
    }
}
