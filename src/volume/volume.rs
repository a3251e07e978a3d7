//! An attached volume on the app thread: drives its engine and carries out what that asks for.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::access::{AccessKind, Commands};
use super::copier::Copier;
use super::export;
use super::failure::{Failure, Sort};
use super::predictor::{self, Link, STALLED_US, Told};
use super::scoring::{ChunkForecast, Order, Scored};
use super::snapshots;
use super::stats::VolumeCounters;
use super::store_host::{Exclusive, KnownVolume, StoreHost};
use super::tuning::{StagingPolicy, Tuning};
use super::volume_bdev::{self, VolumeDevice};
use super::world::world;
use crate::engine::events::{CatalogStep, CopyJob, Effect, Event, Micros, ReadSource};
use crate::engine::records::{
    CatalogReply, CatalogRequest, SlotRef, SnapshotRecord, SnapshotSeq, SnapshotState, VolumeId,
};
use crate::engine::{Counters, Engine, PolicyKind, Shortage};
use crate::gate::{ChunkIndex, ChunkState, Epoch, LbaRange};
use crate::spdk::bdev::IoChannel;
use crate::spdk::bdev_module::{ParkedIo, Registration};
use crate::spdk::clock;
use crate::spdk::executor::{self, LocalFuture, Sender, oneshot};
use crate::spdk::json::JsonWriter;
use crate::spdk::poller::{PollResult, Poller};
use crate::store;

/// How often access records are drained and the engine is told the time while it is not busy.
const TICK: Duration = Duration::from_millis(1);

/// Pending chunks of one parked command that the engine is told of at once.
const PARKED_CHUNKS_MAX: usize = 64;

/// What a volume was created with; enough to create it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeOptions {
    /// Name of the bdev.
    pub name: String,
    /// The master.
    pub base_bdev: String,
    /// The store.
    pub store: String,
    /// Chunk size that was asked for.
    pub chunk_size_kib: Option<u32>,
    /// Staging and copying.
    pub tuning: Tuning,
}

/// What a create request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// Readable.
    Consistent,
    /// Independent of the master.
    Complete,
}

struct Watcher {
    seq: SnapshotSeq,
    wait: WaitFor,
    sender: Sender<SnapshotRecord>,
}

/// A command that waits for a chunk, and since when, in ticks.
type ParkedSince = (ParkedIo<VolumeDevice>, u64);

/// An attached volume.
pub struct Volume {
    /// Names it to its reactors.
    pub key: u64,
    /// Number within its store.
    pub id: VolumeId,
    /// The store.
    pub store: Rc<StoreHost>,
    /// Its data path.
    pub device: Arc<VolumeDevice>,
    /// Counters and latencies.
    pub counters: RefCell<VolumeCounters>,
    options: RefCell<VolumeOptions>,
    master: RefCell<Option<IoChannel>>,
    registration: RefCell<Option<Rc<Registration<VolumeDevice>>>>,
    engine: RefCell<Engine>,
    /// Commands that wait, by the chunk they wait for.
    parked: RefCell<HashMap<ChunkIndex, Vec<ParkedSince>>>,
    watchers: RefCell<Vec<Watcher>>,
    stopped: RefCell<Option<Sender<Result<(), String>>>>,
    saved: Cell<bool>,
    /// The master vanished: what it still holds is unknown.
    master_lost: Cell<bool>,
    ticker: RefCell<Option<Poller>>,
    worker: RefCell<Option<Poller>>,
    /// The epoch that the snapshot under way ended.
    old_epoch: Cell<Epoch>,
    /// Chunks that were dirty when the snapshot under way was begun: about as many are required.
    dirty_at_begin: Cell<u64>,
    /// Ticks when the present call into the engine began.
    called_at: Cell<u64>,
    /// The predictor, while the policy has one.
    follower: RefCell<Option<Follower>>,
}

/// What is known of a volume's predictor.
pub struct Follower {
    link: Arc<Link>,
    heard_at: Micros,
    stalled: bool,
    /// What it last found, and when that was told.
    pub last: Option<(Box<Scored>, Micros)>,
}

/// Microseconds since some fixed moment.
pub fn now() -> Micros {
    Micros(clock::ticks_to_us(clock::now_ticks()))
}

