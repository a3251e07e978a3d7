//! The gate under the model checker: every interleaving and every weak-memory outcome of a few
//! threads, up to a bound on preemptions.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release --no-default-features --test loom_gate
//! ```
//!
//! The master is modelled as cells that commands store between `enter` and `leave` and copies load
//! between `begin_copy` and `end_copy`, relaxed: what the gate promises must follow from the gate's
//! own orderings. The cells of one command are stored one by one, so that a torn copy shows. The
//! last comment of each test names the deliberate mistakes it was seen to catch
//! (`tests/gate_mutations.py` makes them again).
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use loom::thread;
use presnap::gate::{
    BlockMap, ChunkIndex, ChunkState, CopyEnd, CutPoint, Entry, Epoch, Gate, Geometry, Initial,
    Lane, LbaRange, OperationNumber, Passage, ReadSource,
};

/// Device blocks in a chunk; one cell of the model each. A map block is a quarter of one.
const CHUNK_LBAS: u64 = 16;
/// Cells of a chunk that the model looks at: its first device blocks.
const CELLS: usize = 2;
const C0: ChunkIndex = ChunkIndex(0);

type Cells = [u64; CELLS];

/// A gate and the master behind it.
struct World {
    gate: std::sync::Arc<Gate>,
    master: Vec<[AtomicU64; CELLS]>,
}

impl World {
    fn new(chunks: usize, initial: Initial) -> Arc<Self> {
        let geometry = Geometry::new(64 << 10, 4096, chunks as u64 * CHUNK_LBAS).unwrap();
        let gate = Gate::new(geometry, initial, OperationNumber(0)).unwrap().into();
        let master = (0..chunks).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect();
        Arc::new(Self { gate, master })
    }

    /// The device's part of a write: all modelled cells of `range` become `value`.
    fn store(&self, range: LbaRange, value: u64) {
        for lba in range.lba..range.lba + range.count {
            let cell = (lba % CHUNK_LBAS) as usize;
            if cell < CELLS {
                // Release: a device executes a command after it was submitted.
                self.master[(lba / CHUNK_LBAS) as usize][cell].store(value, Release);
            }
        }
    }

    /// A whole write; `None` if it was parked and so not made.
    fn try_write(&self, range: LbaRange, value: u64) -> Option<Done> {
        match self.gate.enter(range) {
            Entry::Entered { operation, epoch } => {
                self.store(range, value);
                self.gate.leave(range);
                Some(Done { operation, epoch })
            }
            Entry::Parked { .. } => None,
            Entry::Saturated { .. } => panic!("not with so few"),
        }
    }

    /// As [`Self::try_write`], on a lane.
    fn try_pass(&self, lane: &Lane, range: LbaRange, value: u64) -> Option<Passage> {
        let passage = lane.enter(range).ok()?;
        self.store(range, value);
        lane.leave(passage, range);
        Some(passage)
    }

    /// A whole write that waits for the engine as long as it is parked.
    fn write(&self, range: LbaRange, value: u64) -> Done {
        loop {
            match self.try_write(range, value) {
                Some(done) => return done,
                None => thread::yield_now(),
            }
        }
    }

    /// Copies what `begin_copy` asks for into `slot`; `None` if it asks for nothing.
    fn copy(&self, chunk: ChunkIndex, slot: &mut Cells) -> Option<CopyEnd> {
        let taken = self.gate.begin_copy(chunk)?;
        self.read(chunk, taken, slot);
        Some(self.gate.end_copy(chunk, true, taken))
    }

    /// Begins a copy as soon as those have left that are on their way to being parked.
    fn begin(&self, chunk: ChunkIndex) -> BlockMap {
        loop {
            match self.gate.begin_copy(chunk) {
                Some(taken) => return taken,
                None => thread::yield_now(),
            }
        }
    }

    fn read(&self, chunk: ChunkIndex, blocks: BlockMap, slot: &mut Cells) {
        for (cell, (slot, master)) in
            slot.iter_mut().zip(&self.master[chunk.as_usize()]).enumerate()
        {
            if blocks.0 >> (cell * 4) & 0xf != 0 {
                *slot = master.load(Relaxed);
            }
        }
    }

