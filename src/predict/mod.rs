//! When chunks will be modified, and whether a copy made now will be of use.
//!
//! A [`Predictor`] makes one step per closed window ([`Tick`]) and gives two numbers per active
//! chunk: `p_modify` at each of [`WINDOWS_US`], and `score`. The baselines need no model
//! ([`baseline`]); what a better predictor is worth is measured against them.
#![forbid(unsafe_code)]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::manual_midpoint,
    reason = "probabilities are approximate by nature"
)]

mod adviser;
pub mod baseline;
pub mod calibration;
pub mod evaluate;
mod forecast;
pub mod future;
pub mod hazard;
pub mod logistic;
#[cfg(feature = "lstm")]
mod lstm;
pub mod metrics;
pub mod model;
#[cfg(feature = "lstm")]
mod net;
pub mod random;
pub mod sequences;
#[cfg(feature = "lstm")]
pub mod train;
#[cfg(feature = "lstm")]
pub mod tune;

pub use adviser::{Advice, Adviser, ChunkAdvice, Sight, Terms};
pub use forecast::{Forecast, Race, SnapshotTimes};
#[cfg(feature = "lstm")]
pub use lstm::Lstm;

use crate::monitor::Tick;

/// Number of windows that `p_modify` is given for.
pub const WINDOWS: usize = 4;

/// The windows, in microseconds: 10 s, 1 min, 5 min, 15 min.
pub const WINDOWS_US: [u64; WINDOWS] = [10_000_000, 60_000_000, 300_000_000, 900_000_000];

/// Waiting is weighed for so long: enough for a copier that gives way to foreground commands, and short, since
/// what is copied long before an expected snapshot is often modified before it.
const HORIZON_US: u64 = 20_000_000;

/// And for longer if copying all there is to copy takes long: so many times that.
const EARLIER: f32 = 2.0;

/// What devices are taken to manage where no rate is set, in bytes per second.
const FREE_BYTES_PER_S: u64 = 500_000_000;

/// What a predictor is told besides the tick.
#[derive(Clone, Debug)]
pub struct Context {
    /// When the next snapshot will be, from the end of the tick's window.
    pub forecast: Forecast,
    /// Bytes that copying all there is to copy would take now.
    pub work_bytes: u64,
    /// Limit on background copying.
    pub copy_bytes_per_s_max: Option<u64>,
}

impl Context {
    /// A context that knows of no work and no limit.
    pub fn new(forecast: Forecast) -> Self {
        Self { forecast, work_bytes: 0, copy_bytes_per_s_max: None }
    }

    /// How snapshot and modification race over the time that waiting is weighed for.
    pub fn race(&self) -> Race {
        let rate = self.copy_bytes_per_s_max.unwrap_or(FREE_BYTES_PER_S).max(1);
        let takes_us = self.work_bytes as f32 / rate as f32 * 1e6;
        Race::new(&self.forecast, HORIZON_US.max((EARLIER * takes_us) as u64))
    }
}

/// What a predictor says of each row of a tick.
#[derive(Clone, Debug, Default)]
pub struct Prediction {
    /// Per row, the probability that the chunk is modified within each of [`WINDOWS_US`] from the
    /// end of the tick's window; never smaller for a longer one.
    pub p_modify: Vec<[f32; WINDOWS]>,
    /// Per row, the probability that the next snapshot comes before the next modification, if one
    /// of them comes soon ([`Race`]): that a copy made now is used, and is not better made later.
    /// Whether the chunk is dirty, so that the snapshot requires it, the engine knows.
    pub score: Vec<f32>,
}

impl Prediction {
    /// Empties it for a new tick.
    pub fn clear(&mut self) {
        self.p_modify.clear();
        self.score.clear();
    }

    /// Adds a row from its probability to stay unmodified for so many microseconds.
    pub fn push(&mut self, race: &Race, unmodified: impl Fn(u64) -> f32) {
        self.p_modify.push(WINDOWS_US.map(|window_us| 1.0 - unmodified(window_us)));
        self.score.push(race.score(race.times_us().map(unmodified)));
    }
}

/// Which model serves, and what became of learning on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelState {
    /// Tells models apart ([`model::Model::checksum`]).
    pub checksum: u32,
    /// That of the model it all began with.
    pub first_checksum: u32,
    /// Steps learned.
    pub steps: u64,
    /// Candidates that came into use.
    pub adopted: u64,
    /// Candidates that were no better.
    pub dropped: u64,
    /// Times that the first model came back.
    pub reverted: u64,
}

/// Something that tells the future of chunks.
pub trait Predictor {
    /// Name, as that of the policy it serves.
    fn name(&self) -> &'static str;

    /// The model it has, if it has one.
    fn model(&self) -> Option<ModelState> {
        None
    }

    /// Takes the window just closed and predicts from its end on. Called once per tick, none left
    /// out; `prediction` is overwritten, one entry per row of `tick`.
    fn step(&mut self, tick: &Tick<'_>, context: &Context, prediction: &mut Prediction);

    /// Predicts once more from the tick of the last [`Self::step`], for another context. Nothing is
    /// remembered of it.
    fn again(&mut self, tick: &Tick<'_>, context: &Context, prediction: &mut Prediction) {
        self.step(tick, context, prediction);
    }

    /// Whether what it says depends on nothing of the context but its race.
    fn minds_race_only(&self) -> bool {
        true
    }
}
