//! The whole report on a made-up trace, and goals on figures that are made up.

use std::fmt::Write as _;

use super::goals::judge;
use super::*;

fn options(folder: &Path, traces: Vec<PathBuf>) -> PredictionOptions {
    PredictionOptions {
        traces,
        out: folder.join("out"),
        workloads: 0,
        quick: true,
        threads: 2,
        model: Model::shipped().unwrap(),
        learned_from: None,
    }
}

#[test]
fn a_small_trace_becomes_a_page_with_its_plots_and_a_summary() {
    let folder = tempfile::tempdir().unwrap();
    let mut text = "time_us,op,offset_bytes,length_bytes\n".to_owned();
    for second in 0..120_u64 {
        writeln!(text, "{},W,{},4096", second * 1_000_000, second % 7 * (1 << 20)).unwrap();
        writeln!(text, "{},W,{},4096", second * 1_000_000 + 5, (9 + second / 10) << 20).unwrap();
    }
    let trace = folder.path().join("a<b.csv");
    std::fs::write(&trace, text).unwrap();
    let mut shown = vec![];
    let options = options(folder.path(), vec![trace]);
    let outcome = run(&options, &mut shown, true).unwrap();
    assert_eq!(outcome.failures, Vec::<String>::new());
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains(" done, 0:00 left"), "{shown:?}");
    let contests = &outcome.traces[0].contests;
    assert_eq!(contests.len(), 6, "three cases, regular and irregular");
    for contest in contests {
        assert_eq!(contest.rows.len(), plan::policies(contest.case, true).len());
        assert_eq!(contest.staging_chunks_max.is_empty(), contest.case != Case::Limited);
        assert_eq!(contest.copy_bytes_per_s_max.is_some(), contest.case == Case::Known);
        // A cut waits while the snapshot before it is not complete, which takes long where copying is limited.
        let required = |row: &Row| row.replay.required;
        let same = contest.rows.iter().all(|row| required(row) == required(&contest.rows[0]));
        assert!(same || contest.case == Case::Known, "{contest:?}");
        assert!(required(&contest.rows[0]) > 30, "{contest:?}");
    }
    let page = std::fs::read_to_string(options.out.join(report::REPORT)).unwrap();
    for case in Case::ALL {
        for timing in Timing::ALL {
            for cost in ["bytes", "commands"] {
                let kind = format!("frontier-{cost}-{}-{}", case.id(), timing.name());
                assert!(page.contains(&format!("data-kind=\"{kind}\"")), "{kind}");
            }
        }
    }
    for text in ["data-kind=\"tick-time\"", "data-kind=\"calibration\"", "idle:15s: ", "a&lt;b"] {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("http") && !page.contains("<script") && !page.contains("a<b"));
    let summary = std::fs::read_to_string(options.out.join(report::SUMMARY)).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["traces"][0]["kind"], "held_out");
    assert_eq!(summary["goals"].as_array().unwrap().len(), outcome.goals.len());
    assert!(summary["traces"][0]["measures"][0]["log_loss"].is_number());
}

#[test]
fn without_traces_it_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let error = run(&options(folder.path(), vec![]), &mut vec![], false).unwrap_err().to_string();
    assert!(error.contains("--workloads"), "{error}");
    let missing = options(folder.path(), vec!["/no/such/trace".into()]);
    let error = run(&missing, &mut vec![], false).unwrap_err().to_string();
    assert!(error.contains("/no/such/trace"), "{error}");
}

fn row(policy: &str, adopted: f64, bytes: f64, parked: u64) -> Row {
    let mut row = Row::of(policy.to_owned(), Report::default());
    (row.adopted, row.bytes, row.commands) = (adopted, bytes, 2.0 * bytes);
    row.replay.parked.commands = parked;
    row
}

fn trace(kind: Kind, case: Case, rows: Vec<Row>) -> TraceOutcome {
    TraceOutcome {
        name: "t".into(),
        kind,
        span_s: 1.0,
        volume_bytes: 1,
        reads: 0,
        modifications: 0,
        modified_bytes: 0,
        contests: vec![Contest {
            case,
            timing: Timing::Regular,
            schedules: vec![],
            snapshots: 1,
            staging_chunks_max: vec![],
            copy_bytes_per_s_max: None,
            rows,
        }],
        measures: vec![],
    }
}

fn met(traces: &[TraceOutcome], what: &str) -> Option<bool> {
    let goals = judge(traces);
    let goal = goals.iter().find(|goal| goal.what.contains(what));
    goal.unwrap_or_else(|| panic!("no goal {what}")).met
}

#[test]
fn goals_are_judged_by_what_is_held_out() {
    let good = || {
        vec![
            row("idle:1s", 0.995, 2.5, 10),
            row("idle:9s", 0.9, 1.1, 90),
            row("lstm:0.1", 0.999, 1.09, 1),
            row("lstm:0.6", 0.9, 0.9, 5),
        ]
    };
    let poor = || vec![row("idle:1s", 0.995, 1.2, 10), row("lstm:0.1", 0.98, 1.0, 9)];
    let names = [
        "bytes at 99%",
        "copy commands at 99%",
        "baseline's by bytes, times unknown, no",
        "each with at most",
        "each with 99%",
    ];
    for name in names {
        let judged = |traces: &[TraceOutcome]| met(traces, name);
        let good = |kind| trace(kind, Case::Unknown, good());
        let poor = |kind| trace(kind, Case::Unknown, poor());
        assert_eq!(judged(&[good(Kind::HeldOut)]), Some(true), "{name}");
        assert_eq!(judged(&[good(Kind::HeldOut), poor(Kind::LearnedFrom)]), Some(true), "{name}");
        assert_eq!(judged(&[good(Kind::HeldOut), poor(Kind::MadeUp)]), Some(true), "{name}");
        assert_eq!(judged(&[good(Kind::LearnedFrom)]), None, "{name}");
        if !name.contains("at most") {
            let both = [good(Kind::HeldOut), poor(Kind::HeldOut)];
            assert_eq!(judged(&both), Some(false), "{name}");
        }
    }
}

#[test]
fn deadline_is_beaten_by_more_for_as_little() {
    let judged = |adopted, bytes| {
        let rows = vec![row("lstm:0.1", adopted, bytes, 0), row("deadline", 0.95, 1.0, 0)];
        met(&[trace(Kind::HeldOut, Case::Known, rows)], "deadline")
    };
    assert_eq!(judged(0.96, 1.0), Some(true));
    assert_eq!(judged(0.95, 0.9), Some(true));
    assert_eq!(judged(0.95, 1.0), Some(false), "as good is not better");
    assert_eq!(judged(0.99, 1.1), Some(false), "more, but for more");
}