    /// The engine after a cut: walks, waits for what drains, adopts, preserves. `slots` end as
    /// what the snapshot contains. Chunks that were not required are left alone.
    fn complete(&self, cut: &CutPoint, slots: &mut [Cells]) -> Vec<ChunkState> {
        let mut found = Vec::new();
        let mut walk = self.gate.dirty_walk(cut.old_epoch);
        while !self.gate.take_dirty(&mut walk, 1, |chunk| found.push(chunk)) {}
        found
            .into_iter()
            .map(|chunk| self.settle(chunk, cut, &mut slots[chunk.as_usize()]))
            .collect()
    }

    fn settle(&self, chunk: ChunkIndex, cut: &CutPoint, slot: &mut Cells) -> ChunkState {
        loop {
            match self.gate.classify(chunk, cut.old_epoch) {
                ChunkState::Draining => thread::yield_now(),
                ChunkState::Adoptable => {
                    if self.gate.try_adopt(chunk) {
                        return ChunkState::Adoptable;
                    }
                }
                ChunkState::Pending { missing } => match self.copy(chunk, slot) {
                    Some(end) => {
                        assert_eq!(end, CopyEnd::Valid, "nobody may write a pending chunk");
                        assert!(self.gate.resolve(chunk), "the copy was made while pending");
                        return ChunkState::Pending { missing };
                    }
                    None => panic!("classified as pending, so it is drained"),
                },
                ChunkState::Staging => panic!("no copy is running"),
                end => return end,
            }
        }
    }
}

/// What a command that entered was told.
struct Done {
    operation: OperationNumber,
    epoch: Epoch,
}

impl Done {
    /// Whether the snapshot contains the command; number and epoch must agree.
    fn is_in(&self, cut: &CutPoint) -> bool {
        let by_epoch = self.epoch <= cut.old_epoch;
        assert_eq!(by_epoch, self.operation < cut.operation, "numbers and cut have one order");
        by_epoch
    }
}

fn range(chunk: u64, cell: u64, count: u64) -> LbaRange {
    LbaRange::new(chunk * CHUNK_LBAS + cell, count)
}

/// Runs `test` in every history with at most so many preemptions; `GATE_PREEMPTIONS` overrides it.
fn check(preemptions_default: usize, test: impl Fn() + Sync + Send + 'static) {
    let preemptions = std::env::var("GATE_PREEMPTIONS").ok().and_then(|n| n.parse().ok());
    let preemptions = preemptions.unwrap_or(preemptions_default);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 20_000;
    let counted = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = counted.clone();
    model.check(move || {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        test();
    });
    println!("{} histories", counted.load(std::sync::atomic::Ordering::Relaxed));
}

type Writer = thread::JoinHandle<Option<Done>>;

/// A thread for each write `(first cell, cells)` of ones to chunk 0; parked writes are not made.
fn spawn_writers(world: &Arc<World>, writes: &'static [(u64, u64)]) -> Vec<Writer> {
    let spawn = |&(cell, count): &(u64, u64)| {
        let world = world.clone();
        thread::spawn(move || world.try_write(range(0, cell, count), 1))
    };
    writes.iter().map(spawn).collect()
}

fn join(writers: Vec<Writer>) -> Vec<Option<Done>> {
    writers.into_iter().map(|writer| writer.join().unwrap()).collect()
}

/// What a snapshot of zeroes and `writes` must contain, and whether a write was newer.
fn expected(done: Vec<Option<Done>>, writes: &[(u64, u64)], cut: &CutPoint) -> (Cells, bool) {
    let (mut cells, mut newer) = ([0; CELLS], false);
    for (done, &(first, count)) in done.iter().zip(writes) {
        match done {
            Some(done) if done.is_in(cut) => {
                cells[first as usize..(first + count) as usize].fill(1);
            }
            Some(_) => newer = true,
            None => {}
        }
    }
    (cells, newer)
}