impl Volume {
    /// A volume whose engine is set up; [`Volume::publish`] is next.
    pub fn new(
        id: VolumeId,
        store: Rc<StoreHost>,
        device: Arc<VolumeDevice>,
        options: VolumeOptions,
        master: IoChannel,
        engine: Engine,
    ) -> Rc<Self> {
        device.rings.set_recording(engine.settings().policy != PolicyKind::Off);
        Rc::new(Self {
            key: device.key,
            id,
            store,
            device,
            counters: RefCell::default(),
            options: RefCell::new(options),
            master: RefCell::new(Some(master)),
            registration: RefCell::new(None),
            engine: RefCell::new(engine),
            parked: RefCell::default(),
            watchers: RefCell::default(),
            stopped: RefCell::new(None),
            saved: Cell::new(false),
            master_lost: Cell::new(false),
            ticker: RefCell::new(None),
            worker: RefCell::new(None),
            old_epoch: Cell::new(Epoch(0)),
            dirty_at_begin: Cell::new(0),
            called_at: Cell::new(0),
            follower: RefCell::new(None),
        })
    }

    /// Takes commands from now on.
    pub fn publish(self: &Rc<Self>, registration: Registration<VolumeDevice>) {
        *self.registration.borrow_mut() = Some(Rc::new(registration));
        let weak = Rc::downgrade(self);
        *self.ticker.borrow_mut() = Some(Poller::register(TICK, move || {
            let Some(volume) = weak.upgrade() else { return PollResult::Idle };
            volume.watch_predictor();
            volume.drive(Event::Tick);
            PollResult::Idle
        }));
        self.follow();
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.options.borrow().name.clone()
    }

    /// What it was created with, later changes included.
    pub fn options(&self) -> VolumeOptions {
        self.options.borrow().clone()
    }

    /// What the store knows of it.
    pub fn known(&self) -> Rc<KnownVolume> {
        self.store.known(self.id)
    }

    /// Looks at its engine.
    pub fn with_engine<T>(&self, look: impl FnOnce(&Engine) -> T) -> T {
        look(&self.engine.borrow())
    }

    /// Changes how it stages and copies.
    pub fn tune(self: &Rc<Self>, tuning: Tuning) {
        self.options.borrow_mut().tuning = tuning;
        self.follow();
        self.apply_settings();
        self.drive(Event::Tick);
    }

    fn apply_settings(&self) {
        let tuning = self.options.borrow().tuning;
        let mut settings = tuning.settings(self.store.superblock.slot_count);
        if self.predictor_stalled().is_some() {
            settings.policy = tuning.resting();
        }
        self.device.rings.set_recording(settings.policy != PolicyKind::Off);
        self.engine.borrow_mut().set_settings(settings, now());
    }

    // ---- the predictor ------------------------------------------------------------------------

    /// Has the volume followed by a predictor if the policy has one.
    fn follow(&self) {
        let tuning = self.options.borrow().tuning;
        let StagingPolicy::Predicted(kind) = tuning.policy else {
            if self.follower.borrow_mut().take().is_some() {
                predictor::leave(self.key);
            }
            return;
        };
        let order = Order {
            key: self.key,
            name: self.name(),
            gate: Arc::clone(&self.device.gate),
            rings: Arc::clone(&self.device.rings),
            predictor: kind,
            window_us: (tuning.window_ms != 0).then_some(tuning.window_ms * 1000),
            copy_bytes_per_s_max: tuning.copy_bytes_per_s_max(),
        };
        let link = {
            let mut follower = self.follower.borrow_mut();
            let follower = follower.get_or_insert_with(|| Follower {
                link: Arc::default(),
                heard_at: now(),
                stalled: false,
                last: None,
            });
            Arc::clone(&follower.link)
        };
        if let Err(error) = predictor::follow(order, link) {
            // It counts as stalled soon.
            tracing::error!(volume = self.name(), %error, "the predictor's thread cannot be started");
        }
    }

    /// For how long nothing was heard of the predictor, in microseconds, if that is too long.
    pub fn predictor_stalled(&self) -> Option<u64> {
        let follower = self.follower.borrow();
        follower.as_ref().filter(|f| f.stalled).map(|f| now().since(f.heard_at))
    }

