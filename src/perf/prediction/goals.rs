//! What was to be reached, and whether it was: on traces that the model did not learn from.

use std::collections::BTreeMap;

use serde::Serialize;

use super::frontier::Comparison;
use super::plan::{Case, Kind};
use super::{Contest, Row, TraceOutcome};
use crate::predict::evaluate::Line;

/// The policy that is judged.
const JUDGED: &str = "lstm";
/// What it has to be better than; none of them learns sequences, or knows the future.
const BASELINES: [&str; 4] = ["idle", "rate", "likely", "logistic"];
/// The share of required chunks that is to be adopted.
const SHARE: f64 = 0.99;
/// Chunks' worth of bytes that may be spent per required chunk.
const BYTES_MAX: f64 = 1.10;
/// Copy commands, and foreground writes that wait, in units of those of `idle`.
const OF_IDLE_MAX: f64 = 0.5;

/// A goal.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// In words, with its limit.
    pub what: String,
    /// On each trace and schedule.
    pub details: Vec<Detail>,
    /// Whether all that count meet it; `None`: none counts.
    pub met: Option<bool>,
}

/// A goal on one trace.
#[derive(Clone, Debug, Serialize)]
pub struct Detail {
    /// Trace and schedule.
    pub whereon: String,
    /// Whether it counts: the model learned nothing from it, nor from its like.
    pub counts: bool,
    /// In words.
    pub measured: String,
    /// Whether it is met.
    pub met: bool,
}

impl Goal {
    fn new(what: String, details: Vec<Detail>) -> Self {
        let counted = || details.iter().filter(|detail| detail.counts);
        let met = counted().next().map(|_| counted().all(|detail| detail.met));
        Self { what, details, met }
    }

    /// How many of those that count meet it, and how many count.
    pub fn met_of(&self) -> (usize, usize) {
        let counted = || self.details.iter().filter(|detail| detail.counts);
        (counted().filter(|detail| detail.met).count(), counted().count())
    }

    /// What was measured where it counts and is missed, else where it counts: for one line.
    pub fn example(&self) -> Option<&Detail> {
        let counted = || self.details.iter().filter(|detail| detail.counts);
        counted().find(|detail| !detail.met).or_else(|| counted().next())
    }
}

/// Judges everything.
pub fn judge(traces: &[TraceOutcome]) -> Vec<Goal> {
    let each = |case: Case, judge: &dyn Fn(&Contest) -> Option<(String, bool)>| {
        let mut details = vec![];
        for trace in traces {
            for contest in trace.contests.iter().filter(|contest| contest.case == case) {
                let Some((measured, met)) = judge(contest) else { continue };
                let whereon = format!("{}, {}", trace.name, contest.timing.name());
                details.push(Detail { whereon, counts: counts(trace), measured, met });
            }
        }
        details
    };
    let above = |case, cost, what: &str| {
        Goal::new(
            format!("frontier above every baseline's by {what}, {}", Case::title(case)),
            each(case, &|contest| frontier_above(contest, cost)),
        )
    };
    vec![
        Goal::new(
            format!(
                "bytes at {:.0}% adopted: at most {BYTES_MAX:.2} chunks per required one",
                SHARE * 100.0
            ),
            each(Case::Unknown, &bytes_at_share),
        ),
        Goal::new(
            format!(
                "copy commands at {:.0}% adopted: at most half of the best idle's",
                SHARE * 100.0
            ),
            each(Case::Unknown, &commands_at_share),
        ),
        above(Case::Unknown, bytes, "bytes"),
        above(Case::Unknown, commands, "copy commands"),
        above(Case::Limited, bytes, "bytes"),
        above(Case::Limited, commands, "copy commands"),
        Goal::new(
            format!("beats deadline, {}", Case::Known.title()),
            each(Case::Known, &beats_deadline),
        ),
        Goal::new("log loss less than every baseline's".into(), log_loss(traces)),
        Goal::new(
            format!(
                "writes that waited: at most half of idle's, each with at most {BYTES_MAX:.2} chunks of bytes"
            ),
            each(Case::Unknown, &parked_for_bytes),
        ),
        Goal::new(
            format!(
                "writes that waited: at most half of idle's, each with {:.0}% adopted",
                SHARE * 100.0
            ),
            each(Case::Unknown, &parked_at_share),
        ),
    ]
}

fn counts(trace: &TraceOutcome) -> bool {
    trace.kind == Kind::HeldOut
}

fn bytes(row: &Row) -> f64 {
    row.bytes
}

fn commands(row: &Row) -> f64 {
    row.commands
}

/// Whether the judged policy was replayed at all.
fn is_there(contest: &Contest) -> bool {
    contest.rows.iter().any(|row| row.family() == JUDGED)
}

/// Why a share was not reached, in words.
fn not_reached(contest: &Contest, family: &str, cost: fn(&Row) -> f64) -> String {
    let frontier = contest.frontier(family, cost);
    frontier.most().map_or_else(
        || format!("{family} was not replayed"),
        |most| format!("{} adopts {:.1}% for {:.2}", most.policy, most.adopted * 100.0, most.cost),
    )
}

fn bytes_at_share(contest: &Contest) -> Option<(String, bool)> {
    is_there(contest).then(|| match contest.frontier(JUDGED, bytes).cost_at(SHARE) {
        Some(cost) => (format!("{cost:.2}"), cost <= BYTES_MAX),
        None => (format!("not reached: {}", not_reached(contest, JUDGED, bytes)), false),
    })
}

