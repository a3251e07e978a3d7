//! The network on burn: an LSTM cell, its hazard head, and one training step through time.
//!
//! The cell is that of Hochreiter and Schmidhuber with forget gates (Gers, 2000), but its gates are
//! rational: with exp and tanh, element by element, these would take three quarters of a tick. The
//! network is trained with the same gates, so nothing is approximated.

use burn::grad_clipping::GradientClippingConfig;
use burn::module::{Module, Param};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor, TensorData};

use super::hazard::BINS;
use super::model::{Model, Shape};
use super::random::Random;

/// The cell state stays within this: beyond 3 its gate is flat, and a cell that ran far ahead would
/// need long to come back.
const CELL_MAX: f32 = 4.0;

/// Longest gradient of one parameter tensor that a training step follows.
const GRADIENT_NORM_MAX: f32 = 1.0;

/// The trainable part of a [`Model`] as tensors. Shapes as there; biases are `[1, n]`.
#[derive(Module, Debug)]
pub(super) struct Net {
    input: Param<Tensor<2>>,
    recurrent: Param<Tensor<2>>,
    bias: Param<Tensor<2>>,
    head: Param<Tensor<2>>,
    skip: Param<Tensor<2>>,
    head_bias: Param<Tensor<2>>,
}

/// Hidden and cell state of a batch of rows, `[rows, hidden]` each.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub hidden: Tensor<2>,
    pub cell: Tensor<2>,
}

impl State {
    pub fn new(hidden: Vec<f32>, cell: Vec<f32>, size: usize, device: &Device) -> Self {
        Self { hidden: matrix(hidden, size, device), cell: matrix(cell, size, device) }
    }
}

/// `values` as a matrix of so many columns.
pub(super) fn matrix(values: Vec<f32>, columns: usize, device: &Device) -> Tensor<2> {
    let rows = values.len() / columns;
    Tensor::from_data(TensorData::new(values, [rows, columns]), device)
}

/// The values of a matrix, row by row.
pub(super) fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("all tensors here are of f32")
}

/// x (27 + x²) / (27 + 9 x²) up to 3, where it reaches 1 with slope 0: within 0.024 of tanh, which it
/// stands for (its Padé approximant).
fn squash(x: Tensor<2>) -> Tensor<2> {
    let x = x.clamp(-3.0, 3.0);
    let square = x.clone().square();
    let above = square.clone().add_scalar(27.0).mul(x);
    above.div(square.mul_scalar(9.0).add_scalar(27.0))
}

impl Net {
    pub fn new(model: &Model, device: &Device) -> Self {
        let gates = 4 * model.shape.hidden;
        let param =
            |values: &[f32], columns| Param::from_tensor(matrix(values.to_vec(), columns, device));
        Self {
            input: param(&model.input, gates),
            recurrent: param(&model.recurrent, gates),
            bias: param(&model.bias, gates),
            head: param(&model.head, BINS),
            skip: param(&model.skip, BINS),
            head_bias: param(&model.head_bias, BINS),
        }
    }

    /// Puts the weights into `model`.
    pub fn store(&self, model: &mut Model) {
        model.input = values(self.input.val());
        model.recurrent = values(self.recurrent.val());
        model.bias = values(self.bias.val());
        model.head = values(self.head.val());
        model.skip = values(self.skip.val());
        model.head_bias = values(self.head_bias.val());
    }

    /// One tick: features `[rows, features]`, scaled, and the state before give the state after.
    pub fn step(&self, features: Tensor<2>, state: State) -> State {
        let State { hidden, cell } = state;
        let size = cell.dims()[1];
        let sums = features.matmul(self.input.val())
            + hidden.matmul(self.recurrent.val())
            + self.bias.val();
        let gates = squash(sums);
        let share =
            |gate| gates.clone().narrow(1, gate * size, size).mul_scalar(0.5).add_scalar(0.5);
        let (take, keep, show) = (share(0), share(1), share(2));
        let candidate = gates.clone().narrow(1, 3 * size, size);
        let cell = (keep * cell + take * candidate).clamp(-CELL_MAX, CELL_MAX);
        State { hidden: show * squash(cell.clone()), cell }
    }

    /// Logits `[rows, BINS]` of being modified in each bin when it is reached.
    pub fn logits(&self, features: Tensor<2>, hidden: Tensor<2>) -> Tensor<2> {
        hidden.matmul(self.head.val()) + features.matmul(self.skip.val()) + self.head_bias.val()
    }
}

