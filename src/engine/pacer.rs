//! Limits on background copying: a hard one, as a token bucket, and one that moves so that foreground
//! commands do not become slow.
//!
//! What foreground commands take while nothing is copied is the measure: while copies run they may take
//! [`SLOWER_MAX`] times that. If they take more, copying is held back to a part of what it moved; if
//! not, it gets more again, step by step. A load that grows by itself is not mistaken for long: what is
//! copied least leaves pauses, in which the measure is taken anew.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "rates and times lie far below what a double tells apart, and above 0"
)]

use super::events::Micros;

/// The bucket holds this much of the allowed rate, so that a late tick does not cost bandwidth
/// and a burst stays short.
const BURST_US: u64 = 50_000;

/// Foreground commands may take so many times longer while copies run, and so much on top: below that, a
/// device's own jitter is larger.
const SLOWER_MAX: f64 = 2.0;
const SLOWER_US_MAX: f64 = 100.0;

/// Copying is held back to this part at once, and let go by this much per step.
const HELD_BACK: f64 = 0.7;
const LET_GO: f64 = 1.1;

/// Copying never gets less, or a snapshot would never be complete: a chunk of 256 KiB every 16 ms.
const BYTES_PER_S_MIN: f64 = (16 << 20) as f64;

/// A limit above this is none.
const BYTES_PER_S_MAX: f64 = (8_u64 << 30) as f64;

/// Fewer commands than this say nothing.
const COMMANDS_MIN: u64 = 4;

/// How much a new measure counts.
const MEASURE_STEP: f64 = 1.0 / 16.0;

/// Foreground commands that were timed since the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Foreground {
    /// How many. Commands that waited for a preserve are not among them: copying less would not help them.
    pub commands: u64,
    /// How long they took, all together.
    pub took_us: u64,
}

/// How copying and foreground commands get along.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// What foreground commands take while nothing is copied, in microseconds; `None`: not measured.
    pub undisturbed_us: Option<f64>,
    /// What they took lately while copies ran.
    pub disturbed_us: Option<f64>,
    /// Limit on copying for their sake.
    pub bytes_per_s_max: Option<u64>,
}

/// Allows at most so many bytes a second.
#[derive(Debug)]
pub struct Pacer {
    bytes_per_s_max: Option<u64>,
    pace: Pace,
    looked_at: Micros,
    /// Bytes given out since then.
    taken_bytes: u64,
    tokens_bytes: u64,
    /// What is left of the last gain below a whole byte, in millionths. Dropped, it would slow
    /// short ticks down; given back as time, it would let them copy more than allowed.
    gained_millionths: u128,
    refilled_at: Micros,
}

fn moved(measure: &mut Option<f64>, us: f64) {
    let before = measure.unwrap_or(us);
    *measure = Some(before + (us - before) * MEASURE_STEP);
}

impl Pacer {
    /// A pacer for `bytes_per_s_max`; `None` is no limit.
    pub fn new(bytes_per_s_max: Option<u64>) -> Self {
        Self {
            bytes_per_s_max,
            pace: Pace::default(),
            looked_at: Micros(0),
            taken_bytes: 0,
            tokens_bytes: 0,
            gained_millionths: 0,
            refilled_at: Micros(0),
        }
    }

    /// Changes the hard limit from now on.
    pub fn set_limit(&mut self, bytes_per_s_max: Option<u64>) {
        self.bytes_per_s_max = bytes_per_s_max;
        self.tokens_bytes = 0;
    }

