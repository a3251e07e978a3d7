//! Engine and gate with real threads: writers enter from their own, the engine takes snapshots on
//! another, and each snapshot is compared with what the writers' logs say it must contain. The
//! simulator has one thread, so it cannot show a writer that comes by between two steps of the
//! engine.
#![cfg(not(loom))]

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use presnap::engine::events::{Copied, CopyJob, Effect, Event, Micros};
use presnap::engine::records::{
    CatalogReply, ChunkCounts, SlotRef, SnapshotRecord, SnapshotSeq, SnapshotState, VolumeId,
};
use presnap::engine::{Engine, PolicyKind, Settings};
use presnap::gate::{ChunkIndex, Entry, Gate, Geometry, Initial, LbaRange, OperationNumber};
use presnap::store::SlotAllocator;
use uuid::Uuid;

const CHUNKS: u64 = 24;
/// 64 KiB chunks of 4 KiB device blocks.
const CHUNK_LBAS: u64 = 16;
const LBAS: u64 = CHUNKS * CHUNK_LBAS;
const WRITERS: u64 = 3;
const SNAPSHOTS: u32 = 40;
const SLOTS: u32 = SNAPSHOTS * CHUNKS as u32;
/// Commands between two snapshots.
const COMMANDS_BETWEEN: u64 = 200;
const COPY_TIME: Duration = Duration::from_micros(20);
/// No writer waits so long unless it is forgotten.
const FORGOTTEN: Duration = Duration::from_mins(1);

struct Shared {
    gate: Arc<Gate>,
    /// Operation number of the last write to each device block.
    master: Vec<AtomicU64>,
    /// What each writer has written, oldest first. Every device block has one writer.
    logs: Vec<Mutex<VecDeque<(u64, LbaRange)>>>,
    over: AtomicBool,
    /// Writers begin no command before the next cut.
    resting: AtomicBool,
    /// Commands so far.
    commands: AtomicU64,
}

fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn is_of(writer: u64, lba: u64) -> bool {
    lba % WRITERS == writer
}

fn write_on(shared: &Shared, writer: u64, parked: &Sender<(ChunkIndex, Sender<()>)>) {
    let mut random = writer + 1;
    while !shared.over.load(Ordering::Relaxed) {
        if shared.resting.load(Ordering::Relaxed) {
            std::thread::yield_now();
            continue;
        }
        let hot = !next_random(&mut random).is_multiple_of(4);
        let lba = next_random(&mut random) % if hot { 5 * CHUNK_LBAS } else { LBAS };
        let count = 1 + next_random(&mut random) % (2 * CHUNK_LBAS);
        let range = LbaRange::new(lba, count.min(LBAS - lba));
        let operation = loop {
            match shared.gate.enter(range) {
                Entry::Entered { operation, .. } => break operation.0,
                Entry::Parked { chunk } => {
                    let (sender, receiver) = channel();
                    parked.send((chunk, sender)).expect("the engine outlives its writers");
                    if writer == 0 {
                        // It tries again and again, to come by at the worst of moments.
                        while matches!(shared.gate.enter(range), Entry::Parked { .. }) {
                            std::hint::spin_loop();
                        }
                        shared.gate.leave(range);
                    } else {
                        receiver.recv_timeout(FORGOTTEN).expect("a parked writer is woken");
                    }
                }
                Entry::Saturated { .. } => unreachable!("there are three writers"),
            }
        };
        for lba in (range.lba..range.lba + range.count).filter(|lba| is_of(writer, *lba)) {
            shared.master[lba as usize].store(operation, Ordering::Relaxed);
        }
        shared.logs[writer as usize]
            .lock()
            .expect("nobody panics with it")
            .push_back((operation, range));
        shared.gate.leave(range);
        shared.commands.fetch_add(1, Ordering::Relaxed);
    }
}

/// The engine's thread.
struct Target {
    shared: Arc<Shared>,
    engine: Engine,
    slots: SlotAllocator,
    data: Vec<u64>,
    /// The view of the newest complete snapshot, and of the one under way.
    view: HashMap<ChunkIndex, SlotRef>,
    view_under_way: HashMap<ChunkIndex, SlotRef>,
    waiting: HashMap<ChunkIndex, Vec<Sender<()>>>,
    parked: Receiver<(ChunkIndex, Sender<()>)>,
    replies: VecDeque<Event>,
    begun: Instant,
    ended: Option<SnapshotRecord>,
    /// Last operation on each device block that the newest checked snapshot contains.
    expected: Vec<u64>,
}

