//! `presnap perf` as people run it: on the real target, with the real fio.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Bench, limited, signal, wait_for};

/// Each contender takes a quarter of a minute on an idle machine.
const LOAD_BEGINS_MAX: Duration = Duration::from_mins(2);
/// Ctrl-C stops everything within this time: the longest that anything blocks is a child's end.
const STOP_MAX: Duration = Duration::from_mins(1);

/// The command, on small devices; it reserves its hugepages itself.
fn perf(bench: &Bench, arguments: &[&str]) -> Command {
    let mut command = limited(env!("CARGO_BIN_EXE_presnap"));
    command.args(["perf", "smoke", "--out"]).arg(bench.path("out")).args(arguments);
    command.env("TMPDIR", bench.path("")).current_dir(bench.path("")).stdin(Stdio::null());
    command
}

fn summary(bench: &Bench) -> Value {
    let text = fs::read_to_string(bench.path("out/summary.json")).expect("a summary");
    serde_json::from_str(&text).expect("JSON")
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn the_smoke_scenario_runs_every_kind_of_contender_and_reports() {
    let bench = Bench::with_hugepages(0);
    let history = bench.path("history.jsonl");
    let history_option = format!("--history={}", history.display());
    let output = perf(&bench, &[&history_option]).output().expect("run");
    assert!(output.status.success(), "{}", said(&output));
    let summary = summary(&bench);
    let result = &summary["scenarios"][0];
    let rows = result["rows"].as_array().expect("rows");
    let names: Vec<_> = rows.iter().map(|row| row["contender"].as_str().unwrap_or("")).collect();
    assert_eq!(names, ["bare", "presnap:idle", "lvol:1MiB:copy"]);
    for row in rows {
        let figure = |id: &str| row["figures"][id]["median"].as_f64();
        let name = &row["contender"];
        assert!(figure("write_p99_us").is_some_and(|us| us > 20.0), "{name}: {row}");
        assert!(figure("iops").is_some_and(|iops| iops > 100.0), "{name}: {row}");
        assert!(figure("p99_ratio").is_some_and(|ratio| ratio > 0.0), "{name}: {row}");
        // Only what ends as a copy of its own has such a time.
        assert_eq!(figure("independent_ms").is_some(), name != "bare", "{name}: {row}");
    }
    // Each first write to a cluster after the snapshot has copied it, all of it.
    let extra = |row: &Value| row["figures"]["extra_writes"]["median"].as_f64().unwrap_or(0.0);
    assert!(extra(&rows[0]) < 0.01 && extra(&rows[2]) > 1.0, "{} {}", rows[0], rows[2]);
    assert!(result["timelines"][1]["median"].as_array().is_some_and(|line| line.len() > 30));
    let lines = fs::read_to_string(&history).expect("a history");
    assert_eq!(lines.lines().count(), 1);
    assert_eq!(fs::read_dir(bench.path("out/raw/smoke")).expect("raw files").count(), 3);
    plots_are_there(&bench, &bench.path("out/report.html"));
}

/// Opens the report in a browser and looks whether each plot has a size and each line a length.
fn plots_are_there(bench: &Bench, report: &Path) {
    const LOOK: &str = "<script>\
        const plots = [...document.querySelectorAll('svg.plot')];\
        const seen = plots.map(plot => ({kind: plot.dataset.kind,\
            width: plot.getBoundingClientRect().width,\
            lines: [...plot.querySelectorAll('path.line')].map(line => line.getTotalLength())}));\
        document.body.innerHTML = '<pre id=seen>' + JSON.stringify(seen) + '</pre>';</script>";
    if Command::new("chromium").arg("--version").output().is_err() {
        eprintln!(
            "skipped: no chromium here (Debian's package chromium), so plots were not looked at"
        );
        return;
    }
    let page = bench.path("look.html");
    let html = fs::read_to_string(report).expect("the report");
    fs::write(&page, html.replace("</body>", &format!("{LOOK}</body>"))).expect("written");
    let output = limited("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", bench.path("browser").display()))
        .arg("--dump-dom")
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("chromium");
    let dom = String::from_utf8_lossy(&output.stdout);
    let seen = dom.split("<pre id=\"seen\">").nth(1).and_then(|rest| rest.split("</pre>").next());
    let seen: Value = serde_json::from_str(seen.unwrap_or_else(|| panic!("{}", said(&output))))
        .expect("what was seen");
    let plots = seen.as_array().expect("a list");
    for kind in ["p99-over-time", "iops-over-time", "small-over-time", "distribution-write"] {
        assert!(plots.iter().any(|plot| plot["kind"] == kind), "{kind}: {seen}");
    }
    for plot in plots {
        assert!(plot["width"].as_f64().is_some_and(|width| width > 200.0), "{plot}");
        let lines = plot["lines"].as_array().expect("lines");
        let long = lines.iter().all(|line| line.as_f64().is_some_and(|length| length > 50.0));
        assert!(!lines.is_empty() && long, "{plot}");
    }
}

#[test]
fn a_contender_that_fails_makes_the_measurement_fail() {
    let bench = Bench::with_hugepages(0);
    let output = perf(&bench, &["--program", "/bin/false"]).output().expect("run");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let failures = summary(&bench)["scenarios"][0]["failures"].clone();
    // Each is tried once, and the others go on.
    assert_eq!(failures.as_array().map(Vec::len), Some(3), "{failures}");
    assert!(
        said(&output).contains("FAILED: bare, round 1: presnap serve ended"),
        "{}",
        said(&output)
    );
}

#[test]
fn an_interrupt_stops_everything_and_keeps_what_was_measured() {
    let bench = Bench::with_hugepages(0);
    let mut child = perf(&bench, &["--rounds", "50"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    // The first contender is done, and the second under load.
    wait_for("a load", LOAD_BEGINS_MAX, || {
        assert!(child.try_wait().expect("a child").is_none(), "it ended by itself");
        bench.path("out/raw/smoke/1-presnap-idle/load.spdk.json").exists().then_some(())
    });
    signal(&child, "INT");
    wait_for("its end", STOP_MAX, || child.try_wait().expect("a child").map(|_| ()));
    let output = child.wait_with_output().expect("its output");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("interrupted"), "{}", said(&output));
    let summary = summary(&bench);
    let result = &summary["scenarios"][0];
    assert_eq!(result["partial"], true);
    assert_eq!(result["rows"][0]["contender"], "bare");
    // No program goes on, and no folder for sockets is left.
    let folder = bench.path("out").display().to_string();
    wait_for("no process uses the folder", STOP_MAX, || (!in_use(&folder)).then_some(()));
    let left = fs::read_dir(bench.path("")).expect("readable").flatten();
    let names: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(
        !names.iter().any(|name| name.to_string_lossy().starts_with("presnap-perf-")),
        "{names:?}"
    );
}

/// Whether a process has `text` in its command line.
fn in_use(text: &str) -> bool {
    let processes = fs::read_dir("/proc").expect("readable").flatten();
    processes.into_iter().any(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(text)
    })
}
