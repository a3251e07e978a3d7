//! The gate with real threads on real memory: writers of one, two and three chunks against an
//! engine that opens and closes chunks, stages, refreshes, fails copies, cuts, preserves, adopts and
//! gives up. What every complete snapshot contains is compared with the writers' own logs: each block
//! has the newest write before the cut, and no write is in a snapshot that lacks one acknowledged
//! before it. `GATE_SNAPSHOTS` makes it longer; `GATE_SEED` repeats the choices
//! (not the timing).
#![cfg(not(loom))]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use presnap::gate::{
    BlockMap, ChunkIndex, ChunkState, CopyEnd, CutPoint, CutRefused, Gate, Geometry, Initial, Lane,
    LbaRange, OpenWalk, OperationNumber, Passage,
};

/// Three index words.
const CHUNKS: u32 = 150;
const CHUNK_LBAS: usize = 16;
/// 64 KiB chunks of 4 KiB device blocks: four map blocks each.
const MAP_BLOCKS_PER_LBA: usize = 4;
/// Every writer has its own device blocks in each chunk, so that the order of overlapping commands
/// at the device does not matter. Its commands still cover the others' blocks for the gate.
const WRITERS: usize = 3;

/// One takes a millisecond when the cores are free; far more is a bug, not a load.
const SNAPSHOT_TIME_MAX: Duration = Duration::from_mins(1);

type Content = [u64; CHUNK_LBAS];

struct World {
    gate: Arc<Gate>,
    /// The command that wrote each device block last: its place in its writer's log, from 1.
    master: Vec<AtomicU64>,
    stop: AtomicBool,
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    /// Now and then lets others run, here of all places.
    fn pause(&mut self, one_in: u64) {
        if self.below(one_in) == 0 {
            thread::yield_now();
        }
    }

    /// Half of them among few, so that they meet.
    fn chunk(&mut self) -> u32 {
        let bound = if self.below(2) == 0 { 4 } else { CHUNKS };
        self.below(u64::from(bound)) as u32
    }
}

/// Writes until told to stop; the log has each command. Without a lane, commands are counted on their
/// chunks always.
fn writer(world: &World, own: usize, seed: u64, lane: &Lane) -> Vec<(Passage, LbaRange)> {
    let (mut random, mut log) = (Random(seed), Vec::new());
    while !world.stop.load(Ordering::Relaxed) {
        let lba = u64::from(random.chunk()) * CHUNK_LBAS as u64 + random.below(CHUNK_LBAS as u64);
        let count = 1 + if random.below(4) == 0 { random.below(40) } else { random.below(6) };
        let range = LbaRange::new(lba, count.min(world.gate.geometry().volume_lbas() - lba));
        match lane.enter(range) {
            Ok(passage) => {
                log.push((passage, range));
                for lba in range.lba..range.lba + range.count {
                    if lba as usize % WRITERS == own {
                        world.master[lba as usize].store(log.len() as u64, Ordering::Relaxed);
                        random.pause(32);
                    }
                }
                lane.leave(passage, range);
            }
            Err(_) => thread::yield_now(),
        }
    }
    log
}

/// The engine's part, with its table of staged slots.
struct Keeper<'a> {
    world: &'a World,
    random: Random,
    staged: Vec<Option<Content>>,
    image: Vec<Content>,
    open_walk: OpenWalk,
    done: Vec<(CutPoint, Vec<Content>)>,
    given_up: u32,
    adopted: [u32; 2],
    preserved: u32,
    /// Copies that had to wait for commands that passed while the chunk was open.
    not_quiet: u32,
}