    /// What the predictor thinks of a chunk.
    pub fn forecast(&self, chunk: ChunkIndex) -> Option<ChunkForecast> {
        let follower = self.follower.borrow();
        let (scored, _) = follower.as_ref()?.last.as_ref()?;
        let at = scored.forecasts.binary_search_by_key(&chunk, |forecast| forecast.chunk).ok()?;
        Some(scored.forecasts[at])
    }

    /// Looks at what the predictor found.
    pub fn with_follower<T>(&self, look: impl FnOnce(Option<&Follower>) -> T) -> T {
        look(self.follower.borrow().as_ref())
    }

    /// Takes the access records, unless there is a predictor that does.
    fn watch_predictor(&self) {
        let stalled = {
            let mut follower = self.follower.borrow_mut();
            let Some(follower) = follower.as_mut() else {
                drop(follower);
                return self.drain_records();
            };
            let stalls = now().since(follower.heard_at) > STALLED_US && !follower.stalled;
            follower.stalled |= stalls;
            if !follower.stalled {
                return;
            }
            stalls
        };
        if stalled {
            tracing::warn!(
                volume = self.name(),
                "the predictor does not answer; chunks are staged by rest"
            );
            self.apply_settings();
        }
        self.drain_records();
    }

    fn told(self: &Rc<Self>, told: Told) {
        let recovered = {
            let mut follower = self.follower.borrow_mut();
            // The policy may have changed meanwhile.
            let Some(follower) = follower.as_mut() else { return };
            follower.heard_at = now();
            let scored = matches!(told, Told::Scored(_));
            scored && std::mem::replace(&mut follower.stalled, false)
        };
        if recovered {
            tracing::info!(volume = self.name(), "the predictor answers again");
            self.apply_settings();
        }
        match told {
            Told::News(news) => {
                {
                    let (mut engine, at) = (self.engine.borrow_mut(), now());
                    for chunk in news.written {
                        engine.observe_write(chunk, at);
                    }
                    if news.unfollowed {
                        engine.records_lost(at);
                    }
                }
                let mut counters = self.counters.borrow_mut();
                counters.records += news.records;
                counters.records_lost += news.lost;
            }
            Told::Scored(mut found) => {
                let scores = std::mem::take(&mut found.scores);
                let soonest = std::mem::take(&mut found.soonest);
                let room_is_short = self.engine.borrow().room_is_short();
                if let Some(follower) = self.follower.borrow_mut().as_mut() {
                    follower.link.room_is_short.store(room_is_short, Ordering::Relaxed);
                    follower.last = Some((found, now()));
                }
                self.drive(Event::Soonest(soonest));
                self.drive(Event::Scores(scores));
            }
        }
    }

    // ---- engine -------------------------------------------------------------------------------

    /// Tells the engine of an event and does what it asks for.
    pub fn drive(self: &Rc<Self>, event: Event) {
        self.called_at.set(clock::now_ticks());
        {
            let mut slots = self.store.slots.borrow_mut();
            self.engine.borrow_mut().apply(now(), event, &mut *slots);
        }
        self.run_effects();
    }

    fn run_effects(self: &Rc<Self>) {
        loop {
            let effect = self.engine.borrow_mut().next_effect();
            let Some(effect) = effect else { break };
            self.run(effect);
        }
        if self.engine.borrow().is_busy() && self.worker.borrow().is_none() {
            let weak = Rc::downgrade(self);
            let poller = Poller::register(Duration::ZERO, move || {
                let Some(volume) = weak.upgrade() else { return PollResult::Idle };
                volume.work()
            });
            *self.worker.borrow_mut() = Some(poller);
        }
    }

    /// One turn of the engine while it is busy.
    fn work(self: &Rc<Self>) -> PollResult {
        self.drive(Event::Tick);
        if !self.engine.borrow().is_busy() {
            let poller = self.worker.borrow_mut().take();
            drop(poller);
        }
        PollResult::Busy
    }

