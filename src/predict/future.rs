//! What came after: offline, a trace says for each chunk and tick when it was modified next.

use std::collections::HashMap;

use super::hazard::Outcome;
use crate::monitor::{Access, AccessKind, Monitor, MonitorOptions, SPAN_CHUNKS_MAX, Tick};

/// All modifications of a trace.
#[derive(Debug, Default)]
pub struct Future {
    /// Ticks in which a chunk was modified, in order.
    modified: HashMap<u32, Vec<u32>>,
    ticks: u32,
}

impl Future {
    /// Reads a trace, sorted by time.
    pub fn new(accesses: &[Access], tick_us: u64) -> Self {
        let mut future = Self::default();
        for access in accesses {
            let tick = (access.time_us / tick_us) as u32;
            future.ticks = future.ticks.max(tick + 1);
            if access.kind != AccessKind::Modify {
                continue;
            }
            let last =
                access.chunk_last.min(access.chunk_first.saturating_add(SPAN_CHUNKS_MAX - 1));
            for chunk in access.chunk_first..=last {
                let ticks = future.modified.entry(chunk).or_default();
                if ticks.last() != Some(&tick) {
                    ticks.push(tick);
                }
            }
        }
        future
    }

    /// Ticks of the trace.
    pub fn ticks(&self) -> u32 {
        self.ticks
    }

    /// What becomes of `chunk` after the window number `tick` was closed.
    pub fn after(&self, chunk: u32, tick: u32) -> Outcome {
        let next = self.modified.get(&chunk).and_then(|ticks| {
            ticks.get(ticks.partition_point(|modified| *modified <= tick)).copied()
        });
        match next {
            Some(next) => Outcome::Modified(next - tick),
            None => Outcome::Unmodified((self.ticks - 1).saturating_sub(tick)),
        }
    }
}

/// Runs a trace, sorted by time, through a monitor, and hands over each tick.
pub fn each_tick(accesses: &[Access], options: MonitorOptions, mut take: impl FnMut(&Tick<'_>)) {
    let mut monitor = Monitor::new(options);
    let mut end_us = options.tick_us;
    for access in accesses {
        while access.time_us >= end_us {
            take(&monitor.tick(end_us));
            end_us += options.tick_us;
        }
        monitor.record(access);
    }
    take(&monitor.tick(end_us));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(chunk: u32, time_us: u64) -> Access {
        Access::new(u64::from(chunk) << 18, 4096, AccessKind::Modify, time_us, 1 << 18)
    }

    #[test]
    fn what_comes_after_is_what_the_trace_says() {
        let accesses =
            [write(1, 100), write(1, 900), write(2, 2500), write(1, 5000), write(2, 9999)];
        let future = Future::new(&accesses, 1000);
        assert_eq!(future.ticks(), 10);
        assert_eq!(future.after(1, 0), Outcome::Modified(5));
        assert_eq!(future.after(1, 4), Outcome::Modified(1));
        assert_eq!(future.after(1, 5), Outcome::Unmodified(4));
        assert_eq!(future.after(2, 0), Outcome::Modified(2));
        assert_eq!(future.after(3, 0), Outcome::Unmodified(9));
        assert_eq!(future.after(2, 9), Outcome::Unmodified(0));
    }

    #[test]
    fn the_monitor_and_the_future_agree_on_what_was_modified_when() {
        let accesses: Vec<_> =
            (0..2000_u64).map(|i| write((i * i % 17) as u32, i * 731_003)).collect();
        let options = MonitorOptions::new(32, 1 << 18);
        let future = Future::new(&accesses, options.tick_us);
        let mut ticks = 0;
        each_tick(&accesses, options, |tick| {
            assert_eq!(tick.index, u64::from(ticks));
            for (row, chunk) in tick.rows.iter().enumerate() {
                let modified = ticks > 0 && future.after(*chunk, ticks - 1) == Outcome::Modified(1);
                assert_eq!(
                    tick.modified[row],
                    modified || (ticks == 0),
                    "chunk {chunk} at {ticks}"
                );
            }
            ticks += 1;
        });
        assert_eq!(ticks, future.ticks());
    }
}
