//! What one history is like: sizes, speeds, and which operations and faults it has at all. A
//! history that has everything meets little of anything, so each seed switches much of it off.

use super::random::Random;
use crate::engine::{Limits, PolicyKind, Score};

/// Drawn from the seed before the history begins.
#[derive(Clone, Debug)]
pub(super) struct Swarm {
    pub lba_bytes: u32,
    pub volume_lbas: u64,
    pub slot_count: u32,
    pub store_block_bytes: u32,
    /// The catalog's flushes do not make slots durable.
    pub flushes_apart: bool,
    pub clients: usize,
    pub readers: usize,
    /// Commands of the whole history.
    pub commands: u64,
    /// Operations (snapshots, deletes, faults) of the whole history.
    pub operations: u64,
    pub limits: Limits,
    /// Out of 1000 commands: write zeroes or unmap.
    pub zeroes_per_mille: u64,
    /// Out of 1000 commands: one that spans chunks.
    pub spanning_per_mille: u64,
    /// Out of 1000 commands: one to the few hot chunks.
    pub hot_per_mille: u64,
    /// Out of 1000 commands: one that takes longer than a writer may wait.
    pub stuck_per_mille: u64,
    pub think_us_max: u64,
    pub command_us_max: u64,
    pub copy_us_max: u64,
    pub catalog_us_max: u64,
    pub message_us_max: u64,
    pub operation_us_max: u64,
    pub parked_us_max: u64,
    /// A parked command asks for all its chunks at once, as the volume does.
    pub parks_all: bool,
    pub policy: PolicyKind,
    pub staging_slots_max: u64,
    pub copy_bytes_per_s_max: Option<u64>,
    /// Out of 1000 copies, flushes, transactions: one that ends in an error.
    pub copy_error_per_mille: u64,
    pub flush_error_per_mille: u64,
    pub catalog_error_per_mille: u64,
    /// Out of 1000 transactions: one with a power cut in it.
    pub catalog_cut_per_mille: u64,
    pub load_cut_per_mille: u64,
    /// Weights of the operations, as in [`Operation`].
    pub weights: [u64; Operation::ALL.len()],
}

/// What the operator of a history does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Create,
    RepeatCreate,
    Delete,
    Abort,
    Settings,
    Stop,
    PowerCut,
    Kill,
    StoreGone,
    RecordsLost,
    Scrub,
    ClockJump,
}

impl Operation {
    pub const ALL: [Operation; 12] = [
        Operation::Create,
        Operation::RepeatCreate,
        Operation::Delete,
        Operation::Abort,
        Operation::Settings,
        Operation::Stop,
        Operation::PowerCut,
        Operation::Kill,
        Operation::StoreGone,
        Operation::RecordsLost,
        Operation::Scrub,
        Operation::ClockJump,
    ];
}