/// I2. Writers on different blocks of a chunk while it is staged, cut and completed. However the
/// copy overlapped them, the snapshot has exactly the writes of the old side.
///
/// Catches: no bits on leaving; bits after the count; bits only by a first look (no
/// compare-and-swap); adoption with commands in flight; the map taken before STAGING is set.
fn a_staged_copy_is_never_stale(preemptions: usize, writes: &'static [(u64, u64)]) {
    check(preemptions, move || {
        let world = World::new(1, Initial::AllDirty);
        let writers = spawn_writers(&world, writes);
        let mut slots = [[0; CELLS]];
        let _ = world.copy(C0, &mut slots[0]).expect("dirty and not pending");
        let cut = world.gate.cut().unwrap();
        let _ = world.settle(C0, &cut, &mut slots[0]);
        assert_eq!(slots[0], expected(join(writers), writes, &cut).0);
    });
}

#[test]
fn a_staged_copy_is_never_stale_one_writer() {
    a_staged_copy_is_never_stale(3, &[(0, 2)]);
}

#[test]
fn a_staged_copy_is_never_stale_two_writers() {
    a_staged_copy_is_never_stale(1, &[(0, 1), (1, 1)]);
}

/// I2. As above, one writer and a refresh in between: bits that a refresh takes are not lost.
///
/// Catches: no bits on leaving; a refresh that takes the map after reading.
#[test]
fn a_refresh_loses_no_block() {
    check(2, || {
        let world = World::new(1, Initial::AllDirty);
        let writer = {
            let world = world.clone();
            thread::spawn(move || {
                let first = world.try_write(range(0, 0, 2), 1);
                (first, world.try_write(range(0, 1, 1), 2))
            })
        };
        let mut slots = [[0; CELLS]];
        for _ in 0..2 {
            let _ = world.copy(C0, &mut slots[0]).expect("dirty and not pending");
        }
        let cut = world.gate.cut().unwrap();
        let _ = world.settle(C0, &cut, &mut slots[0]);
        let (first, second) = writer.join().unwrap();
        let mut expected = [0; CELLS];
        if first.is_some_and(|done| done.is_in(&cut)) {
            expected = [1, 1];
        }
        if second.is_some_and(|done| done.is_in(&cut)) {
            expected[1] = 2;
        }
        assert_eq!(slots[0], expected);
    });
}

/// I1, I3. A command over two chunks against cut and preservation; then a newer one. The snapshot
/// has the command in both chunks or in neither, as its number says, and nothing newer.
///
/// Catches: no check of the epoch when drawing the number; that draw not releasing; preserving
/// without waiting for the commands in flight; pending chunks not parking; dropping counts when
/// resolving.
#[test]
fn a_command_is_on_one_side_of_the_cut() {
    check(3, || {
        let world = World::new(2, Initial::AllDirty);
        let writer = {
            let world = world.clone();
            thread::spawn(move || {
                let first = world.write(range(0, 1, CHUNK_LBAS), 1);
                (first, world.write(range(1, 0, 1), 2))
            })
        };
        let mut slots = [[0; CELLS]; 2];
        let cut = world.gate.cut().unwrap();
        assert_eq!(world.complete(&cut, &mut slots).len(), 2);
        world.gate.finish_cut();
        let (first, second) = writer.join().unwrap();
        let in_both = u64::from(first.is_in(&cut));
        let last = if second.is_in(&cut) { 2 } else { in_both };
        assert_eq!(slots, [[0, in_both], [last, 0]]);
        for chunk in [0, 1].map(ChunkIndex) {
            assert_eq!(world.gate.in_flight(chunk), 0);
        }
        world.gate.self_check().unwrap();
    });
}

/// I1. Two writers on one clean chunk: whichever makes it dirty, the walk finds it when one of
/// them is on the old side.
///
/// Catches: the index bit set after the word.
#[test]
fn the_walk_finds_what_was_modified() {
    check(2, || {
        let writes = &[(0, 1), (1, 1)];
        let world = World::new(1, Initial::Clean);
        let writers = spawn_writers(&world, writes);
        let mut slots = [[0; CELLS]];
        let cut = world.gate.cut().unwrap();
        world.complete(&cut, &mut slots);
        // Not required: the snapshot reads older ones, that is zeroes.
        assert_eq!(slots[0], expected(join(writers), writes, &cut).0);
    });
}