    fn run(self: &Rc<Self>, effect: Effect) {
        match effect {
            Effect::Catalog { step, request } => self.run_catalog(step, request),
            Effect::Copy(job) => self.run_copy(job),
            Effect::FlushStore => {
                let volume = Rc::clone(self);
                executor::spawn(async move {
                    let result = volume.store.flush().await;
                    volume.drive(Event::FlushDone(result));
                })
                .detach();
            }
            Effect::Row(chunk, slot_ref) => {
                if let Some(map) = &mut *self.known().completing.borrow_mut() {
                    map.insert(chunk, slot_ref);
                }
            }
            Effect::Wake(chunk) => {
                let waiting = self.parked.borrow_mut().remove(&chunk);
                self.count_preserve(waiting.as_deref());
                self.wake(waiting.into_iter().flatten());
            }
            Effect::WakeAll => {
                let waiting = std::mem::take(&mut *self.parked.borrow_mut());
                self.wake(waiting.into_values().flatten());
            }
            Effect::Consistent(record) => self.consistent(record),
            Effect::Ended(record) => self.ended(&record),
            Effect::Stopped(result) => self.engine_stopped(result),
        }
    }

    fn run_catalog(self: &Rc<Self>, step: CatalogStep, request: CatalogRequest) {
        let volume = Rc::clone(self);
        executor::spawn(async move {
            let result = match step {
                CatalogStep::Close => volume.save(request).await,
                _ => volume.store.execute(request).await.map_err(|error| store::chain(&error)),
            };
            volume.drive(Event::CatalogDone { step, result });
        })
        .detach();
    }

    /// Saves the dirty set and the staged copies, if the master's content is known to stay.
    async fn save(&self, request: CatalogRequest) -> Result<CatalogReply, String> {
        if self.master_lost.get() {
            return Err("the master was removed".to_owned());
        }
        // What the master holds only in its cache could be lost later, and then what is clean
        // here would differ from the newest snapshot.
        let master = self.master.borrow().clone();
        if let Some(master) = master
            && master.desc().info().supports(crate::spdk::bdev::IoType::Flush)
        {
            master.flush().await.map_err(|error| format!("flushing the master: {error}"))?;
        }
        let reply = self.store.execute(request).await.map_err(|error| store::chain(&error))?;
        self.saved.set(true);
        Ok(reply)
    }

    fn run_copy(self: &Rc<Self>, job: CopyJob) {
        let volume = Rc::clone(self);
        executor::spawn(async move {
            let result = volume.copy(job).await;
            volume.drive(Event::CopyDone { job: job.id, result });
        })
        .detach();
    }

    async fn copy(&self, job: CopyJob) -> Result<crate::engine::events::Copied, String> {
        let master = self.master.borrow().clone().ok_or("the master is gone")?;
        let (_, store) = self.store.device().map_err(|failure| failure.message)?;
        let compare = if job.compare {
            self.known().newest_view().and_then(|view| view.get(job.chunk))
        } else {
            None
        };
        let copier = Copier {
            geometry: self.device.gate.geometry(),
            master: &master,
            store: &store,
            slots: self.store.layout(),
            pool: &self.store.pool,
        };
        copier.copy(job, compare).await
    }

    fn drain_records(&self) {
        let geometry = *self.device.gate.geometry();
        let mut engine = self.engine.borrow_mut();
        let at = now();
        let mut recorded = 0;
        let lost = self.device.rings.drain(|record| {
            recorded += 1;
            if record.kind == AccessKind::Modify {
                let range = LbaRange::new(record.lba, u64::from(record.blocks));
                for chunk in geometry.chunks(range) {
                    engine.observe_write(ChunkIndex(chunk), at);
                }
            }
        });
        if lost > 0 {
            engine.records_lost(at);
        }
        let mut counters = self.counters.borrow_mut();
        counters.records += recorded;
        counters.records_lost += lost;
    }

    // ---- parked commands ----------------------------------------------------------------------

    fn park(self: &Rc<Self>, chunk: ChunkIndex, range: LbaRange, io: ParkedIo<VolumeDevice>) {
        let entry = (io, clock::now_ticks());
        self.parked.borrow_mut().entry(chunk).or_default().push(entry);
        // The command's other pending chunks too, so that they are preserved at the same time.
        let gate = &self.device.gate;
        let old_epoch = self.old_epoch.get();
        let others: Vec<ChunkIndex> = gate
            .geometry()
            .chunks(range)
            .map(ChunkIndex)
            .filter(|&other| other > chunk)
            .take(PARKED_CHUNKS_MAX)
            .filter(|&other| {
                matches!(
                    gate.classify(other, old_epoch),
                    ChunkState::Pending { .. } | ChunkState::Draining | ChunkState::Staging
                )
            })
            .collect();
        self.drive(Event::Parked(chunk));
        for other in others {
            self.drive(Event::Parked(other));
        }
    }

