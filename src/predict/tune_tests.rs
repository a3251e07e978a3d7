use super::*;
use crate::monitor::{Access, AccessKind, MonitorOptions};
use crate::predict::future::each_tick;
use crate::predict::model::Shape;
use crate::predict::net::initialise;
use crate::predict::{Forecast, WINDOWS};

/// 200 chunks, modified at random every 20 s on average.
fn trace(seconds: u64) -> Vec<Access> {
    let mut random = Random::new(4);
    let mut accesses: Vec<_> = (0..seconds * 10)
        .map(|_| {
            let time_us = random.below(seconds * 1_000_000);
            Access::new(random.below(200) << 18, 4096, AccessKind::Modify, time_us, 1 << 18)
        })
        .collect();
    accesses.sort_by_key(|access| access.time_us);
    accesses
}

/// Believes that hardly anything is ever modified.
fn model() -> Model {
    let mut model = Model::zeros(Shape { features: FEATURES, hidden: 8 }, 1000);
    model.scale.fill(1.0);
    initialise(&mut model, &mut Random::new(1));
    model
}

fn options() -> TuneOptions {
    TuneOptions {
        delay_ticks: 60,
        every_ticks: 1,
        rate: 1e-2,
        step_budget: Duration::MAX,
        ..TuneOptions::default()
    }
}

/// Runs the trace; the mean prediction for a minute at the end, and all verdicts.
fn run(options: TuneOptions) -> (f32, Vec<Verdict>, Tuned) {
    let mut tuned = Tuned::new(model(), options);
    let (mut verdicts, mut mean) = (vec![], 0.0);
    let mut prediction = Prediction::default();
    let context = Context::new(Forecast::known(60_000_000));
    each_tick(&trace(900), MonitorOptions::new(256, 1 << 18), |tick| {
        tuned.step(tick, &context, &mut prediction);
        let (watched, ready) = tuned.tuner.sequences();
        assert!(watched <= WATCHED_MAX && ready <= READY_MAX);
        if let Some(verdict) = tuned.tuner.verdict()
            && verdicts.last() != Some(&verdict)
        {
            verdicts.push(verdict);
        }
        let sum: f32 = prediction.p_modify.iter().map(|p: &[f32; WINDOWS]| p[1]).sum();
        mean = sum / prediction.p_modify.len() as f32;
    });
    (mean, verdicts, tuned)
}

#[test]
fn what_the_volume_shows_is_learned() {
    let (mean, verdicts, tuned) = run(options());
    assert!(
        matches!(verdicts[0], Verdict::Adopted { before, after } if after < before),
        "{verdicts:?}"
    );
    // 1 - exp(-60 / 20)
    assert!((mean - 0.95).abs() < 0.08, "{mean}");
    assert_ne!(tuned.lstm().model().head_bias, model().head_bias);
}

#[test]
fn a_candidate_that_does_worse_is_dropped() {
    let (_, verdicts, tuned) = run(TuneOptions { rate: 100.0, ..options() });
    assert!(verdicts.len() > 3, "{verdicts:?}");
    for verdict in verdicts {
        assert!(
            matches!(verdict, Verdict::Dropped { before, after } if after > before || after.is_nan()),
            "{verdict:?}"
        );
    }
    assert_eq!(tuned.lstm().model(), &model());
}

#[test]
fn a_model_that_became_worse_than_the_first_gives_way_to_it() {
    let (_, _, mut tuned) = run(TuneOptions { judge_steps: u32::MAX, ..options() });
    let mut worse = model();
    worse.head_bias.fill(-30.0);
    tuned.lstm.replace(worse);
    tuned.tuner.trainer = Trainer::new(tuned.lstm.model());
    let verdict = tuned.tuner.judge(&mut tuned.lstm);
    assert!(
        matches!(verdict, Verdict::Reverted { before, after } if after < before),
        "{verdict:?}"
    );
    assert_eq!(tuned.lstm().model(), &model());
}

#[test]
fn outcomes_are_those_that_came() {
    let (_, _, tuned) = run(TuneOptions { judge_steps: u32::MAX, ..options() });
    let future = crate::predict::future::Future::new(&trace(900), 1_000_000);
    let (mut checked, mut chunks) = (0, vec![u32::MAX; 300]);
    each_tick(&trace(900), MonitorOptions::new(256, 1 << 18), |tick| {
        for (slot, chunk) in tick.slots.iter().zip(tick.rows) {
            chunks[*slot as usize] = *chunk;
        }
    });
    for sequence in &tuned.tuner.ready {
        assert_eq!(sequence.ticks(), TICKS);
        for tick in 0..TICKS {
            let now = sequence.first_tick as u32 + tick as u32;
            let came = future.after(chunks[sequence.slot as usize], now);
            match sequence.outcome(tick) {
                Outcome::Unmodified(seen) => assert_eq!(came.within(seen), Some(false)),
                modified @ Outcome::Modified(_) => assert_eq!(modified, came),
            }
            checked += 1;
        }
    }
    assert!(checked > 5000, "{checked}");
}

/// Work on other cores than the predictor's would slow down a reactor. In a process of its own, since
/// in this one other tests start threads.
///
/// Fails when a tick starts a thread that stays, or one that works for it and ends.
#[test]
fn a_tick_starts_no_thread() {
    let (_, module) = module_path!().split_once("::").unwrap();
    let test = format!("{module}::ticks_in_a_process_of_their_own");
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test.as_str(), "--exact", "--ignored"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// Hundredths of a second that a process (those of its threads that ended included) or a thread has
/// computed.
fn computed(stat: &str) -> u64 {
    let text = std::fs::read_to_string(stat).unwrap();
    let (_, numbers) = text.rsplit_once(')').unwrap();
    let numbers = numbers.split_whitespace().skip(11).take(2);
    numbers.map(|number| number.parse::<u64>().unwrap()).sum()
}

#[test]
#[ignore = "started by a_tick_starts_no_thread"]
fn ticks_in_a_process_of_their_own() {
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let mut threads: Vec<_> = tasks.map(|task| task.unwrap().file_name()).collect();
        threads.sort();
        threads
    };
    let all_and_own = || ["/proc/self/stat", "/proc/thread-self/stat"].map(computed);
    let (threads_before, computed_before) = (threads(), all_and_own());

    let context = Context::new(Forecast::known(60_000_000));
    let mut tuned = Tuned::new(model(), options());
    let mut prediction = Prediction::default();
    each_tick(&trace(900), MonitorOptions::new(256, 1 << 18), |tick| {
        tuned.step(tick, &context, &mut prediction);
        assert_eq!(threads(), threads_before, "while it learns");
    });
    assert!(tuned.tuner.verdict().is_some(), "nothing was learned");
    // More rows than are computed at once.
    let slots: Vec<u32> = (0..8192).collect();
    let (x, fresh) = (vec![0.5; slots.len() * FEATURES], vec![true; slots.len()]);
    for _ in 0..20 {
        tuned.lstm.advance(&slots, &x, &fresh, &mut vec![]);
        assert_eq!(threads(), threads_before, "many rows");
    }

    let computed: Vec<u64> =
        all_and_own().iter().zip(computed_before).map(|(a, b)| a - b).collect();
    let (all, own) = (computed[0], computed[1]);
    assert!(own >= 20, "{own} hundredths of a second say nothing");
    assert!(
        all <= own + own / 10 + 2,
        "{all} hundredths of a second, of which {own} on its thread"
    );
}