/// I1. A reader of the snapshot against preservation and a newer write: it gets the snapshot's
/// data from the master or finds the slot.
///
/// Catches: no check after the read; a check that does not order the data before it; pending
/// chunks not parking.
#[test]
fn a_snapshot_reader_sees_no_newer_data() {
    check(3, || {
        let world = World::new(1, Initial::AllDirty);
        world.store(range(0, 0, 2), 7);
        let cut = world.gate.cut().unwrap();
        let slot = Arc::new(AtomicU64::new(0));
        let writer = {
            let world = world.clone();
            thread::spawn(move || world.write(range(0, 0, 2), 9))
        };
        let reader = {
            let (world, slot) = (world.clone(), slot.clone());
            thread::spawn(move || {
                let data = match world.gate.read_source(C0, cut.old_epoch) {
                    ReadSource::Master => {
                        let data = world.master[0][1].load(Relaxed);
                        world.gate.still_pending(C0, cut.old_epoch).then_some(data)
                    }
                    ReadSource::Adopted | ReadSource::NotPending => None,
                    // A newer writer on its way to being parked counts for a moment.
                    ReadSource::Draining => return,
                };
                assert_eq!(data.unwrap_or_else(|| slot.load(Acquire)), 7);
            })
        };
        let mut copy = [0; CELLS];
        let taken = world.begin(C0);
        world.read(C0, taken, &mut copy);
        slot.store(copy[1], Release);
        assert_eq!(world.gate.end_copy(C0, true, taken), CopyEnd::Valid);
        assert!(world.gate.resolve(C0));
        assert!(!writer.join().unwrap().is_in(&cut));
        reader.join().unwrap();
        assert_eq!(copy, [7, 7]);
    });
}

/// I1. A reader against a command that is in flight at the cut: it waits, or reads all of it.
///
/// Catches: reading the master while the cut's commands are in flight.
#[test]
fn a_snapshot_reader_waits_for_the_commands_in_flight() {
    check(3, || {
        let world = World::new(1, Initial::AllDirty);
        let writer = {
            let world = world.clone();
            thread::spawn(move || world.try_write(range(0, 0, 2), 9))
        };
        let cut = world.gate.cut().unwrap();
        let mut data = [0; CELLS];
        let source = world.gate.read_source(C0, cut.old_epoch);
        if source == ReadSource::Master {
            world.read(C0, BlockMap::ALL, &mut data);
            assert!(world.gate.still_pending(C0, cut.old_epoch));
        }
        let done = writer.join().unwrap();
        let expected = if done.is_some_and(|done| done.is_in(&cut)) { 9 } else { 0 };
        assert!(source != ReadSource::Master || data == [expected; CELLS]);
    });
}

/// A valid staged copy at the cut: the walk and writers (each on either side) race for its
/// adoption. It is adopted once, the snapshot is right, and the next walk finds newer writes.
///
/// Catches: adoption on the way in with commands in flight, or with mapped blocks; no index bit
/// on adoption.
fn adoption_on_the_way_in(preemptions: usize, writes: &'static [(u64, u64)]) {
    check(preemptions, move || {
        let world = World::new(1, Initial::AllDirty);
        let mut slots = [[0; CELLS]];
        assert_eq!(world.copy(C0, &mut slots[0]), Some(CopyEnd::Valid));
        let writers = spawn_writers(&world, writes);
        let cut = world.gate.cut().unwrap();
        let states = world.complete(&cut, &mut slots);
        assert_eq!(states.len(), 1);
        let (cells, newer) = expected(join(writers), writes, &cut);
        assert_eq!(slots[0], cells);
        match states[0] {
            ChunkState::Adopted => assert!(newer),
            // By the engine, or by a writer that was quicker.
            ChunkState::Adoptable => assert_eq!(slots[0], [0, 0]),
            ChunkState::Pending { missing } => assert!(missing.count() < 64, "it was staged"),
            other => panic!("{other:?}"),
        }
        world.gate.finish_cut();
        world.gate.self_check().unwrap();
        assert!(!newer || world.gate.is_dirty(C0));
    });
}

#[test]
fn adoption_on_the_way_in_one_writer() {
    adoption_on_the_way_in(3, &[(0, 2)]);
}

#[test]
fn adoption_on_the_way_in_two_writers() {
    adoption_on_the_way_in(1, &[(0, 1), (1, 1)]);
}