impl Swarm {
    pub fn draw(random: &mut Random) -> Self {
        let r = random;
        let chunk_bytes = 1 << 16;
        let large = r.chance(120);
        let lba_bytes: u32 = if large { 32768 } else { r.pick(&[512, 1024, 4096, 4096, 16384]) };
        let chunks = if large { r.between(65, 150) } else { r.between(2, 14) };
        let chunk_lbas = u64::from(chunk_bytes / lba_bytes);
        let last_lbas = if r.chance(500) { chunk_lbas } else { r.between(1, chunk_lbas) };
        let volume_lbas = (chunks - 1) * chunk_lbas + last_lbas;
        let on = |r: &mut Random, per_mille: u64, value: u64| {
            if r.chance(per_mille) { value } else { 0 }
        };
        let room = r.pick(&[1, 2, 3, 3, 6]);
        let policy = match r.below(10) {
            0..3 => PolicyKind::Off,
            3..7 => PolicyKind::Idle { rest_us: r.pick(&[0, 300, 2_000, 10_000]) },
            _ => PolicyKind::Scored { threshold: Score(r.pick(&[0, 20_000, 60_000])) },
        };
        let tight = r.chance(700);
        let limits = if tight {
            Limits {
                copies_in_flight_max: r.between(1, 4) as usize,
                staging_in_flight_max: r.between(1, 4) as usize,
                pending_max: r.between(1, 6) as usize,
                walk_chunks_per_tick: r.between(1, 5) as usize,
                walk_words_per_tick: r.between(1, 2) as usize,
                rows_per_transaction: r.between(1, 8) as usize,
                candidates_per_tick: r.between(1, 3) as usize,
                sweep_words_per_tick: r.between(1, 2) as usize,
                cleanup_words_per_tick: 1,
                cleanup_every_us: 3_000,
                open_words_per_tick: r.between(0, 2) as usize,
                open_chunks_per_tick: r.between(1, 4) as usize,
            }
        } else {
            Limits::default()
        };
        Self {
            lba_bytes,
            volume_lbas,
            // Rounded, so that few kinds of formatted devices are needed.
            slot_count: ((chunks * room + r.below(4)) as u32).next_multiple_of(4),
            store_block_bytes: r.pick(&[512, 4096, 4096, 4096]),
            flushes_apart: r.chance(500),
            clients: r.between(1, 6) as usize,
            readers: r.between(0, 3) as usize,
            commands: r.between(10, 90),
            operations: r.between(4, 16),
            limits,
            zeroes_per_mille: on(r, 500, 250),
            spanning_per_mille: on(r, 700, 300),
            hot_per_mille: on(r, 700, 700),
            stuck_per_mille: on(r, 100, 30),
            think_us_max: r.pick(&[50, 1_000, 10_000]),
            command_us_max: r.pick(&[50, 500, 5_000]),
            copy_us_max: r.pick(&[50, 500, 5_000]),
            catalog_us_max: r.pick(&[50, 1_000, 10_000]),
            message_us_max: r.pick(&[0, 10, 500]),
            operation_us_max: r.pick(&[1_000, 10_000, 40_000]),
            parked_us_max: r.pick(&[20_000, 200_000, 1_000_000]),
            parks_all: r.chance(500),
            policy,
            staging_slots_max: r.pick(&[0, 2, 5, u64::MAX, u64::MAX]),
            copy_bytes_per_s_max: r.chance(200).then(|| r.pick(&[4 << 20, 64 << 20])),
            copy_error_per_mille: r.pick(&[0, 0, 0, 0, 0, 0, 0, 60, 60, 900]),
            flush_error_per_mille: on(r, 100, 300),
            catalog_error_per_mille: on(r, 150, 150),
            catalog_cut_per_mille: on(r, 250, 80),
            load_cut_per_mille: on(r, 200, 300),
            weights: [
                400,
                on(r, 400, 100),
                on(r, 700, 200),
                on(r, 400, 120),
                on(r, 400, 80),
                on(r, 500, 80),
                on(r, 500, 80),
                on(r, 300, 60),
                on(r, 100, 80),
                on(r, 200, 60),
                on(r, 300, 100),
                on(r, 150, 80),
            ],
        }
    }

    pub fn operation(&self, random: &mut Random) -> Operation {
        let mut left = random.below(self.weights.iter().sum());
        for (operation, weight) in Operation::ALL.into_iter().zip(self.weights) {
            if left < weight {
                return operation;
            }
            left -= weight;
        }
        unreachable!("the number was below the sum of the weights")
    }

    /// Whether snapshots are deleted at all.
    pub fn deletes(&self) -> bool {
        Operation::ALL
            .iter()
            .zip(self.weights)
            .any(|(operation, weight)| *operation == Operation::Delete && weight > 0)
    }

    /// Nothing goes wrong any more: histories end with everything settled.
    pub fn calm(&mut self) {
        self.stuck_per_mille = 0;
        self.copy_error_per_mille = 0;
        self.flush_error_per_mille = 0;
        self.catalog_error_per_mille = 0;
        self.catalog_cut_per_mille = 0;
        self.load_cut_per_mille = 0;
    }
}