    /// A chunk was preserved for these commands, the longest waiting one first.
    fn count_preserve(&self, waiting: Option<&[(ParkedIo<VolumeDevice>, u64)]>) {
        if let Some([(_, since), ..]) = waiting {
            let ticks = clock::now_ticks().saturating_sub(*since);
            self.counters.borrow_mut().preserved(clock::ticks_to_us(ticks));
        }
    }

    fn wake(&self, waiting: impl Iterator<Item = (ParkedIo<VolumeDevice>, u64)>) {
        let now = clock::now_ticks();
        let mut counters = self.counters.borrow_mut();
        for (io, since) in waiting {
            counters.waited(clock::ticks_to_us(now.saturating_sub(since)));
            volume_bdev::wake(io);
        }
    }

    /// Foreground commands since the counters were reset.
    pub fn commands(&self) -> Commands {
        self.device.rings.commands().since(&self.counters.borrow().commands_before)
    }

    /// What the engine counted since the counters were reset.
    pub fn engine_counters(&self) -> Counters {
        self.engine.borrow().counters().since(&self.counters.borrow().engine_before)
    }

    /// Starts counting anew.
    pub fn reset_counters(&self) {
        *self.counters.borrow_mut() = VolumeCounters {
            commands_before: self.device.rings.commands(),
            engine_before: self.engine.borrow().counters(),
            ..VolumeCounters::default()
        };
    }

    /// Commands that wait for a chunk now.
    pub fn parked_now(&self) -> u64 {
        self.parked.borrow().values().map(|waiting| waiting.len() as u64).sum()
    }

    // ---- snapshots ----------------------------------------------------------------------------

    /// Reserves the slots that a snapshot may need; [`Volume::begin_snapshot`] is next.
    ///
    /// # Errors
    /// There is not enough.
    pub fn reserve_slots(&self) -> Result<(), Shortage> {
        self.engine.borrow_mut().reserve(&mut *self.store.slots.borrow_mut())
    }

    /// Starts a snapshot that the chain admitted.
    pub fn begin_snapshot(self: &Rc<Self>, record: SnapshotRecord) {
        self.known().chain.borrow_mut().put(record.clone());
        self.dirty_at_begin.set(self.device.gate.dirty_count());
        self.drive(Event::Create(record));
    }

    /// Resolves when the snapshot is as far as asked for, or has ended.
    pub async fn watch(&self, seq: SnapshotSeq, wait: WaitFor) -> Option<SnapshotRecord> {
        let known = self.known();
        let so_far = known.chain.borrow().get(seq).cloned();
        let readable = known.hosts.borrow().contains_key(&seq);
        match so_far {
            Some(record)
                if record.state != SnapshotState::Completing
                    || (wait == WaitFor::Consistent && readable) =>
            {
                return Some(record);
            }
            None => return None,
            Some(_) => {}
        }
        let (sender, receiver) = oneshot();
        self.watchers.borrow_mut().push(Watcher { seq, wait, sender });
        receiver.await.ok()
    }

    /// Gives the snapshot under way up.
    pub fn abort_snapshot(self: &Rc<Self>, reason: &str) {
        self.drive(Event::Abort(reason.to_owned()));
    }

    /// Record of the snapshot under way, as far as it is.
    pub fn snapshot_so_far(&self) -> Option<SnapshotRecord> {
        let mut record = self.engine.borrow().progress().map(|(record, _)| record.clone())?;
        // The engine counts a chunk as required when it is done, or "done of required" would say
        // nothing.
        record.chunks.required = record.chunks.required.max(self.dirty_at_begin.get());
        // The engine fills in the end before it is committed; who is told "complete" may rely on it.
        if record.state == SnapshotState::Complete {
            record.state = SnapshotState::Completing;
            record.times.complete_us = 0;
        }
        Some(record)
    }

