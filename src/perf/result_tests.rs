use super::*;
use crate::perf::scenario::Scenario;

const SCENARIO: &str = r#"{"title": "t", "about": "a", "volume_mib": 64,
    "contenders": ["bare", "presnap:off"], "again": "bare",
    "run": {"kind": "load", "load": {"rw": "randwrite"}, "seconds": 20, "snapshots_at_s": [10]},
    "goals": [{"what": "times", "metric": "independent_ms", "contender": "presnap:off",
               "against": "bare", "at_least": 10}]}"#;

fn run(ms: f64) -> RunFigures {
    let mut figures = RunFigures::default();
    figures.set("independent_ms", ms);
    figures
}

fn collected(other_ms: f64) -> ScenarioResult {
    let mut collected = Collected::default();
    for ms in [1.0, 2.0, 3.0] {
        collected.add("presnap:off", run(ms));
        collected.add("bare", run(ms * other_ms));
        collected.add("bare again", run(ms * other_ms * 2.0));
    }
    collected.result(&Scenario::parse("t", SCENARIO).unwrap(), 3)
}

#[test]
fn a_goal_against_another_is_judged_round_by_round() {
    let met = &collected(11.0).goals[0];
    let measured = met.measured.as_ref().unwrap();
    assert_eq!((measured.n, measured.median, met.met), (3, 11.0, Some(true)));
    // The contender that ran twice, against itself.
    assert!((met.noise.as_ref().unwrap().median - 0.5).abs() < 1e-9);
    let missed = &collected(9.0).goals[0];
    assert_eq!(missed.met, Some(false));
}

#[test]
fn what_did_not_run_is_neither_met_nor_missed() {
    let scenario = Scenario::parse("t", SCENARIO).unwrap();
    let result = Collected::default().result(&scenario, 3);
    assert_eq!((result.goals[0].met, result.rows.len()), (None, 0));
}

#[test]
fn steps_of_many_rounds_are_put_together() {
    let mut collected = Collected::default();
    for round in [1.0, 2.0] {
        let step = |name: &str| StepFigures {
            step: name.to_owned(),
            x: Some(1.0),
            figures: [("create_ms", round)].into(),
        };
        let figures = RunFigures { steps: vec![step("1"), step("10")], ..RunFigures::default() };
        collected.add("presnap:idle", figures);
    }
    let result = collected.result(&Scenario::parse("t", SCENARIO).unwrap(), 2);
    assert_eq!(result.rows.len(), 2);
    assert!(result.rows.iter().all(|row| row.figures["create_ms"].n == 2));
}
