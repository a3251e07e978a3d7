//! Reactors that stand still are reported: where, for how long, and whose doing it was.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Bench, Process, wait_for};

/// A report comes within the look of a few milliseconds, the reading of debug information, and the ten
/// seconds in which there is one alone.
const REPORT_MAX: Duration = Duration::from_secs(40);

/// How long the reactor is blocked, and what that is by a time stamp counter whose rate DPDK knows to a few parts in a
/// thousand only. On a busy machine it is blocked for longer.
const BLOCK_MS: u64 = 300;
const MEASURED_MS: u64 = 294;

fn reactor(agent: &Process) -> Value {
    agent.call("presnap_get_stats", json!({}))["reactors"][0].clone()
}

/// Stalls of its own doing.
fn own_stalls(agent: &Process) -> u64 {
    let reactor = reactor(agent);
    let count = |name: &str| reactor[name].as_u64().expect("a count");
    count("stalls") - count("preempted")
}

/// Blocks the reactor again and again until a report names `function`: the duration in it, and the report.
fn reported(agent: &Process, function: &str, sleep: bool) -> (u64, String) {
    wait_for("the report", REPORT_MAX, || {
        agent.call("test_block", json!({"reactor": 0, "ms": BLOCK_MS, "sleep": sleep}));
        std::thread::sleep(Duration::from_millis(200));
        let log = agent.log();
        let names_it = format!(" ms, in {function} at ");
        let mut lines = log.lines().skip_while(|line| !line.contains(&names_it));
        let first = lines.next()?;
        let (_, after) = first.split_once("reactor on core 0 stood still for ")?;
        let ms = after.split(' ').next()?.parse().expect("a number");
        let frames = lines.take_while(|line| line.starts_with("  "));
        let report = [first].into_iter().chain(frames).collect::<Vec<_>>().join("\n");
        Some((ms, report))
    })
}

/// Fails when no stack is asked for, when it is another thread's, and when the stalls of the machine's
/// doing and the reactor's are mixed up.
#[test]
fn a_function_that_blocks_its_reactor_is_named() {
    let bench = Bench::new();
    let agent = bench.agent("agent", "0x1");
    for (function, sleep) in [("stand_still", false), ("sleep_on_a_reactor", true)] {
        let before = own_stalls(&agent);
        let (ms, report) = reported(&agent, function, sleep);
        assert!(ms >= MEASURED_MS, "{ms} ms: {report}");
        assert!(report.contains("_reactor_run at "), "its callers: {report}");
        assert!(report.contains("tests/target/agent.rs:"), "and its source: {report}");
        assert!(own_stalls(&agent) > before, "{}", reactor(&agent));
        let shown = reactor(&agent)["longest_ms"].as_u64().expect("a number");
        assert!(shown >= MEASURED_MS, "{shown} ms");
    }
    // Ten seconds lie between the two reports, and blocks were counted in them.
    let log = agent.log();
    let second = log.lines().rfind(|line| line.contains("stood still")).expect("a report");
    assert!(second.contains("more since the last report"), "{second}");
    agent.stop();
}

/// Long enough for the report of a start's stalls to be past, and for debug information to be read on a busy machine.
const LONG_MS: u64 = 25_000;

/// A stall that has no end in sight is reported while it lasts.
#[test]
fn a_reactor_that_does_not_come_back_is_reported_before_it_does() {
    let bench = Bench::new();
    let agent = bench.agent("agent", "0x1");
    let blocked =
        agent.call_start("test_block", json!({"reactor": 0, "ms": LONG_MS, "sleep": false}));
    wait_for("the report", Duration::from_millis(LONG_MS), || {
        let log = agent.log();
        let line = log.lines().find(|line| line.contains("stands still for"))?;
        assert!(line.contains("stand_still"), "{line}");
        Some(())
    });
    assert!(!blocked.is_finished(), "it was over already");
    blocked.join().expect("called").expect("answered");
    wait_for("its end to be reported", REPORT_MAX, || {
        let log = agent.log();
        let is_long = |ms: u64| ms >= LONG_MS / 100 * 98;
        let reported = log.lines().filter_map(|line| {
            let (_, after) = line.split_once("stood still for ")?;
            after.contains("stand_still").then(|| after.split(' ').next()?.parse().ok()).flatten()
        });
        reported.into_iter().any(is_long).then_some(())
    });
    agent.stop();
}

/// Fails when a stall is taken for the reactor's own doing without a look at what the machine did. (That none is on a busy
/// machine is for the tests of `judge` to say.)
#[test]
fn a_core_that_the_machine_takes_away_is_told_apart() {
    let bench = Bench::new();
    let agent = bench.agent("agent", "0x1");
    let settled = || agent.call("presnap_get_stats", json!({"reset": true}));
    settled();
    // Nothing of the process runs.
    agent.signal("STOP");
    std::thread::sleep(Duration::from_millis(300));
    agent.signal("CONT");
    let preempted = || {
        let reactor = reactor(&agent);
        (reactor["longest_preempted_ms"].as_u64() >= Some(200)).then_some(())
    };
    wait_for("the stall to be counted", REPORT_MAX, preempted);
    settled();
    // Something of a higher priority runs on its core.
    let spin = "import time\nend = time.monotonic() + 0.4\nwhile time.monotonic() < end: pass";
    let mut command = Command::new("chrt");
    command.args(["-f", "1", "taskset", "-c", "0"]).arg("python3").args(["-c", spin]);
    let done = command.output().expect("chrt, from util-linux");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    wait_for("the stall to be counted", REPORT_MAX, preempted);
    let log = agent.log();
    assert!(log.contains("had no CPU for"), "reported");
    agent.stop();
}