    /// How copying and foreground commands get along.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// What foreground commands took since the last time; `copying`: copies are under way.
    pub fn look(&mut self, now: Micros, foreground: Foreground, copying: bool) {
        let elapsed_us = now.since(self.looked_at).max(1);
        let taken_bytes = std::mem::take(&mut self.taken_bytes);
        self.looked_at = now;
        if foreground.commands < COMMANDS_MIN {
            if foreground.commands == 0 {
                self.let_go(2.0);
            }
            return;
        }
        let took_us = foreground.took_us as f64 / foreground.commands as f64;
        if !copying && taken_bytes == 0 {
            return moved(&mut self.pace.undisturbed_us, took_us);
        }
        moved(&mut self.pace.disturbed_us, took_us);
        let Some(undisturbed_us) = self.pace.undisturbed_us else { return };
        if took_us <= undisturbed_us * SLOWER_MAX + SLOWER_US_MAX {
            return self.let_go(LET_GO);
        }
        let moved_per_s = taken_bytes as f64 * 1e6 / elapsed_us as f64;
        let before = self.pace.bytes_per_s_max.map_or(moved_per_s, |max| max as f64);
        let max = (before.min(moved_per_s.max(BYTES_PER_S_MIN)) * HELD_BACK).max(BYTES_PER_S_MIN);
        self.pace.bytes_per_s_max = Some(max as u64);
    }

    fn let_go(&mut self, times: f64) {
        let max = self.pace.bytes_per_s_max.map(|max| max as f64 * times);
        self.pace.bytes_per_s_max = max.filter(|&max| max < BYTES_PER_S_MAX).map(|max| max as u64);
    }