impl Keeper<'_> {
    /// Copies to the staged slot, or a new one; one in ten fails if it may.
    fn copy(&mut self, chunk: ChunkIndex, may_fail: bool) -> Option<CopyEnd> {
        self.world.gate.close(chunk);
        let Some(taken) = self.world.gate.begin_copy(chunk) else {
            self.not_quiet += u32::from(self.world.gate.is_dirty(chunk));
            return None;
        };
        let slot = &mut self.staged[chunk.as_usize()];
        let content = slot.get_or_insert([u64::MAX; CHUNK_LBAS]);
        let ok = !may_fail || self.random.below(10) > 0;
        let first = chunk.as_usize() * CHUNK_LBAS;
        for (lba, content) in content.iter_mut().enumerate() {
            if taken.0 >> (lba * MAP_BLOCKS_PER_LBA) & 1 == 1 {
                let data = self.world.master[first + lba].load(Ordering::Relaxed);
                *content = if ok { data } else { u64::MAX };
                self.random.pause(64);
            }
        }
        let end = self.world.gate.end_copy(chunk, ok, taken);
        if end == CopyEnd::Lost {
            *slot = None;
        }
        Some(end)
    }

    fn take_slot(&mut self, chunk: ChunkIndex) {
        let slot = self.staged[chunk.as_usize()].take();
        self.image[chunk.as_usize()] = slot.expect("the gate says that there is a slot");
    }

    /// One look at a chunk that may be required; `true` when it is settled.
    fn settle(&mut self, chunk: ChunkIndex, cut: &CutPoint) -> bool {
        let gate = &self.world.gate;
        match gate.classify(chunk, cut.old_epoch) {
            ChunkState::NotRequired | ChunkState::Resolved => return true,
            // Seen again after it was settled, if the slot is gone.
            ChunkState::Adopted if self.staged[chunk.as_usize()].is_none() => return true,
            ChunkState::Adopted => {
                self.adopted[0] += 1;
                self.take_slot(chunk);
                return true;
            }
            ChunkState::Adoptable => {
                if gate.try_adopt(chunk) {
                    self.adopted[1] += 1;
                    self.take_slot(chunk);
                    return true;
                }
            }
            ChunkState::Pending { missing } => {
                assert_ne!(missing, BlockMap::EMPTY);
                let end = self.copy(chunk, true).expect("pending chunks can be copied");
                if end == CopyEnd::Valid {
                    assert!(gate.resolve(chunk), "a preserved chunk can be handed over");
                    self.preserved += 1;
                    self.take_slot(chunk);
                    return true;
                }
                assert_eq!(end, CopyEnd::Lost, "nobody writes a pending chunk");
            }
            ChunkState::Draining => thread::yield_now(),
            ChunkState::Staging => panic!("no copy is running"),
        }
        false
    }

    fn snapshot(&mut self) {
        let gate = &self.world.gate;
        let until = gate.next_operation().0 + 20 + self.random.below(300);
        while gate.next_operation().0 < until {
            thread::yield_now();
            gate.open_some(&mut self.open_walk, 2, 20, |_| false);
            for _ in 0..self.random.below(20) {
                let chunk = ChunkIndex(self.random.chunk());
                let _ = self.copy(chunk, true);
            }
        }
        let before = self.image.clone();
        gate.open_some(&mut self.open_walk, 3, 200, |_| false);
        thread::yield_now();
        // A writer that sleeps in the middle of a command holds up more than three cuts.
        let cut = loop {
            match gate.cut() {
                Err(CutRefused::Draining) => thread::yield_now(),
                cut => break cut.expect("the last snapshot is over"),
            }
        };
        let mut walk = gate.dirty_walk(cut.old_epoch);
        let (mut taken, mut waiting, mut over) = (Vec::new(), Vec::new(), false);
        thread::yield_now();
        let mut patience =
            if self.random.below(8) == 0 { self.random.below(100) } else { u64::MAX };
        let begun = Instant::now();
        while !over || !waiting.is_empty() {
            if patience == 0 {
                return self.give_up(&cut, taken, walk, over, before);
            }
            patience -= 1;
            if !over && (waiting.is_empty() || self.random.below(30) == 0) {
                over = gate.take_dirty(&mut walk, 1, |chunk| {
                    taken.push(chunk);
                    waiting.push(chunk);
                });
            }
            assert!(
                begun.elapsed() < SNAPSHOT_TIME_MAX,
                "snapshot {} hangs, walked: {over}, {} chunks left: {:?}",
                self.done.len(),
                waiting.len(),
                waiting.iter().map(|&chunk| (chunk, gate.view(chunk))).take(5).collect::<Vec<_>>()
            );
            if waiting.is_empty() {
                continue;
            }
            let which = self.random.below(waiting.len() as u64) as usize;
            if self.settle(waiting[which], &cut) {
                waiting.swap_remove(which);
            }
        }
        // A writer may be parked at a chunk that it dirtied in vain; it goes on after this.
        gate.finish_cut();
        self.done.push((cut, self.image.clone()));
    }

    fn give_up(
        &mut self,
        cut: &CutPoint,
        taken: Vec<ChunkIndex>,
        mut walk: presnap::gate::DirtyWalk,
        over: bool,
        before: Vec<Content>,
    ) {
        let gate = &self.world.gate;
        gate.finish_cut();
        while !over && !gate.carry_over(&mut walk, 1) {}
        for chunk in taken {
            assert!(gate.mark_dirty(chunk));
        }
        for chunk in (0..CHUNKS).map(ChunkIndex) {
            // What a writer adopted for this snapshot is nobody's now.
            let _ = gate.drop_staged(chunk);
            self.staged[chunk.as_usize()] = None;
        }
        assert!(gate.epoch() == cut.new_epoch);
        self.image = before;
        self.given_up += 1;
    }
}