    fn consistent(self: &Rc<Self>, mut record: SnapshotRecord) {
        let cut_ticks = clock::now_ticks().saturating_sub(self.called_at.get());
        record.times.cut_us = clock::ticks_to_us(cut_ticks);
        self.engine.borrow_mut().set_cut_us(record.times.cut_us);
        predictor::cut(self.key, now().0);
        self.counters.borrow_mut().cuts += 1;
        self.old_epoch.set(Epoch(self.device.gate.epoch().0 - 1));
        let known = self.known();
        let view = known.newest_view();
        let view = view.unwrap_or_else(|| store::SlotMap::new(known.chunk_count()));
        *known.completing.borrow_mut() = Some(view);
        known.chain.borrow_mut().put(record.clone());
        snapshots::publish(&self.store, &known, &record);
        self.notify(&record, WaitFor::Consistent);
    }

    fn ended(self: &Rc<Self>, record: &SnapshotRecord) {
        let known = self.known();
        let view = known.completing.borrow_mut().take();
        let host = known.hosts.borrow().get(&record.seq).cloned();
        if let (SnapshotState::Complete, Some(view)) = (record.state, view) {
            known.views.borrow_mut().insert(record.seq, view.clone());
            if let Some(host) = host {
                host.complete(view);
            }
        } else {
            if let Some(host) = host {
                host.fail();
                known.hosts.borrow_mut().remove(&record.seq);
                executor::spawn(async move { host.retract().await }).detach();
            }
            let reason = record.reason.as_deref().unwrap_or("unknown");
            tracing::warn!(volume = self.name(), snapshot = record.name, reason, "snapshot failed");
        }
        known.chain.borrow_mut().put(record.clone());
        self.notify(record, WaitFor::Complete);
    }

    fn notify(&self, record: &SnapshotRecord, reached: WaitFor) {
        let mut due = Vec::new();
        self.watchers.borrow_mut().retain_mut(|watcher| {
            let is_due = watcher.seq == record.seq
                && (reached == WaitFor::Complete || watcher.wait == WaitFor::Consistent);
            if is_due {
                let (nobody, _) = oneshot();
                due.push(std::mem::replace(&mut watcher.sender, nobody));
            }
            !is_due
        });
        for sender in due {
            sender.send(record.clone());
        }
    }

    /// Reads `blocks` at `lba` (within `chunk`) of the snapshot under way. `None`: ask again.
    pub async fn read_completing(
        self: &Rc<Self>,
        chunk: ChunkIndex,
        lba: u64,
        blocks: u64,
    ) -> Option<Result<crate::spdk::dma::DmaBuf, String>> {
        let source = self.engine.borrow_mut().read_source(chunk);
        self.run_effects();
        let bytes = blocks as usize * self.device.gate.geometry().lba_bytes() as usize;
        let buffer = || {
            crate::spdk::dma::DmaBuf::zeroed(bytes, 4096)
                .map_err(|error| format!("no {bytes} bytes of DMA memory: {error}"))
        };
        let buf = match buffer() {
            Ok(buf) => buf,
            Err(error) => return Some(Err(error)),
        };
        match source? {
            ReadSource::Wait => None,
            ReadSource::Master => {
                let epoch = self.old_epoch.get();
                let master = self.master.borrow().clone();
                let Some(master) = master else { return Some(Err("the master is gone".into())) };
                let (buf, read) = master.read(buf, lba, blocks).await;
                if let Err(error) = read {
                    return Some(Err(format!("reading the master: {error}")));
                }
                // Else the slot has it now.
                self.device.gate.still_pending(chunk, epoch).then_some(Ok(buf))
            }
            ReadSource::Rows => {
                let known = self.known();
                let entry = known.completing.borrow().as_ref().and_then(|map| map.get(chunk));
                match entry {
                    None => Some(Err(format!("the snapshot lacks chunk {}", chunk.0))),
                    Some(SlotRef::Zero) => Some(Ok(buf)),
                    Some(SlotRef::Slot { slot, .. }) => {
                        let within = lba - self.device.gate.geometry().chunk_range(chunk).lba;
                        let at = self.store.layout().block_of(slot) + within;
                        let store = match self.store.device() {
                            Ok((_, store)) => store,
                            Err(failure) => return Some(Err(failure.message)),
                        };
                        let (buf, read) = store.read(buf, at, blocks).await;
                        Some(
                            read.map(|()| buf)
                                .map_err(|error| format!("reading the store: {error}")),
                        )
                    }
                }
            }
        }
    }

    // ---- ending -------------------------------------------------------------------------------