fn commands_at_share(contest: &Contest) -> Option<(String, bool)> {
    let cost = |family| contest.frontier(family, commands).cost_at(SHARE);
    is_there(contest).then(|| match (cost(JUDGED), cost("idle")) {
        (Some(own), Some(idle)) => {
            (format!("{own:.2}, idle {idle:.2}: {:.2}", own / idle), own <= idle * OF_IDLE_MAX)
        }
        (Some(own), None) => (
            format!("{own:.2}; idle does not reach it: {}", not_reached(contest, "idle", commands)),
            true,
        ),
        (None, _) => (format!("not reached: {}", not_reached(contest, JUDGED, commands)), false),
    })
}

fn frontier_above(contest: &Contest, cost: fn(&Row) -> f64) -> Option<(String, bool)> {
    if !is_there(contest) {
        return None;
    }
    let own = contest.frontier(JUDGED, cost);
    let mut all = Comparison::default();
    for family in BASELINES {
        all.add(own.against(&contest.frontier(family, cost)));
    }
    let worst = all.worst.as_ref().map_or_else(String::new, |worst| {
        let place = format!("{} ({:.1}%)", worst.point.policy, worst.point.adopted * 100.0);
        match worst.ratio {
            Some(ratio) => format!("; worst {ratio:.2} times {place}"),
            None => format!("; does not reach {place}"),
        }
    });
    let text = format!("above at {} of {} points{worst}", all.above, all.points);
    Some((text, all.is_above()))
}

fn beats_deadline(contest: &Contest) -> Option<(String, bool)> {
    let deadline = contest.rows.iter().find(|row| row.family() == "deadline")?;
    if !is_there(contest) {
        return None;
    }
    let own = || contest.rows.iter().filter(|row| row.family() == JUDGED);
    let better = own().find(|row| {
        let (adopted, bytes) = (row.adopted - deadline.adopted, deadline.bytes - row.bytes);
        adopted >= 0.0 && bytes >= 0.0 && (adopted > 0.0 || bytes > 0.0)
    });
    let nearest = own().max_by(|a, b| a.adopted.total_cmp(&b.adopted));
    let row = better.or(nearest)?;
    let text = format!(
        "{} {:.1}% for {:.2}, deadline {:.1}% for {:.2}",
        row.policy,
        row.adopted * 100.0,
        row.bytes,
        deadline.adopted * 100.0,
        deadline.bytes
    );
    Some((text, better.is_some()))
}

fn log_loss(traces: &[TraceOutcome]) -> Vec<Detail> {
    let mut details = vec![];
    for trace in traces {
        let mut windows: BTreeMap<u64, Vec<&Line>> = BTreeMap::new();
        for line in &trace.measures {
            windows.entry(line.window_s).or_default().push(line);
        }
        for (window_s, lines) in windows {
            let of = |name: &str| lines.iter().find(|line| line.predictor == name);
            let Some(own) = of(JUDGED) else { continue };
            let others = BASELINES.iter().filter_map(|name| of(name));
            let Some(best) = others.min_by(|a, b| a.log_loss.total_cmp(&b.log_loss)) else {
                continue;
            };
            details.push(Detail {
                whereon: format!("{}, {window_s} s", trace.name),
                counts: counts(trace),
                measured: format!(
                    "{:.3}, best other {} {:.3}",
                    own.log_loss, best.predictor, best.log_loss
                ),
                met: own.log_loss < best.log_loss,
            });
        }
    }
    details
}

/// Fewest writes that waited with no more than the bytes allowed.
fn parked_for_bytes(contest: &Contest) -> Option<(String, bool)> {
    let fewest = |family: &str| {
        let rows = contest.rows.iter().filter(|row| row.family() == family);
        rows.filter(|row| row.bytes <= BYTES_MAX).min_by_key(|row| row.replay.parked.commands)
    };
    if !is_there(contest) {
        return None;
    }
    Some(match (fewest(JUDGED), fewest("idle")) {
        (Some(own), Some(idle)) => parked(
            (&own.policy, own.replay.parked.commands as f64),
            (&idle.policy, idle.replay.parked.commands as f64),
        ),
        (Some(_), None) => ("idle spends more at every setting".into(), true),
        (None, _) => ("lstm spends more at every setting".into(), false),
    })
}

fn parked_at_share(contest: &Contest) -> Option<(String, bool)> {
    if !is_there(contest) {
        return None;
    }
    // The least that adopts so much: fewer writes wait the more is adopted.
    let least = |family: &str| {
        let rows = contest.rows.iter().filter(|row| row.family() == family);
        rows.filter(|row| row.adopted >= SHARE).min_by(|a, b| a.adopted.total_cmp(&b.adopted))
    };
    Some(match (least(JUDGED), least("idle")) {
        (Some(own), Some(idle)) => parked(
            (&own.policy, own.replay.parked.commands as f64),
            (&idle.policy, idle.replay.parked.commands as f64),
        ),
        (Some(_), None) => ("idle does not reach it".into(), true),
        (None, _) => (format!("not reached: {}", not_reached(contest, JUDGED, bytes)), false),
    })
}

fn parked((own_policy, own): (&str, f64), (idle_policy, idle): (&str, f64)) -> (String, bool) {
    let text = format!("{own_policy} {own:.0}, {idle_policy} {idle:.0}");
    (text, own <= idle * OF_IDLE_MAX)
}
