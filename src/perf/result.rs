//! What a scenario gave: everything that the report shows and summary.json holds.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::latency::{self, Bucket};
use super::metric::{self, Values};
use super::scenario::{Goal, Scenario};

/// One run of one contender.
#[derive(Clone, Debug, Default)]
pub struct RunFigures {
    /// What the figures are about, where that is more than the contender: a number of snapshots,
    /// of reactors, a size.
    pub steps: Vec<StepFigures>,
    /// Latency and rate over time around the snapshot.
    pub timeline: Vec<Bucket>,
    /// Latencies of writes and of reads over the whole load.
    pub writes: Option<Histogram<u64>>,
    /// Those of reads.
    pub reads: Option<Histogram<u64>>,
    /// What a reader should know.
    pub remarks: Vec<String>,
}

/// Figures at one step.
#[derive(Clone, Debug, Default)]
pub struct StepFigures {
    /// Which: empty where there is one only.
    pub step: String,
    /// Its place on an axis, if it has one.
    pub x: Option<f64>,
    /// The figures.
    pub figures: BTreeMap<&'static str, f64>,
}

impl RunFigures {
    /// Sets a figure of a run with one step.
    pub fn set(&mut self, id: &'static str, value: f64) {
        debug_assert!(metric::find(id).is_some(), "{id} is no figure");
        if self.steps.is_empty() {
            self.steps.push(StepFigures::default());
        }
        if let Some(step) = self.steps.last_mut() {
            step.figures.insert(id, value);
        }
    }
}

/// Everything about one scenario.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ScenarioResult {
    /// The scenario as it was run.
    pub name: String,
    /// Its title.
    pub title: String,
    /// What it shows.
    pub about: String,
    /// The scenario as it was run.
    pub scenario: serde_json::Value,
    /// How often each contender was to run.
    pub rounds: u32,
    /// One entry per contender and step.
    pub rows: Vec<Row>,
    /// Latency and rate over time.
    pub timelines: Vec<Timeline>,
    /// Distributions of latencies.
    pub distributions: Vec<Distribution>,
    /// Goals, and what came of them.
    pub goals: Vec<GoalResult>,
    /// What a reader should know.
    pub remarks: Vec<String>,
    /// Runs that failed, and why.
    pub failures: Vec<String>,
    /// Whether it was stopped early.
    pub partial: bool,
}

/// Figures of one contender at one step.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    /// The contender.
    pub contender: String,
    /// The step; empty where there is one only.
    pub step: String,
    /// Its place on an axis.
    pub x: Option<f64>,
    /// The figures by identifier.
    pub figures: BTreeMap<String, Values>,
}

/// Latency and rate over time, of one contender: the middle of its rounds, piece by piece.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Timeline {
    /// The contender.
    pub contender: String,
    /// The middle of the rounds.
    pub median: Vec<Bucket>,
    /// Greatest p99 of a round.
    pub p99_us_max: Vec<f64>,
    /// Least rate of a round.
    pub iops_min: Vec<f64>,
}

/// Latencies of all rounds of a contender together.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Distribution {
    /// The contender.
    pub contender: String,
    /// `write` or `read`.
    pub direction: String,
    /// Commands.
    pub count: u64,
    /// p50, p99, p99.9, p99.99 and the longest, in microseconds.
    pub percentiles_us: [f64; 5],
    /// Microseconds, and the share of commands up to there.
    pub steps: Vec<(f64, f64)>,
}

/// A goal and what came of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct GoalResult {
    /// In words.
    pub what: String,
    /// The limit, in words.
    pub limit: String,
    /// The median, with least and greatest; `None`: not measured.
    pub measured: Option<Values>,
    /// The same figure of the scenario's first contender, or of a contender against itself: noise.
    pub noise: Option<Values>,
    /// Whether it is met; `None`: not measured.
    pub met: Option<bool>,
}

/// Collects runs of a scenario.
#[derive(Debug, Default)]
pub struct Collected {
    /// Contenders in order of their first run, with their runs.
    runs: Vec<(String, Vec<RunFigures>)>,
    /// Runs that failed.
    pub failures: Vec<String>,
    /// Whether it was stopped early.
    pub partial: bool,
}

impl Collected {
    /// Adds a run.
    pub fn add(&mut self, contender: &str, run: RunFigures) {
        match self.runs.iter_mut().find(|(name, _)| name == contender) {
            Some((_, runs)) => runs.push(run),
            None => self.runs.push((contender.to_owned(), vec![run])),
        }
    }

    /// Everything about the scenario.
    pub fn result(&self, scenario: &Scenario, rounds: u32) -> ScenarioResult {
        let rows: Vec<Row> = self.runs.iter().flat_map(|(name, runs)| rows(name, runs)).collect();
        let mut remarks: Vec<String> = Vec::new();
        for (name, runs) in &self.runs {
            for remark in runs.iter().flat_map(|run| &run.remarks) {
                let remark = format!("{name}: {remark}");
                if !remarks.contains(&remark) {
                    remarks.push(remark);
                }
            }
        }
        let goals = scenario.goals.iter().map(|goal| judge(goal, &rows)).collect();
        let timelines = self.runs.iter().filter_map(|(name, runs)| timeline(name, runs)).collect();
        ScenarioResult {
            name: scenario.name.clone(),
            title: scenario.title.clone(),
            about: scenario.about.clone(),
            scenario: serde_json::to_value(scenario).unwrap_or_default(),
            rounds,
            rows,
            timelines,
            distributions: self.distributions(),
            goals,
            remarks,
            failures: self.failures.clone(),
            partial: self.partial,
        }
    }