/// I2. A valid staged copy and a command in flight at the cut: a newer writer does not adopt what
/// the command is about to outdate.
///
/// Catches: adoption on the way in with commands in flight.
#[test]
fn adoption_on_the_way_in_waits_for_the_commands_in_flight() {
    check(2, || {
        let world = World::new(1, Initial::AllDirty);
        let mut slots = [[0; CELLS]];
        assert_eq!(world.copy(C0, &mut slots[0]), Some(CopyEnd::Valid));
        let older = range(0, 0, 1);
        assert!(matches!(world.gate.enter(older), Entry::Entered { .. }));
        let cut = world.gate.cut().unwrap();
        let newer = spawn_writers(&world, &[(1, 1)]);
        let device = {
            let world = world.clone();
            thread::spawn(move || {
                world.store(older, 1);
                world.gate.leave(older);
            })
        };
        world.complete(&cut, &mut slots);
        device.join().unwrap();
        join(newer);
        assert_eq!(slots[0], [1, 0]);
    });
}

/// I8. A writer sleeps through a cut and dirties a clean chunk in the old epoch, in vain, after the
/// walk; the engine stages the chunk. The next walk finds it, so that the slot's adoption is noted.
///
/// Catches: no index bit when an older dirty chunk is staged.
#[test]
fn what_is_staged_is_walked() {
    check(2, || {
        let world = World::new(1, Initial::Clean);
        let writer = spawn_writers(&world, &[(0, 1)]);
        thread::yield_now();
        let mut slots = [[0; CELLS]];
        let first = world.gate.cut().unwrap();
        world.complete(&first, &mut slots);
        world.gate.finish_cut();
        thread::yield_now();
        let staged = world.copy(C0, &mut slots[0]).is_some();
        let second = world.gate.cut().unwrap();
        let found = world.complete(&second, &mut slots);
        assert!(!staged || found.len() == 1);
        join(writer);
    });
}

/// A refresh of a pending chunk that fails, against a newer writer: the half-written slot is never
/// adopted.
///
/// Found: a writer looks at the word, the engine takes the map, the writer finds it empty, the
/// refresh fails and gives the map back, and the writer's compare-and-swap finds the word it knew.
/// Since then a failed refresh of a pending chunk drops the slot.
///
/// Catches: a failed refresh that leaves the slot staged.
#[test]
fn a_failed_refresh_is_never_adopted() {
    check(3, || {
        let world = World::new(1, Initial::AllDirty);
        let mut slots = [[0; CELLS]];
        assert_eq!(world.copy(C0, &mut slots[0]), Some(CopyEnd::Valid));
        let _ = world.write(range(0, 0, 1), 1);
        let cut = world.gate.cut().unwrap();
        let writer = {
            let world = world.clone();
            thread::spawn(move || world.write(range(0, 1, 1), 2))
        };
        let taken = world.begin(C0);
        slots[0][0] = 99; // Torn on its way into the slot.
        assert_eq!(world.gate.end_copy(C0, false, taken), CopyEnd::Lost);
        world.complete(&cut, &mut slots);
        assert!(!writer.join().unwrap().is_in(&cut));
        assert_eq!(slots[0], [1, 0]);
    });
}

/// A writer sleeps from before a snapshot is given up until the next one has preserved the chunk,
/// and would adopt it for the first: `settle` demands that the preserved chunk can be handed over.
///
/// Catches: a drained chunk that stays in its older epoch.
#[test]
fn a_late_adoption_does_not_undo_a_preservation() {
    check(2, || {
        let world = World::new(1, Initial::AllDirty);
        let first = world.gate.cut().unwrap();
        let writer = spawn_writers(&world, &[(0, 1)]);
        thread::yield_now();
        world.gate.finish_cut();
        let mut walk = world.gate.dirty_walk(first.old_epoch);
        while !world.gate.carry_over(&mut walk, 1) {}
        let mut slots = [[0; CELLS]];
        let second = world.gate.cut().unwrap();
        world.complete(&second, &mut slots);
        let (cells, _) = expected(join(writer), &[(0, 1)], &second);
        assert_eq!(slots[0], cells);
    });
}

