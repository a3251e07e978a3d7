//! Chance that follows from a seed: initial weights, samples, noise, made-up workloads.

/// A sequence of pseudo-random numbers. Splitmix64 (Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// All that follows from `seed`.
    pub fn new(seed: u64) -> Self {
        let mut random = Self { state: seed };
        random.number(); // seeds that differ in one bit part here
        random.state ^= seed.rotate_left(32);
        random
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `end - 1`; `end` is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.number()) * u128::from(end)) >> 64) as u64
    }

    /// A place in a sequence of `len`, which is not 0.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// 0 up to, not including, 1.
    pub fn unit(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// `low` up to `high`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// `low` up to `high`, each doubling as likely as any other.
    pub fn log_between(&mut self, low: f64, high: f64) -> f64 {
        self.between(low.ln(), high.ln()).exp()
    }

    /// True in this share of all cases.
    pub fn chance(&mut self, share: f64) -> bool {
        self.unit() < share
    }

    /// Time to the next of events that come at random with this mean distance.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// Mean 0, standard deviation 1 (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_and_another_seed_something_else() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..8).map(|_| random.number()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn means_are_what_they_should_be() {
        let mut random = Random::new(1);
        let mut mean = |draw: fn(&mut Random) -> f64| {
            (0..100_000).map(|_| draw(&mut random)).sum::<f64>() / 100_000.0
        };
        assert!((mean(Random::unit) - 0.5).abs() < 0.01);
        assert!((mean(|r| r.exponential(3.0)) - 3.0).abs() < 0.05);
        assert!(mean(Random::normal).abs() < 0.02);
        assert!((mean(|r| r.normal().powi(2)) - 1.0).abs() < 0.03);
        assert!((mean(|r| r.below(11) as f64) - 5.0).abs() < 0.05);
    }
}
