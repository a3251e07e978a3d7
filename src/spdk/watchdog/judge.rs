//! What is made of a stall: whose doing it was, and whether it is reported.

use std::time::Duration;

/// Time from one report on a reactor to the next of the same sort.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// A stall that lasts longer is reported before its end.
const LONG_STALL: Duration = Duration::from_secs(1);

/// Stalls that ended since the last look, of one reactor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// How many.
    pub count: u64,
    /// How long together.
    pub total: Duration,
    /// The longest.
    pub longest: Duration,
}

/// Who kept the reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// What ran on it.
    Own,
    /// The machine: it ran something else on the core, or nothing at all.
    Machine,
}

/// Whose doing stalls were during which the machine took this much time away. Those that would have been stalls
/// without that as well are the reactor's own.
pub fn judge(ended: Ended, taken: Duration, limit: Duration) -> Doing {
    let own = ended.total.saturating_sub(taken);
    let limits = limit.saturating_mul(u32::try_from(ended.count).unwrap_or(u32::MAX));
    if own > limits { Doing::Own } else { Doing::Machine }
}

/// How long nothing of the process ran: it was stopped, or its guest paused. By a thread that wanted to be woken after
/// `every`, was after `slept`, and had `waited` for a CPU among others that ran.
pub fn stood_still(
    slept: Duration,
    every: Duration,
    waited: Duration,
    limit: Duration,
) -> Duration {
    let unexplained = slept.saturating_sub(every).saturating_sub(waited);
    // Timers are a little late by themselves.
    if unexplained > limit / 2 { unexplained } else { Duration::ZERO }
}

/// What is to be done about a stall that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// It is none yet.
    No,
    /// Its stack is wanted.
    Stall,
    /// It is to be reported before it ends.
    Long,
}

/// What is to be made of a beat of this age, when the machine has taken this much of that.
pub fn overdue(age: Duration, taken: Duration, limit: Duration) -> Overdue {
    match age.saturating_sub(taken) {
        own if own <= limit => Overdue::No,
        own if own > LONG_STALL => Overdue::Long,
        _ => Overdue::Stall,
    }
}

/// Keeps the log short.
#[derive(Debug, Default)]
pub struct Reports {
    next: Duration,
    untold: Ended,
}

impl Reports {
    /// Whether a stall at `now`, from any fixed moment, would be reported.
    pub fn is_due(&self, now: Duration) -> bool {
        now >= self.next
    }

    /// These ended. If they are to be reported: those that were not since the report before.
    pub fn add(&mut self, ended: Ended, now: Duration) -> Option<Ended> {
        if self.is_due(now) {
            self.next = now + REPORT_EVERY;
            return Some(std::mem::take(&mut self.untold));
        }
        self.untold.count += ended.count;
        self.untold.total += ended.total;
        self.untold.longest = self.untold.longest.max(ended.longest);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(10);

    fn ended(count: u64, total_ms: u64) -> Ended {
        let total = Duration::from_millis(total_ms);
        Ended { count, total, longest: total }
    }

    fn of(count: u64, total_ms: u64, taken_ms: u64) -> Doing {
        judge(ended(count, total_ms), Duration::from_millis(taken_ms), LIMIT)
    }

    #[test]
    fn a_stall_is_the_reactors_own_if_it_was_one_without_what_the_machine_took() {
        assert_eq!(of(1, 11, 0), Doing::Own);
        assert_eq!(of(1, 200, 20), Doing::Own);
        assert_eq!(of(1, 200, 190), Doing::Machine);
        assert_eq!(of(1, 12, 3), Doing::Machine);
        // More may be taken in the time that is looked at than during the stall.
        assert_eq!(of(1, 12, 40), Doing::Machine);
        assert_eq!(of(3, 36, 10), Doing::Machine);
        assert_eq!(of(3, 36, 0), Doing::Own);
    }

    #[test]
    fn a_process_that_stood_still_has_no_stalls() {
        let ms = Duration::from_millis;
        // Paused for 3 s; the thread that looks and the reactor are woken together.
        let stood = stood_still(ms(3005), ms(5), Duration::ZERO, LIMIT);
        assert_eq!(stood, ms(3000));
        assert_eq!(overdue(ms(3002), stood, LIMIT), Overdue::No, "no report before its end");
        assert_eq!(judge(ended(1, 3002), stood, LIMIT), Doing::Machine);
        // A stall of its own begins as it goes on.
        assert_eq!(overdue(ms(3022), stood, LIMIT), Overdue::Stall);
        assert_eq!(judge(ended(1, 3022), stood, LIMIT), Doing::Own);
    }

    /// Fails when the thread that looks takes its own want of a CPU for everybody's.
    #[test]
    fn a_thread_that_looks_late_excuses_nobody() {
        let ms = Duration::from_millis;
        let stood = stood_still(ms(205), ms(5), ms(199), LIMIT);
        assert_eq!(stood, Duration::ZERO);
        assert_eq!(overdue(ms(200), stood, LIMIT), Overdue::Stall);
        assert_eq!(judge(ended(1, 200), stood, LIMIT), Doing::Own);
        assert_eq!(stood_still(ms(9), ms(5), Duration::ZERO, LIMIT), Duration::ZERO, "a timer");
    }

    #[test]
    fn a_beat_is_overdue_by_its_limit_and_reported_after_a_second() {
        let of = |age_ms, taken_ms| {
            overdue(Duration::from_millis(age_ms), Duration::from_millis(taken_ms), LIMIT)
        };
        assert_eq!(of(10, 0), Overdue::No);
        assert_eq!(of(11, 0), Overdue::Stall);
        assert_eq!(of(1000, 0), Overdue::Stall);
        assert_eq!(of(1001, 0), Overdue::Long);
        assert_eq!(of(1001, 1), Overdue::Stall);
        assert_eq!(of(50, 90), Overdue::No);
    }

    #[test]
    fn a_flood_of_stalls_is_one_report_in_ten_seconds() {
        let mut reports = Reports::default();
        let at = Duration::from_millis;
        assert_eq!(reports.add(ended(1, 20), at(5)), Some(Ended::default()), "the first");
        for ms in 6..10_000 {
            assert_eq!(reports.add(ended(1, ms % 100), at(ms)), None, "at {ms} ms");
        }
        let untold = reports.add(ended(1, 20), at(10_005)).expect("ten seconds are over");
        assert_eq!((untold.count, untold.longest), (9994, at(99)));
        let untold = reports.add(ended(1, 20), at(30_000)).expect("more are over");
        assert_eq!(untold, Ended::default(), "what was told is not told again");
    }
}