/// I2, I8. A writer sleeps from before a snapshot is given up, about to adopt a copy for it. The engine
/// then looks at each copy that was not adopted and keeps it or frees its slot: what it saw must stay so.
///
/// Catches: a chunk that is dirty again after a give-up and stays in its older epoch.
#[test]
fn a_sleeper_adopts_nothing_once_its_snapshot_is_cleared_away() {
    check(3, || {
        let world = World::new(1, Initial::AllDirty);
        let mut slots = [[0; CELLS]];
        assert_eq!(world.copy(C0, &mut slots[0]), Some(CopyEnd::Valid));
        let first = world.gate.cut().unwrap();
        let writer = spawn_writers(&world, &[(0, 1)]);
        thread::yield_now();
        world.gate.finish_cut();
        assert!(world.gate.mark_dirty(C0));
        let kept = world.gate.view(C0).staged;
        let mut walk = world.gate.dirty_walk(first.old_epoch);
        while !world.gate.carry_over(&mut walk, 1) {}
        assert_eq!(world.gate.view(C0).staged, kept, "the engine has not changed it");
        let second = world.gate.cut().unwrap();
        world.complete(&second, &mut slots);
        let (cells, _) = expected(join(writer), &[(0, 1)], &second);
        assert_eq!(slots[0], cells);
    });
}

/// I6. A snapshot is given up in the middle of a preservation while a writer is at the chunk; the
/// next snapshot has all of it.
///
/// Catches: not carrying the index over; a writer that, let in, does not map its blocks for the
/// copy that is still running; writers parked for ever.
#[test]
fn a_given_up_snapshot_lets_writers_in() {
    check(2, || {
        let world = World::new(1, Initial::AllDirty);
        let writer = {
            let world = world.clone();
            thread::spawn(move || world.write(range(0, 0, 2), 1))
        };
        let mut slots = [[0; CELLS]];
        let first = world.gate.cut().unwrap();
        let copy = world.gate.begin_copy(C0);
        world.gate.finish_cut();
        let mut walk = world.gate.dirty_walk(first.old_epoch);
        while !world.gate.carry_over(&mut walk, 1) {}
        if let Some(taken) = copy {
            world.read(C0, taken, &mut slots[0]);
            let _ = world.gate.end_copy(C0, true, taken);
        }
        let second = world.gate.cut().unwrap();
        assert_eq!(world.complete(&second, &mut slots).len(), 1);
        world.gate.finish_cut();
        let done = writer.join().unwrap();
        assert_eq!(slots[0], [u64::from(done.is_in(&second)); CELLS]);
        world.gate.self_check().unwrap();
    });
}

// ---- lanes --------------------------------------------------------------------------------------

/// Chunks that are all dirty and open, and a writer on a lane of its own.
fn with_passing_writer<T: 'static>(
    chunks: usize,
    writer: impl FnOnce(&World, &Lane) -> T + 'static,
) -> (Arc<World>, thread::JoinHandle<T>) {
    let world = World::new(chunks, Initial::AllDirty);
    world.gate.open_all();
    let (lane, its_world) = (world.gate.lane(), world.clone());
    let writer = thread::spawn(move || writer(&its_world, &lane));
    (world, writer)
}

fn contains(cut: &CutPoint, passage: Option<Passage>) -> bool {
    passage.is_some_and(|passage| cut.contains(passage))
}

/// I2. Writes that pass an open chunk while it is closed, staged, cut and completed.
///
/// Catches: a copy that begins without waiting; no look at the turn; either barrier missing; no
/// bits on leaving.
#[test]
fn lanes_a_copy_waits_for_those_that_passed() {
    check(3, || {
        let (world, writer) = with_passing_writer(1, |world, lane| {
            let first = world.try_pass(lane, range(0, 0, 2), 1);
            (first, world.try_pass(lane, range(0, 1, 1), 2))
        });
        let mut slots = [[0; CELLS]];
        world.gate.close(C0);
        let taken = world.begin(C0);
        world.read(C0, taken, &mut slots[0]);
        let _ = world.gate.end_copy(C0, true, taken);
        let cut = world.gate.cut().unwrap();
        let _ = world.settle(C0, &cut, &mut slots[0]);
        let (first, second) = writer.join().unwrap();
        let first = u64::from(contains(&cut, first));
        let last = if contains(&cut, second) { 2 } else { first };
        assert_eq!(slots[0], [first, last]);
    });
}