/// Fills the weights of a network that has learned nothing yet: orthogonal enough for 32 cells by
/// chance, and with forget gates that start open.
pub(super) fn initialise(model: &mut Model, random: &mut Random) {
    let Shape { features, hidden } = model.shape;
    let mut fill = |values: &mut [f32], inputs: usize| {
        let bound = (1.0 / inputs as f64).sqrt();
        values.fill_with(|| random.between(-bound, bound) as f32);
    };
    fill(&mut model.input, features);
    fill(&mut model.recurrent, hidden);
    fill(&mut model.head, hidden);
    model.bias.fill(0.0);
    model.bias[hidden..2 * hidden].fill(1.5);
    model.skip.fill(0.0);
    // Rare, and the longer the bin the less so.
    for (bin, value) in model.head_bias.iter_mut().enumerate() {
        *value = -6.0 + 0.4 * bin as f32;
    }
}

/// Sequences of equal length that are learned from together. Row `r` of tick `t` is at
/// `t * rows + r` everywhere.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    /// Sequences.
    pub rows: usize,
    /// Ticks of each.
    pub ticks: usize,
    /// `[ticks, rows, features]`, scaled.
    pub features: Vec<f32>,
    /// `[ticks, rows, BINS]`: 1 in the bin that ended with a modification.
    pub modified: Vec<f32>,
    /// `[ticks, rows, BINS]`: share of the bin that was seen, 0 where nothing is to be learned.
    pub exposure: Vec<f32>,
    /// `[rows, hidden]` at the start.
    pub hidden: Vec<f32>,
    /// `[rows, hidden]` at the start.
    pub cell: Vec<f32>,
}

/// What a batch gave.
pub(super) struct Passed {
    /// Minus the mean log likelihood per row and tick.
    pub loss: f32,
    /// `[rows, hidden]` at the end.
    pub hidden: Vec<f32>,
    /// `[rows, hidden]` at the end.
    pub cell: Vec<f32>,
}

/// Runs a batch: the loss as a tensor of one element, and the state at the end.
fn run(net: &Net, batch: &Batch, shape: Shape, device: &Device) -> (Tensor<1>, State) {
    let Shape { features, hidden } = shape;
    let mut state = State::new(batch.hidden.clone(), batch.cell.clone(), hidden, device);
    let mut shown = Vec::with_capacity(batch.ticks);
    for row in batch.features.chunks_exact(batch.rows * features) {
        state = net.step(matrix(row.to_vec(), features, device), state);
        shown.push(state.hidden.clone());
    }
    let all = matrix(batch.features.clone(), features, device);
    let logits = net.logits(all, Tensor::cat(shown, 0));
    let modified = matrix(batch.modified.clone(), BINS, device);
    let exposure = matrix(batch.exposure.clone(), BINS, device);
    // ln(1 + exp(x)) without overflow: the cumulative hazard. Where the bin ended with a
    // modification, -ln(1 - exp(-that)) is the same minus the logit.
    let below = logits.clone().abs().neg().exp().log1p();
    let hazard = logits.clone().clamp_min(0.0) + below;
    let loss = (hazard - modified * logits) * exposure;
    (loss.sum().div_scalar((batch.rows * batch.ticks) as f32), state)
}

/// A network that learns.
pub(super) struct Trainer {
    net: Net,
    optimizer: ModuleOptimizer,
    shape: Shape,
    device: Device,
}

impl Trainer {
    pub fn new(model: &Model) -> Self {
        let device = Device::flex().autodiff();
        let config = AdamConfig::new()
            .with_grad_clipping(Some(GradientClippingConfig::Norm(GRADIENT_NORM_MAX)));
        Self { net: Net::new(model, &device), optimizer: config.init(), shape: model.shape, device }
    }

    /// Learns from one batch.
    pub fn learn(&mut self, batch: &Batch, learning_rate: f64) -> Passed {
        let (loss, state) = run(&self.net, batch, self.shape, &self.device);
        let gradients = GradientsParams::from_grads(loss.backward(), &self.net);
        self.net = self.optimizer.step(learning_rate, self.net.clone(), gradients);
        passed(loss, state)
    }

    /// Puts the weights into `model`.
    pub fn store(&self, model: &mut Model) {
        self.net.store(model);
    }
}

/// What `model` makes of a batch, without learning from it.
pub(super) fn assess(net: &Net, shape: Shape, batch: &Batch) -> Passed {
    let (loss, state) = run(net, batch, shape, &Device::flex());
    passed(loss, state)
}

fn passed(loss: Tensor<1>, state: State) -> Passed {
    Passed { loss: loss.into_scalar(), hidden: values(state.hidden), cell: values(state.cell) }
}