/// Stops the writers also when the keeper panics.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[test]
fn every_snapshot_is_what_the_writers_logged() {
    let geometry = Geometry::new(64 << 10, 4096, u64::from(CHUNKS) * CHUNK_LBAS as u64)
        .expect("sizes are in bounds");
    let world = World {
        gate: Arc::new(Gate::new(geometry, Initial::Clean, OperationNumber(1)).expect("small")),
        master: (0..CHUNKS as usize * CHUNK_LBAS).map(|_| AtomicU64::new(0)).collect(),
        stop: AtomicBool::new(false),
    };
    let seed = number("GATE_SEED", 0x9e37_79b9_7f4a_7c15);
    let mut keeper = Keeper {
        world: &world,
        random: Random(seed),
        staged: vec![None; CHUNKS as usize],
        image: vec![[0; CHUNK_LBAS]; CHUNKS as usize],
        done: Vec::new(),
        given_up: 0,
        adopted: [0; 2],
        preserved: 0,
        open_walk: world.gate.open_walk(),
        not_quiet: 0,
    };
    let logs: Vec<_> = thread::scope(|scope| {
        let spawn = |own| {
            let world = &world;
            let lane = world.gate.lane();
            scope.spawn(move || writer(world, own, seed ^ (own as u64 + 1) << 32, &lane))
        };
        let writers: Vec<_> = (0..WRITERS).map(spawn).collect();
        let stop = StopAtEnd(&world.stop);
        for _ in 0..number("GATE_SNAPSHOTS", 300) {
            keeper.snapshot();
        }
        drop(stop);
        writers.into_iter().map(|writer| writer.join().expect("a writer panicked")).collect()
    });
    for chunk in (0..CHUNKS).map(ChunkIndex) {
        assert_eq!(world.gate.in_flight(chunk), 0);
    }
    // The newest write of each block before each cut, by going through the logs once.
    let mut wanted = vec![0; CHUNKS as usize * CHUNK_LBAS];
    let mut next = [0; WRITERS];
    for (cut, image) in &keeper.done {
        for (own, log) in logs.iter().enumerate() {
            while let Some((_, range)) =
                log.get(next[own]).filter(|(passage, _)| cut.contains(*passage))
            {
                for lba in (range.lba..range.lba + range.count).map(|lba| lba as usize) {
                    if lba % WRITERS == own {
                        wanted[lba] = next[own] as u64 + 1;
                    }
                }
                next[own] += 1;
            }
            let out_of_order = log[next[own]..].iter().find(|(passage, _)| cut.contains(*passage));
            assert_eq!(out_of_order, None, "acknowledged after one that {cut:?} lacks");
        }
        for (lba, &wanted) in wanted.iter().enumerate() {
            let found = image[lba / CHUNK_LBAS][lba % CHUNK_LBAS];
            assert_eq!(found, wanted, "device block {lba} at {cut:?}");
        }
    }
    let commands: usize = logs.iter().map(Vec::len).sum();
    let open = |(passage, _): &&(Passage, LbaRange)| matches!(passage, Passage::Open(_));
    let passed: usize = logs.iter().map(|log| log.iter().filter(open).count()).sum();
    assert!(passed > 0 && keeper.not_quiet > 0, "no command passed an open chunk");
    assert!(keeper.preserved > 0 && keeper.adopted[1] > 0, "the engine had nothing to do");
    println!(
        "{commands} commands, {passed} of them past open chunks, {} snapshots, {} given up, adopted \
         by writers and engine {:?}, preserved {}, copies that waited {}",
        keeper.done.len(),
        keeper.given_up,
        keeper.adopted,
        keeper.preserved,
        keeper.not_quiet
    );
}