impl Target {
    fn apply(&mut self, event: Event) {
        let now = Micros(self.begun.elapsed().as_micros() as u64);
        self.engine.apply(now, event, &mut self.slots);
        while let Some(effect) = self.engine.next_effect() {
            match effect {
                Effect::Catalog { step, .. } => {
                    let result = Ok(CatalogReply::Done);
                    self.replies.push_back(Event::CatalogDone { step, result });
                }
                Effect::Copy(job) => {
                    let result = Ok(self.copy(&job));
                    self.replies.push_back(Event::CopyDone { job: job.id, result });
                }
                Effect::FlushStore => self.replies.push_back(Event::FlushDone(Ok(()))),
                Effect::Row(chunk, slot_ref) => {
                    self.view_under_way.insert(chunk, slot_ref);
                }
                Effect::Wake(chunk) => wake(self.waiting.remove(&chunk)),
                Effect::WakeAll => self.waiting.drain().for_each(|(_, all)| wake(Some(all))),
                Effect::Consistent(_) => {
                    self.view_under_way = self.view.clone();
                    self.shared.resting.store(false, Ordering::Relaxed);
                }
                Effect::Ended(record, _) => self.ended = Some(record),
                Effect::Threshold(_) => {}
                Effect::Stopped(_) => unreachable!("nobody stops it"),
            }
        }
    }

    fn copy(&mut self, job: &CopyJob) -> Copied {
        let geometry = self.shared.gate.geometry();
        let first = geometry.chunk_range(job.chunk).lba;
        for run in job.blocks.runs() {
            let range = geometry.run_range(job.chunk, run).expect("chunks are whole");
            for lba in range.lba..range.lba + range.count {
                let tag = self.shared.master[lba as usize].load(Ordering::Relaxed);
                let place = u64::from(job.slot.0) * CHUNK_LBAS + lba - first;
                self.data[place as usize] = tag;
            }
        }
        Copied::Written { block_crcs: Box::new([1; 64]) }
    }

    /// One turn: who is parked, what is done, time.
    fn turn(&mut self) {
        while let Ok((chunk, sender)) = self.parked.try_recv() {
            self.waiting.entry(chunk).or_default().push(sender);
            let since = Micros(self.begun.elapsed().as_micros() as u64);
            self.apply(Event::Parked { chunk, since });
        }
        match self.replies.pop_front() {
            Some(reply) => {
                // Copies take a while, so that writers come and park in the meantime.
                let begun = Instant::now();
                while matches!(reply, Event::CopyDone { .. }) && begun.elapsed() < COPY_TIME {
                    std::hint::spin_loop();
                }
                self.apply(reply);
            }
            None => self.apply(Event::Tick),
        }
        for chunk in 0..5 {
            self.engine.observe_write(ChunkIndex(chunk), Micros(0));
        }
    }

    /// Lets the writers rest until the next cut, and waits until a copy is staged, which that cut
    /// then adopts: writers that run on may leave no chunk alone for as long as a copy takes.
    fn let_something_be_staged(&mut self) {
        self.shared.resting.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        while !self.engine.staged_chunks().any(|staged| staged.block_map.is_empty()) {
            assert!(begun.elapsed() < FORGOTTEN, "nothing is staged though writers rest");
            self.turn();
        }
    }

    /// Takes a snapshot and compares it; `abort_after` turns it is given up.
    fn snapshot(&mut self, seq: u32, abort_after: Option<u32>) -> SnapshotRecord {
        self.apply(Event::Create(record(seq)));
        let mut turns = 0;
        let record = loop {
            self.turn();
            turns += 1;
            if Some(turns) == abort_after {
                self.apply(Event::Abort("enough".into()));
            }
            if let Some(record) = self.ended.take() {
                break record;
            }
        };
        self.shared.resting.store(false, Ordering::Relaxed); // one given up may have had no cut
        if record.state == SnapshotState::Complete {
            self.view = std::mem::take(&mut self.view_under_way);
            self.compare(&record);
        }
        record
    }

