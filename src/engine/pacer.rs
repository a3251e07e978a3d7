//! A hard limit on background copying, as a token bucket.

use super::events::Micros;

/// The bucket holds this much of the allowed rate, so that a late tick does not cost bandwidth
/// and a burst stays short.
const BURST_US: u64 = 50_000;

/// Allows at most so many bytes a second.
#[derive(Debug)]
pub struct Pacer {
    bytes_per_s_max: Option<u64>,
    tokens_bytes: u64,
    /// What is left of the last gain below a whole byte, in millionths. Dropped, it would slow
    /// short ticks down; given back as time, it would let them copy more than allowed.
    gained_millionths: u128,
    refilled_at: Micros,
}

impl Pacer {
    /// A pacer for `bytes_per_s_max`; `None` is no limit.
    pub fn new(bytes_per_s_max: Option<u64>) -> Self {
        Self { bytes_per_s_max, tokens_bytes: 0, gained_millionths: 0, refilled_at: Micros(0) }
    }

    /// Changes the limit from now on.
    pub fn set_limit(&mut self, bytes_per_s_max: Option<u64>) {
        self.bytes_per_s_max = bytes_per_s_max;
        self.tokens_bytes = 0;
    }

    /// Takes `bytes` if they may be copied now. The bucket always holds at least one copy of
    /// that size, so a limit below one chunk per burst slows copying down but never stops it.
    pub fn take(&mut self, now: Micros, bytes: u64) -> bool {
        let Some(rate) = self.bytes_per_s_max else { return true };
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
}