/// I1, I3. A command past two open chunks against cut and preservation; then a newer one.
///
/// Catches: no look at the turn; either barrier missing; chunks that were open count as drained at
/// once; open chunks that stay open in the new epoch.
#[test]
fn lanes_a_command_is_on_one_side_of_the_cut() {
    check(3, || {
        let (world, writer) = with_passing_writer(2, |world, lane| {
            let first = world.try_pass(lane, range(0, 1, CHUNK_LBAS), 1);
            (first, world.try_pass(lane, range(1, 0, 1), 2))
        });
        let mut slots = [[0; CELLS]; 2];
        let cut = world.gate.cut().unwrap();
        assert_eq!(world.complete(&cut, &mut slots).len(), 2);
        world.gate.finish_cut();
        let (first, second) = writer.join().unwrap();
        let in_both = u64::from(contains(&cut, first));
        let last = if contains(&cut, second) { 2 } else { in_both };
        assert_eq!(slots, [[0, in_both], [last, 0]]);
        world.gate.self_check().unwrap();
    });
}

/// I1. A command that is counted and one that passes, one after the other: the snapshot does not
/// have the later one without the earlier.
///
/// Catches: a cut that moves the clock before it ends the turn.
#[test]
fn lanes_the_order_of_commands_is_the_snapshots() {
    check(3, || {
        let world = World::new(2, Initial::Clean);
        assert!(world.gate.mark_dirty(C0));
        world.gate.open_some(&mut world.gate.open_walk(), 1, 1, |_| false);
        assert!(world.gate.is_open(C0));
        let (lane, its_world) = (world.gate.lane(), world.clone());
        let writer = thread::spawn(move || {
            let counted = its_world.try_pass(&lane, range(1, 0, 1), 1);
            (counted, its_world.try_pass(&lane, range(0, 0, 1), 1))
        });
        let cut = world.gate.cut().unwrap();
        let (earlier, later) = writer.join().unwrap();
        // Parked, if it had dirtied the chunk on the old side and backed out: then it was not made.
        let Some(earlier) = earlier else { return };
        assert!(matches!(earlier, Passage::Counted(_)), "chunk 1 was closed");
        assert!(cut.contains(earlier) || !contains(&cut, later));
    });
}

/// I1. A reader against a command that passed before the cut: it waits, or reads all of it.
///
/// Catches: reading the master while those that passed are in flight.
#[test]
fn lanes_a_snapshot_reader_waits_for_those_that_passed() {
    check(3, || {
        let (world, writer) =
            with_passing_writer(1, |world, lane| world.try_pass(lane, range(0, 0, 2), 9));
        let cut = world.gate.cut().unwrap();
        let mut data = [0; CELLS];
        let source = world.gate.read_source(C0, cut.old_epoch);
        if source == ReadSource::Master {
            world.read(C0, BlockMap::ALL, &mut data);
            assert!(world.gate.still_pending(C0, cut.old_epoch));
        }
        let passage = writer.join().unwrap();
        let expected = if contains(&cut, passage) { 9 } else { 0 };
        assert!(source != ReadSource::Master || data == [expected; CELLS]);
    });
}

/// I2, I6. A snapshot is given up while a command that passed is in flight; the chunk is staged for
/// the next one.
///
/// Catches: staging that waits for closed chunks only, not for the turns of given-up cuts.
#[test]
fn lanes_what_a_given_up_snapshot_left_in_flight_is_waited_for() {
    check(2, || {
        let (world, writer) =
            with_passing_writer(1, |world, lane| world.try_pass(lane, range(0, 0, 2), 1));
        let first = world.gate.cut().unwrap();
        world.gate.finish_cut();
        let mut walk = world.gate.dirty_walk(first.old_epoch);
        while !world.gate.carry_over(&mut walk, 1) {}
        let mut slots = [[0; CELLS]];
        let taken = world.begin(C0);
        world.read(C0, taken, &mut slots[0]);
        let _ = world.gate.end_copy(C0, true, taken);
        let second = world.gate.cut().unwrap();
        let _ = world.settle(C0, &second, &mut slots[0]);
        let passage = writer.join().unwrap();
        assert_eq!(slots[0], [u64::from(contains(&second, passage)); CELLS]);
    });
}