    fn compare(&mut self, record: &SnapshotRecord) {
        let cut = record.operation_number.0;
        for writer in 0..WRITERS {
            let mut log = self.shared.logs[writer as usize].lock().expect("nobody panics with it");
            while let Some((operation, range)) = log.pop_front_if(|(number, _)| *number < cut) {
                for lba in (range.lba..range.lba + range.count).filter(|l| is_of(writer, *l)) {
                    self.expected[lba as usize] = operation;
                }
            }
        }
        for lba in 0..LBAS {
            let chunk = ChunkIndex((lba / CHUNK_LBAS) as u32);
            let place = self.view.get(&chunk).and_then(|slot_ref| slot_ref.slot());
            let slot = place.expect("the first snapshot had all chunks");
            let found = self.data[(u64::from(slot.0) * CHUNK_LBAS + lba % CHUNK_LBAS) as usize];
            let right = self.expected[lba as usize];
            assert_eq!(found, right, "block {lba} of {record:?}");
        }
    }
}

fn wake(waiting: Option<Vec<Sender<()>>>) {
    for sender in waiting.into_iter().flatten() {
        let _ = sender.send(()); // the impatient one has gone on
    }
}

fn record(seq: u32) -> SnapshotRecord {
    let uuid = Uuid::from_u128(u128::from(seq));
    SnapshotRecord::asked_for(VolumeId(1), SnapshotSeq(seq), format!("s{seq}"), uuid, 0)
}

#[test]
fn snapshots_under_real_writers_are_what_the_writers_say() {
    let geometry = Geometry::new(64 << 10, 4096, LBAS).unwrap();
    let gate = Arc::new(Gate::new(geometry, Initial::AllDirty, OperationNumber(1)).unwrap());
    let shared = Arc::new(Shared {
        gate: gate.clone(),
        master: (0..LBAS).map(|_| AtomicU64::new(0)).collect(),
        logs: (0..WRITERS).map(|_| Mutex::default()).collect(),
        over: AtomicBool::new(false),
        resting: AtomicBool::new(false),
        commands: AtomicU64::new(0),
    });
    let settings = Settings { policy: PolicyKind::Idle { rest_us: 0 }, ..Settings::default() };
    let (sender, parked) = channel();
    let mut target = Target {
        shared: shared.clone(),
        engine: Engine::new(gate, VolumeId(1), settings, false, Micros(0)),
        slots: SlotAllocator::new(SLOTS),
        data: vec![u64::MAX; (u64::from(SLOTS) * CHUNK_LBAS) as usize],
        view: HashMap::new(),
        view_under_way: HashMap::new(),
        waiting: HashMap::new(),
        parked,
        replies: VecDeque::new(),
        begun: Instant::now(),
        ended: None,
        expected: vec![0; LBAS as usize],
    };
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (shared, sender) = (shared.clone(), sender.clone());
            scope.spawn(move || write_on(&shared, writer, &sender));
        }
        let mut counts = ChunkCounts::default();
        let mut complete = 0;
        for seq in 1..=SNAPSHOTS {
            // Writers run ahead of each snapshot, whatever the machine's other work.
            let goal = shared.commands.load(Ordering::Relaxed) + COMMANDS_BETWEEN;
            while shared.commands.load(Ordering::Relaxed) < goal {
                target.turn();
            }
            if seq % 5 == 0 {
                target.let_something_be_staged();
            }
            let record = target.snapshot(seq, (seq % 7 == 0).then_some(seq % 30));
            if record.state == SnapshotState::Complete {
                complete += 1;
                counts.adopted += record.chunks.adopted;
                counts.preserved += record.chunks.preserved;
            }
        }
        shared.over.store(true, Ordering::Relaxed);
        for _ in 0..100_000 {
            target.turn();
            if Arc::strong_count(&shared) == 2 {
                break; // the writers have gone, parked ones too
            }
            std::thread::yield_now();
        }
        assert!(complete >= SNAPSHOTS * 6 / 7, "{complete} complete");
        assert!(counts.adopted >= 4, "staged copies were adopted: {counts:?}");
    });
}