    /// Takes `bytes` if they may be copied now. The bucket always holds at least one copy of
    /// that size, so a limit below one chunk per burst slows copying down but never stops it.
    pub fn take(&mut self, now: Micros, bytes: u64) -> bool {
        let rate = match (self.bytes_per_s_max, self.pace.bytes_per_s_max) {
            (Some(hard), Some(soft)) => hard.min(soft),
            (Some(rate), None) | (None, Some(rate)) => rate,
            (None, None) => {
                self.taken_bytes += bytes;
                self.refilled_at = self.refilled_at.max(now);
                return true;
            }
        };
        let capacity = bytes.max((u128::from(rate) * u128::from(BURST_US) / 1_000_000) as u64);
        let elapsed_us = now.since(self.refilled_at);
        self.refilled_at = self.refilled_at.max(now);
        self.gained_millionths += u128::from(rate) * u128::from(elapsed_us);
        let gained = (self.gained_millionths / 1_000_000).min(u64::MAX.into()) as u64;
        self.gained_millionths %= 1_000_000;
        self.tokens_bytes = self.tokens_bytes.saturating_add(gained).min(capacity);
        if self.tokens_bytes < bytes {
            return false;
        }
        self.tokens_bytes -= bytes;
        self.taken_bytes += bytes;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_than_the_rate_over_a_second() {
        for rate in [100_000_u64, 1 << 20, 100 << 20] {
            for step_us in [7, 100, 10_000] {
                let mut pacer = Pacer::new(Some(rate));
                let mut copied = 0;
                let mut now = Micros(0);
                while now.0 < 4_000_000 {
                    now.0 += step_us;
                    while pacer.take(now, 4096) {
                        copied += 4096;
                    }
                }
                let allowed = rate * 4 + rate * BURST_US / 1_000_000 + 4096;
                assert!(copied <= allowed, "rate {rate} step {step_us}: {copied} > {allowed}");
                assert!(copied >= rate * 39 / 10 - 4096, "rate {rate} step {step_us}: {copied}");
            }
        }
    }

    #[test]
    fn a_limit_below_one_chunk_still_moves() {
        let mut pacer = Pacer::new(Some(1 << 20));
        let mut copies = 0;
        for ms in 0..10_000_u64 {
            copies += u64::from(pacer.take(Micros(ms * 1000), 4 << 20));
        }
        assert_eq!(copies, 2);
    }

    const CHUNK: u64 = 256 << 10;
    const LOOK_US: u64 = 10_000;

    /// A device that moves 2 GB/s: foreground commands take `base_us`, and the longer the more of that
    /// copies take. Copies as much as it may for so many looks; returns bytes per second and the mean
    /// time of commands over the last half.
    fn run(pacer: &mut Pacer, from: Micros, looks: u64, base_us: f64) -> (f64, f64) {
        let (mut bytes, mut took, mut now) = (0_u64, 0.0, from);
        for look in 0..looks {
            let mut copied = 0;
            for _ in 0..LOOK_US / 100 {
                now.0 += 100;
                // The device's own limit.
                while copied < 20_000_000 && pacer.take(now, CHUNK) {
                    copied += CHUNK;
                }
            }
            let busy = (copied as f64 / 20e6).min(0.95);
            let took_us = base_us / (1.0 - busy);
            pacer.look(now, Foreground { commands: 100, took_us: (100.0 * took_us) as u64 }, true);
            if look >= looks / 2 {
                bytes += copied;
                took += took_us;
            }
        }
        let half = (looks - looks / 2) as f64;
        (bytes as f64 / (half * LOOK_US as f64 / 1e6), took / half)
    }

    /// Undisturbed, as measured before.
    fn measured(hard: Option<u64>, us: u64) -> (Pacer, Micros) {
        let mut pacer = Pacer::new(hard);
        let mut now = Micros(0);
        for _ in 0..100 {
            now.0 += LOOK_US;
            pacer.look(now, Foreground { commands: 100, took_us: 100 * us }, false);
        }
        (pacer, now)
    }

    /// Fails when foreground latency does not hold copying back, or holds it back to nothing.
    #[test]
    fn copying_takes_what_foreground_commands_leave() {
        let (mut pacer, now) = measured(None, 200);
        let (rate, took_us) = run(&mut pacer, now, 1000, 200.0);
        let allowed_us = 200.0 * SLOWER_MAX + SLOWER_US_MAX;
        assert!(took_us < allowed_us * 1.3, "{took_us} us at {rate}");
        assert!(rate > 0.5e9, "{rate}: a half of the device is free");
        assert!(pacer.pace().bytes_per_s_max.is_some());
    }

    #[test]
    fn the_hard_limit_holds_whatever_the_foreground_does() {
        let (mut pacer, now) = measured(Some(50 << 20), 200);
        let (rate, _) = run(&mut pacer, now, 500, 10.0);
        assert!(rate < f64::from(51 << 20), "{rate}");
        let (mut pacer, mut now) = measured(Some(50 << 20), 200);
        for _ in 0..100 {
            now.0 += LOOK_US;
            pacer.look(now, Foreground::default(), true);
        }
        assert!(run(&mut pacer, now, 500, 10.0).0 < f64::from(51 << 20));
    }

    #[test]
    fn copying_never_stops_and_is_let_go_when_nobody_is_there() {
        let (mut pacer, mut now) = measured(None, 200);
        let mut copied = 0;
        for _ in 0..1000 {
            now.0 += LOOK_US;
            while pacer.take(now, CHUNK) && copied < 1 << 40 {
                copied += CHUNK;
                if pacer.pace().bytes_per_s_max.is_none() {
                    break;
                }
            }
            pacer.look(now, Foreground { commands: 9, took_us: 9_000_000 }, true);
        }
        assert_eq!(pacer.pace().bytes_per_s_max, Some(BYTES_PER_S_MIN as u64));
        assert!(copied as f64 > 9.0 * BYTES_PER_S_MIN, "{copied} in 10 s");
        for _ in 0..12 {
            now.0 += LOOK_US;
            pacer.look(now, Foreground::default(), true);
        }
        assert_eq!(pacer.pace().bytes_per_s_max, None);
    }

    /// A load that becomes heavier by itself: after a while it is the new measure.
    #[test]
    fn a_slower_load_is_measured_anew_in_the_pauses() {
        let (mut pacer, mut now) = measured(None, 200);
        for look in 0..600_u64 {
            now.0 += LOOK_US;
            let copying = look % 2 == 0;
            if copying {
                let _ = pacer.take(now, CHUNK);
            }
            pacer.look(now, Foreground { commands: 50, took_us: 50 * 2000 }, copying);
        }
        assert!(pacer.pace().undisturbed_us > Some(1900.0), "{:?}", pacer.pace());
        assert!(pacer.pace().bytes_per_s_max.is_none_or(|max| max > 1 << 28), "{:?}", pacer.pace());
    }
}