    /// The store's device is gone.
    pub fn store_gone(self: &Rc<Self>, reason: &str) {
        self.drive(Event::StoreGone(format!("the store is gone: {reason}")));
    }

    /// The master's device is gone: the volume goes away.
    pub fn master_gone(self: &Rc<Self>) {
        self.master_lost.set(true);
        tracing::error!(volume = self.name(), "master removed; the volume goes away");
        let volume = Rc::clone(self);
        executor::spawn(async move { volume.detach().await }).detach();
    }

    /// Removes the bdev and saves what a later start may trust.
    pub async fn detach(&self) {
        let registration = self.registration.borrow().clone();
        if let Some(registration) = registration {
            export::evict(&self.name()).await;
            registration.unregister().await;
        }
    }

    /// Every user has closed the bdev: end the engine, let go of the master.
    async fn destruct(self: &Rc<Self>) {
        let known = self.known();
        let _saving = Exclusive::take(&known).await;
        let (sender, receiver) = oneshot();
        *self.stopped.borrow_mut() = Some(sender);
        if self.follower.borrow_mut().take().is_some() {
            predictor::leave(self.key);
        }
        self.drive(Event::Stop);
        if let Ok(Err(reason)) = receiver.await {
            tracing::warn!(
                volume = self.name(),
                reason,
                "dirty set not saved; the next snapshot compares instead"
            );
        }
        let ticker = self.ticker.borrow_mut().take();
        let worker = self.worker.borrow_mut().take();
        drop((ticker, worker));
        if self.saved.get() {
            let slots = self.engine.borrow().slots_in_hand().staged;
            self.known().saved_staged_slots.set(slots);
        } else {
            // Staged copies are nobody's any more.
            let mut slots = self.store.slots.borrow_mut();
            for slot in self.engine.borrow().droppable_slots() {
                slots.release(slot);
            }
        }
        let master = self.master.borrow_mut().take();
        drop(master);
        world().volumes.borrow_mut().remove(&self.key);
    }

    fn engine_stopped(&self, result: Result<(), String>) {
        if let Some(sender) = self.stopped.borrow_mut().take() {
            sender.send(result);
        }
    }
}

// ---- what the reactors call ---------------------------------------------------------------------

/// A command waits for `chunk`.
pub fn parked(key: u64, chunk: ChunkIndex, range: LbaRange, io: ParkedIo<VolumeDevice>) {
    match world().volume_by_key(key) {
        Some(volume) => volume.park(chunk, range, io),
        // A volume stays while it has commands.
        None => volume_bdev::abort(io),
    }
}

/// The predictor has found something.
pub fn told(key: u64, told: Told) {
    if let Some(volume) = world().volume_by_key(key) {
        volume.told(told);
    }
}

/// Every parked command is to be aborted.
pub fn abort_parked(key: u64) {
    let Some(volume) = world().volume_by_key(key) else { return };
    let waiting = std::mem::take(&mut *volume.parked.borrow_mut());
    for (io, _) in waiting.into_values().flatten() {
        volume_bdev::abort(io);
    }
}

/// The bdev is closed.
pub fn destructed(key: u64) -> LocalFuture<()> {
    Box::pin(async move {
        if let Some(volume) = world().volume_by_key(key) {
            volume.destruct().await;
        }
    })
}

/// The call that creates the volume again.
pub fn write_config(key: u64, w: &mut JsonWriter) {
    let Some(volume) = world().volume_by_key(key) else { return };
    let (method, params) = (world().describe().volume_call)(&volume.options());
    w.call(method, &params);
}

/// `driver_specific` in `bdev_get_bdevs`.
pub fn dump_info(key: u64, w: &mut JsonWriter) {
    let Some(volume) = world().volume_by_key(key) else { return };
    w.member("presnap", &(world().describe().volume)(&volume));
}

/// The failure for work that needs the store of a volume that lost it.
pub fn no_store(volume: &Volume) -> Option<Failure> {
    let gone = volume.store.gone.borrow();
    gone.as_ref().map(|reason| {
        Failure::new(
            Sort::NoDevice,
            format!(
                "volume '{}' has lost its store '{}' ({reason}); bring the device back, delete the \
                 volume and create it again",
                volume.name(),
                volume.store.name
            ),
        )
    })
}