    fn distributions(&self) -> Vec<Distribution> {
        let mut all = Vec::new();
        for (name, runs) in &self.runs {
            let writes = runs.iter().filter_map(|run| run.writes.as_ref());
            let reads = runs.iter().filter_map(|run| run.reads.as_ref());
            all.extend(distribution(name, "write", writes));
            all.extend(distribution(name, "read", reads));
        }
        all
    }
}

fn rows(contender: &str, runs: &[RunFigures]) -> Vec<Row> {
    let mut rows: Vec<(Row, BTreeMap<&str, Vec<f64>>)> = Vec::new();
    for step in runs.iter().flat_map(|run| &run.steps) {
        let place = rows.iter().position(|(row, _)| row.step == step.step).unwrap_or_else(|| {
            let row = Row {
                contender: contender.to_owned(),
                step: step.step.clone(),
                x: step.x,
                figures: BTreeMap::new(),
            };
            rows.push((row, BTreeMap::new()));
            rows.len() - 1
        });
        for (id, value) in &step.figures {
            rows[place].1.entry(id).or_default().push(*value);
        }
    }
    let finish = |(mut row, values): (Row, BTreeMap<&str, Vec<f64>>)| {
        let figures = values.into_iter();
        row.figures =
            figures.filter_map(|(id, all)| Some((id.to_owned(), Values::of(all)?))).collect();
        row
    };
    rows.into_iter().map(finish).collect()
}

fn timeline(contender: &str, runs: &[RunFigures]) -> Option<Timeline> {
    let lines: Vec<&[Bucket]> =
        runs.iter().map(|run| &run.timeline[..]).filter(|line| !line.is_empty()).collect();
    let length = lines.iter().map(|line| line.len()).min()?;
    let mut timeline = Timeline {
        contender: contender.to_owned(),
        median: Vec::new(),
        p99_us_max: Vec::new(),
        iops_min: Vec::new(),
    };
    for place in 0..length {
        let values = |field: fn(&Bucket) -> f64| {
            Values::of(lines.iter().map(|line| field(&line[place])).collect()).unwrap_or_default()
        };
        let (p99, iops) = (values(|bucket| bucket.p99_us), values(|bucket| bucket.iops));
        timeline.median.push(Bucket {
            at_ms: lines[0][place].at_ms,
            iops: iops.median,
            p50_us: values(|bucket| bucket.p50_us).median,
            p99_us: p99.median,
            max_us: values(|bucket| bucket.max_us).median,
        });
        timeline.p99_us_max.push(p99.max);
        timeline.iops_min.push(iops.min);
    }
    Some(timeline)
}

fn distribution<'a>(
    contender: &str,
    direction: &str,
    parts: impl Iterator<Item = &'a Histogram<u64>>,
) -> Option<Distribution> {
    let mut all = latency::histogram();
    for part in parts {
        // Both have the same bounds.
        all.add(part).ok()?;
    }
    let at = |percentile| latency::percentile_us(&all, percentile);
    let percentiles_us = [at(50.0)?, at(99.0)?, at(99.9)?, at(99.99)?, all.max() as f64 / 1e3];
    Some(Distribution {
        contender: contender.to_owned(),
        direction: direction.to_owned(),
        count: all.len(),
        percentiles_us,
        steps: latency::distribution(&all),
    })
}

/// Suffix of the contender that runs a second time in each round.
pub const AGAIN: &str = " again";

fn judge(goal: &Goal, rows: &[Row]) -> GoalResult {
    let at = |name: &str, step: &str| {
        let row = rows.iter().find(|row| row.contender == name && row.step == step)?;
        row.figures.get(&goal.metric)
    };
    let values = |contender: &str| {
        let (name, step) = contender.split_once('@').unwrap_or((contender, ""));
        at(name, step)
    };
    let ratio = |of: &Values, to: &Values| {
        Values::of(of.all.iter().zip(&to.all).map(|(of, to)| of / to).collect())
    };
    let own = values(&goal.contender);
    let measured = match &goal.against {
        None => own.cloned(),
        Some(other) => values(other).zip(own).and_then(|(other, own)| ratio(other, own)),
    };
    // A contender that ran twice shows what a ratio of equals looks like.
    let own_step = goal.contender.split_once('@').map_or("", |(_, step)| step);
    let noise = rows.iter().filter(|row| row.step == own_step).find_map(|row| {
        let first = row.contender.strip_suffix(AGAIN)?;
        let again = row.figures.get(&goal.metric)?;
        match goal.against {
            Some(_) => ratio(at(first, &row.step)?, again),
            None => Some(again.clone()),
        }
    });
    let limit = match (goal.at_most, goal.at_least) {
        (Some(limit), _) => format!("at most {}", metric::shown(limit)),
        (_, Some(limit)) => format!("at least {}", metric::shown(limit)),
        _ => String::new(),
    };
    let met = measured.as_ref().map(|values| {
        goal.at_most.is_none_or(|limit| values.median <= limit)
            && goal.at_least.is_none_or(|limit| values.median >= limit)
    });
    GoalResult { what: goal.what.clone(), limit, measured, noise, met }
}

#[cfg(test)]
#[path = "result_tests.rs"]
mod tests;
