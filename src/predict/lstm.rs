//! The LSTM at work: its state per active chunk, one step per tick.

use burn::tensor::Device;

use super::hazard::{BINS, Hazards, Plan, expected_ticks, softplus};
use super::model::Model;
use super::net::{Net, State, matrix, values};
use super::{Context, Prediction, Predictor};
use crate::monitor::Tick;

/// Rows that are computed at once: what the tensors of a step hold then stays in the cache.
const BLOCK_ROWS: usize = 1024;

/// A model with the state of all active chunks.
pub struct Lstm {
    model: Model,
    net: Net,
    device: Device,
    /// `[slots, hidden]`, by row id.
    hidden: Vec<f32>,
    /// `[slots, hidden]`, by row id.
    cell: Vec<f32>,
    /// Of the rows of the last tick.
    hazards: Vec<Hazards>,
}

impl Lstm {
    /// A model that has seen no tick.
    pub fn new(model: Model) -> Self {
        let device = Device::flex();
        let net = Net::new(&model, &device);
        Self { model, net, device, hidden: vec![], cell: vec![], hazards: vec![] }
    }

    /// The model in use.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Goes on with another model of the same shape; what the chunks' states remember stays.
    ///
    /// # Panics
    ///
    /// If the shape is another.
    pub fn replace(&mut self, model: Model) {
        assert_eq!(model.shape, self.model.shape);
        self.net = Net::new(&model, &self.device);
        self.model = model;
    }

    /// Hidden and cell state of a row id, `[hidden]` each; nothing for one that was never used.
    pub fn state(&self, slot: u32) -> Option<(&[f32], &[f32])> {
        let size = self.model.shape.hidden;
        let place = slot as usize * size..(slot as usize + 1) * size;
        Some((self.hidden.get(place.clone())?, self.cell.get(place)?))
    }

    /// Expected ticks to the next modification of a row of the last tick, for the order of copies.
    pub fn expected_ticks(&self, row: usize) -> Option<f32> {
        self.hazards.get(row).map(expected_ticks)
    }

    /// One tick: puts one set of hazards per row into `hazards`. `features` has the rows one after
    /// the other; the state of a row id that is `fresh` starts anew.
    ///
    /// # Panics
    ///
    /// If there are not as many features as rows need.
    pub fn advance(
        &mut self,
        slots: &[u32],
        features: &[f32],
        fresh: &[bool],
        hazards: &mut Vec<Hazards>,
    ) {
        let width = self.model.shape.features;
        assert_eq!(features.len(), slots.len() * width);
        assert_eq!(fresh.len(), slots.len());
        let size = self.model.shape.hidden;
        let slots_end = slots.iter().max().map_or(0, |slot| *slot as usize + 1);
        if self.hidden.len() < slots_end * size {
            self.hidden.resize(slots_end * size, 0.0);
            self.cell.resize(slots_end * size, 0.0);
        }
        hazards.clear();
        hazards.reserve(slots.len());
        for first in (0..slots.len()).step_by(BLOCK_ROWS) {
            let rows = first..(first + BLOCK_ROWS).min(slots.len());
            self.block(
                &slots[rows.clone()],
                &features[rows.start * width..rows.end * width],
                &fresh[rows],
                hazards,
            );
        }
    }

    fn block(
        &mut self,
        slots: &[u32],
        features: &[f32],
        fresh: &[bool],
        hazards: &mut Vec<Hazards>,
    ) {
        let size = self.model.shape.hidden;
        let mut scaled = Vec::with_capacity(features.len());
        for row in features.chunks_exact(self.model.shape.features) {
            self.model.normalise(row, &mut scaled);
        }
        let mut hidden = Vec::with_capacity(slots.len() * size);
        let mut cell = Vec::with_capacity(slots.len() * size);
        for (&slot, &fresh) in slots.iter().zip(fresh) {
            let place = slot as usize * size..(slot as usize + 1) * size;
            if fresh {
                hidden.resize(hidden.len() + size, 0.0);
                cell.resize(cell.len() + size, 0.0);
            } else {
                hidden.extend_from_slice(&self.hidden[place.clone()]);
                cell.extend_from_slice(&self.cell[place]);
            }
        }
        let scaled = matrix(scaled, self.model.shape.features, &self.device);
        let state = State::new(hidden, cell, size, &self.device);
        let state = self.net.step(scaled.clone(), state);
        let logits = values(self.net.logits(scaled, state.hidden.clone()));
        let (hidden, cell) = (values(state.hidden), values(state.cell));
        for (row, &slot) in slots.iter().enumerate() {
            let place = slot as usize * size..(slot as usize + 1) * size;
            self.hidden[place.clone()].copy_from_slice(&hidden[row * size..(row + 1) * size]);
            self.cell[place].copy_from_slice(&cell[row * size..(row + 1) * size]);
        }
        hazards.extend(logits.chunks_exact(BINS).map(|row| {
            let row: [f32; BINS] = row.try_into().expect("one logit per bin");
            row.map(softplus)
        }));
    }
}

impl Predictor for Lstm {
    fn name(&self) -> &'static str {
        "lstm"
    }

    fn step(&mut self, tick: &Tick<'_>, context: &Context, prediction: &mut Prediction) {
        let mut hazards = std::mem::take(&mut self.hazards);
        self.advance(tick.slots, tick.features, tick.fresh, &mut hazards);
        self.hazards = hazards;
        self.again(tick, context, prediction);
    }

    fn again(&mut self, _: &Tick<'_>, context: &Context, prediction: &mut Prediction) {
        let plan = Plan::new(context.race(), self.model.tick_ms);
        prediction.clear();
        for row in &self.hazards {
            plan.push(row, prediction);
        }
    }
}

#[cfg(test)]
#[path = "lstm_tests.rs"]
mod tests;
