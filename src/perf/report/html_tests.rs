use super::*;
use crate::perf::latency::histogram;
use crate::perf::result::{Collected, RunFigures};
use crate::perf::scenario::Scenario;

const SCENARIO: &str = r#"{"title": "A < B", "about": "x", "volume_mib": 64,
    "contenders": ["bare", "presnap:off"], "again": "bare",
    "run": {"kind": "load", "load": {"rw": "randwrite"}, "seconds": 20, "snapshots_at_s": [10]},
    "goals": [{"what": "quiet", "metric": "p99_ratio", "contender": "presnap:off", "at_most": 1.1},
              {"what": "none", "metric": "p99_ratio", "contender": "presnap:lstm", "at_most": 1.1}]}"#;

fn run(factor: f64) -> RunFigures {
    let mut figures = RunFigures::default();
    figures.set("p99_ratio", factor);
    figures.set("write_p99_us", 100.0 * factor);
    figures.timeline = (-10..10)
        .map(|place| Bucket {
            at_ms: place * 100,
            iops: 1000.0,
            p50_us: 50.0,
            p99_us: 100.0 * factor,
            max_us: 200.0,
        })
        .collect();
    let mut writes = histogram();
    for us in 1..1000 {
        writes.saturating_record(us * 1000);
    }
    figures.writes = Some(writes);
    figures
}

fn result() -> ScenarioResult {
    let scenario = Scenario::parse("test", SCENARIO).unwrap();
    let mut collected = Collected::default();
    for (name, factor) in [("bare", 1.0), ("presnap:off", 1.3), ("bare again", 1.02)] {
        collected.add(name, run(factor));
        collected.add(name, run(factor * 1.1));
    }
    collected.failures.push("presnap:lstm, round 1: <no>".into());
    collected.result(&scenario, 2)
}

#[test]
fn the_page_has_plots_tables_goals_and_failures() {
    let page = page(&Machine::default(), &[result()]);
    for kind in ["p99-over-time", "iops-over-time", "small-over-time", "distribution-write"] {
        assert!(page.contains(&format!("data-kind=\"{kind}\"")), "{kind}");
    }
    assert_eq!(page.matches("data-kind=\"small-over-time\"").count(), 3);
    assert!(page.contains("<title>presnap:off</title>"));
    assert!(page.contains("badge missed") && page.contains("not measured"), "goals");
    assert!(page.contains("A &lt; B") && page.contains("&lt;no&gt;"), "texts are escaped");
    // Nothing comes from elsewhere.
    assert!(!page.contains("http") && !page.contains("<script") && !page.contains("src="));
}

#[test]
fn the_terminal_shows_goals_with_their_noise() {
    let text = super::super::text_summary(&[result()]);
    assert!(
        text.contains(
            "missed: quiet: 1.37 (1.30 .. 1.43), at most 1.10, noise 1.07 (1.02 .. 1.12)"
        ),
        "{text}"
    );
    assert!(text.contains("not measured: none"), "{text}");
    assert!(text.contains("FAILED: presnap:lstm"), "{text}");
}
