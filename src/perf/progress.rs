//! How far a measurement is, on a terminal.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::time::Instant;

use super::PerfError;
use super::metric::{self, shown};
use super::result::RunFigures;
use super::scenario::Scenario;

/// Back to the line's begin, and erase it.
const ERASE: &str = "\r\x1b[K";
/// Figures of a run that are shown when it is done, as far as it has them.
const TOLD: [&str; 7] = [
    "before_p99_us",
    "after_p99_us",
    "after_rate_share",
    "independent_ms",
    "write_p99_us",
    "iops",
    "read_share",
];

/// Says on a terminal what is being done and how long it will take.
pub struct Progress<'a> {
    terminal: RefCell<&'a mut dyn Write>,
    is_terminal: bool,
    began: Instant,
    /// What was expected of everything.
    total_s: f64,
    /// What was expected of the runs that are done.
    done_s: Cell<f64>,
    /// What is expected of the one under way.
    run_s: Cell<f64>,
    run: RefCell<String>,
}

impl<'a> Progress<'a> {
    /// For `total_s` of work.
    pub fn new(terminal: &'a mut dyn Write, is_terminal: bool, total_s: f64) -> Self {
        Self {
            terminal: RefCell::new(terminal),
            is_terminal,
            began: Instant::now(),
            total_s,
            done_s: Cell::new(0.0),
            run_s: Cell::new(0.0),
            run: RefCell::default(),
        }
    }

    /// A run begins.
    pub fn begin(&self, scenario: &Scenario, round: u32, rounds: u32, contender: &str) {
        self.run_s.set(scenario.expected_s());
        *self.run.borrow_mut() = format!("{} {round}/{rounds} {contender}", scenario.name);
    }

    /// A part of the run begins.
    pub fn say(&self, what: &str) {
        if self.is_terminal {
            let line = format!("{ERASE}{}: {what}, {} left", self.run.borrow(), self.left());
            self.write(&line);
        }
    }

    /// A run is not done at all.
    pub fn skip(&self, expected_s: f64) {
        self.done_s.set(self.done_s.get() + expected_s);
    }

    /// A run is over.
    pub fn done(&self, contender: &str, figures: &RunFigures) {
        self.skip(self.run_s.get());
        let first = figures.steps.first();
        let told = TOLD.iter().filter_map(|id| {
            let value = first?.figures.get(id)?;
            let metric = metric::find(id)?;
            let space = if metric.unit.is_empty() { "" } else { " " };
            Some(format!("{} {}{space}{}", metric.label, shown(*value), metric.unit))
        });
        let told: Vec<String> = told.take(4).collect();
        let run = self.run.borrow().clone();
        let erase = if self.is_terminal { ERASE } else { "" };
        let left =
            if self.is_terminal { String::new() } else { format!(" ({} left)", self.left()) };
        debug_assert!(run.ends_with(contender));
        self.write(&format!("{erase}{run}: {}{left}\n", told.join(", ")));
    }

    /// A run has failed.
    pub fn failed(&self, contender: &str, error: &PerfError) {
        self.skip(self.run_s.get());
        let erase = if self.is_terminal { ERASE } else { "" };
        debug_assert!(self.run.borrow().ends_with(contender));
        self.write(&format!("{erase}{}: FAILED: {error}\n", self.run.borrow()));
    }

    /// All is over.
    pub fn end(&self) {
        if self.is_terminal {
            self.write(ERASE);
        }
    }

    fn left(&self) -> String {
        left(self.total_s, self.done_s.get(), self.began.elapsed().as_secs_f64())
    }

    fn write(&self, text: &str) {
        let mut terminal = self.terminal.borrow_mut();
        // Progress that nobody sees is no trouble.
        let _ = terminal.write_all(text.as_bytes()).and_then(|()| terminal.flush());
    }
}

/// Time left, corrected by how long things really took so far. What is expected comes from the
/// scenarios, so that is wrong by the same share for runs of one kind.
fn left(total_s: f64, done_s: f64, elapsed_s: f64) -> String {
    let ratio = if done_s > 0.0 { elapsed_s / done_s } else { 1.0 };
    let left = (total_s * ratio - elapsed_s).max(0.0).round() as u64;
    format!("{}:{:02}", left / 60, left % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_follows_what_is_done() {
        assert_eq!(left(125.0, 0.0, 0.0), "2:05");
        assert_eq!(left(125.0, 0.0, 30.0), "1:35");
        // Half is done, and took twice as long as expected.
        assert_eq!(left(120.0, 60.0, 120.0), "2:00");
        assert_eq!(left(120.0, 120.0, 300.0), "0:00");
    }
}
