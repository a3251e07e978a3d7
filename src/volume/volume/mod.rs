//! An attached volume on the app thread: drives its engine and carries out what that asks for.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::access::Commands;
use super::copier::Copier;
use super::export;
use super::failure::{Failure, Sort};
use super::predictor::{self, Told};
use super::stats::VolumeCounters;
use super::store_host::{Exclusive, KnownVolume, StoreHost, Work};
use super::tuning::Tuning;
use super::volume_bdev::{self, VolumeDevice};
use super::world::world;
use crate::engine::events::{CatalogStep, CopyJob, Effect, Event, Micros};
use crate::engine::records::{
    CatalogReply, CatalogRequest, Cause, SlotIndex, SnapshotSeq, Trouble, VolumeId,
};
use crate::engine::{Counters, Engine, Foreground, PolicyKind};
use crate::gate::{ChunkIndex, ChunkState, Epoch, LbaRange};
use crate::spdk::bdev::IoChannel;
use crate::spdk::bdev_module::{ParkedIo, Registration};
use crate::spdk::clock;
use crate::spdk::executor::{self, LocalFuture, Sender, oneshot};
use crate::spdk::json::JsonWriter;
use crate::spdk::poller::{PollResult, Poller};
use crate::store;

mod follower;
mod snapshot;

pub use follower::Follower;
use snapshot::Watcher;
pub use snapshot::{Unreadable, WaitFor};

/// How often access records are drained and the engine is told the time while it is not busy.
const TICK: Duration = Duration::from_millis(1);

/// How often it is looked at what foreground commands take: some hundred of them, and not much longer
/// than a burst of copies.
const LOOK_EVERY_US: u64 = 10_000;

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
    /// What the store knows of it.
    pub known: Rc<KnownVolume>,
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
    /// The snapshot that failed last, and why.
    last_failure: Cell<Option<(SnapshotSeq, Cause)>>,
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
    /// When foreground commands were last looked at, and what had been timed until then.
    looked_at: Cell<(Micros, u64, u64)>,
    /// The predictor, while the policy has one.
    follower: RefCell<Option<Follower>>,
}

/// Microseconds since some fixed moment.
pub fn now() -> Micros {
    Micros(clock::ticks_to_us(clock::now_ticks()))
}

impl Volume {
    /// A volume whose engine is set up; [`Volume::publish`] is next.
    pub fn new(
        store: Rc<StoreHost>,
        known: Rc<KnownVolume>,
        device: Arc<VolumeDevice>,
        options: VolumeOptions,
        master: IoChannel,
        engine: Engine,
    ) -> Rc<Self> {
        device.rings.set_recording(engine.settings().policy != PolicyKind::Off);
        let id = known.record.borrow().id;
        Rc::new(Self {
            key: device.key,
            id,
            store,
            known,
            device,
            counters: RefCell::default(),
            options: RefCell::new(options),
            master: RefCell::new(Some(master)),
            registration: RefCell::new(None),
            engine: RefCell::new(engine),
            parked: RefCell::default(),
            watchers: RefCell::default(),
            last_failure: Cell::new(None),
            stopped: RefCell::new(None),
            saved: Cell::new(false),
            master_lost: Cell::new(false),
            ticker: RefCell::new(None),
            worker: RefCell::new(None),
            old_epoch: Cell::new(Epoch(0)),
            dirty_at_begin: Cell::new(0),
            called_at: Cell::new(0),
            looked_at: Cell::new((now(), 0, 0)),
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
            volume.watch_foreground();
            volume.drive(Event::Tick);
            PollResult::Idle
        }));
        self.follow();
    }

    /// Tells the engine now and then what foreground commands took.
    fn watch_foreground(&self) {
        let (looked_at, timed, timed_ticks) = self.looked_at.get();
        let at = now();
        if at.since(looked_at) < LOOK_EVERY_US {
            return;
        }
        let sum = self.device.rings.commands();
        self.looked_at.set((at, sum.timed, sum.timed_ticks));
        let foreground = Foreground {
            commands: sum.timed.saturating_sub(timed),
            took_us: clock::ticks_to_us(sum.timed_ticks.saturating_sub(timed_ticks)),
        };
        self.engine.borrow_mut().observe_foreground(foreground, at);
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.options.borrow().name.clone()
    }

    /// What it was created with, later changes included.
    pub fn options(&self) -> VolumeOptions {
        self.options.borrow().clone()
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
                if let Some(map) = &mut *self.known.completing.borrow_mut() {
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
            Effect::Ended(record, cause) => self.ended(&record, cause),
            Effect::Threshold(change) => {
                let (from, to) = (change.from.probability(), change.to.probability());
                let reason = change.reason;
                tracing::info!(volume = self.name(), from, to, %reason, "the threshold is moved");
            }
            Effect::Stopped(result) => self.engine_stopped(result),
        }
    }

    fn run_catalog(self: &Rc<Self>, step: CatalogStep, request: CatalogRequest) {
        let volume = Rc::clone(self);
        executor::spawn(async move {
            let result = match step {
                CatalogStep::Close => volume.save(request).await,
                _ => volume.store.execute(request).await.map_err(|error| trouble(&error)),
            };
            volume.drive(Event::CatalogDone { step, result });
        })
        .detach();
    }

    /// Saves the dirty set and the staged copies, if the master's content is known to stay.
    async fn save(&self, request: CatalogRequest) -> Result<CatalogReply, Trouble> {
        if self.master_lost.get() {
            return Err("the master was removed".into());
        }
        // What the master holds only in its cache could be lost later, and then what is clean
        // here would differ from the newest snapshot.
        let master = self.master.borrow().clone();
        if let Some(master) = master
            && master.desc().info().supports(crate::spdk::bdev::IoType::Flush)
        {
            master.flush().await.map_err(|error| format!("flushing the master: {error}"))?;
        }
        let reply = self.store.execute(request).await.map_err(|error| trouble(&error))?;
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
            self.known.newest_view().and_then(|view| view.get(job.chunk))
        } else {
            None
        };
        self.copier(&master, &store).copy(job, compare).await
    }

    fn copier<'a>(&'a self, master: &'a IoChannel, store: &'a IoChannel) -> Copier<'a> {
        Copier {
            geometry: self.device.gate.geometry(),
            master,
            store,
            slots: self.store.layout(),
            pool: &self.store.pool,
        }
    }

    /// Writes the slot of a chunk that the newest snapshot has there anew, if the master still has the
    /// same. Nobody may free the slot meanwhile.
    ///
    /// # Errors
    /// What failed, naming the side.
    pub async fn rewrite(
        &self,
        chunk: ChunkIndex,
        slot: SlotIndex,
        crc32c: u32,
    ) -> Result<bool, String> {
        let gate = &self.device.gate;
        let Some(master) = self.master.borrow().clone() else { return Ok(false) };
        let (_, store) = self.store.device().map_err(|failure| failure.message)?;
        // A command is noted before it changes anything: clean after the read, clean during it.
        let is_unchanged = || !gate.is_dirty(chunk) && !gate.is_cut_active();
        if !is_unchanged() {
            return Ok(false);
        }
        self.copier(&master, &store).rewrite(chunk, slot, crc32c, is_unchanged).await
    }

    /// The next snapshot copies the chunk instead of taking it over. Not while one is under way; says
    /// whether it was done.
    pub fn copy_again(self: &Rc<Self>, chunk: ChunkIndex) -> bool {
        let under_way = self.with_engine(Engine::has_snapshot) || self.device.gate.is_cut_active();
        if !under_way {
            self.drive(Event::Dirtied(vec![chunk]));
        }
        !under_way
    }

    // ---- parked commands ----------------------------------------------------------------------

    fn park(
        self: &Rc<Self>,
        chunk: ChunkIndex,
        range: LbaRange,
        since_ticks: u64,
        io: ParkedIo<VolumeDevice>,
    ) {
        let entry = (io, clock::now_ticks());
        let since = Micros(clock::ticks_to_us(since_ticks));
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
        self.drive(Event::Parked { chunk, since });
        for other in others {
            self.drive(Event::Parked { chunk: other, since });
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

    // ---- ending -------------------------------------------------------------------------------

    /// The store's device is gone.
    pub fn store_gone(self: &Rc<Self>, reason: &str) {
        self.drive(Event::StoreGone(format!("the store is gone: {reason}")));
    }

    /// The master's device is gone: the volume goes away.
    pub fn master_gone(self: &Rc<Self>) {
        self.master_lost.set(true);
        let master = self.options.borrow().base_bdev.clone();
        tracing::error!(volume = self.name(), master, "master removed; the volume goes away");
        // Before a copy fails for it, or the volume's end: neither would name the cause.
        self.abort_snapshot(&format!("its master '{master}' was removed"));
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
        let _saving = Exclusive::take(&self.known, Work::Stop).await;
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
            self.known.saved_staged_slots.set(slots);
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

/// What the engine is told of a catalog transaction that failed.
fn trouble(error: &store::Error) -> Trouble {
    Trouble { cause: error.kind().cause(), reason: store::chain(error) }
}

// ---- what the reactors call ---------------------------------------------------------------------

/// A command waits for `chunk`, and has waited, for others before it, since `since_ticks`.
pub fn parked(
    key: u64,
    chunk: ChunkIndex,
    range: LbaRange,
    since_ticks: u64,
    io: ParkedIo<VolumeDevice>,
) {
    match world().volume_by_key(key) {
        Some(volume) => volume.park(chunk, range, since_ticks, io),
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
    let (name, store) = (volume.name(), &volume.store);
    if let Some(failure) = store.unusable() {
        return Some(Failure {
            message: format!("volume '{name}': {}", failure.message),
            ..failure
        });
    }
    // The store serves other volumes, but what it holds of this one is not known.
    let reason = volume.with_engine(|engine| engine.store_gone().map(str::to_owned))?;
    Some(Failure::new(
        Sort::NoDevice,
        format!(
            "volume '{name}' has lost its store '{}' ({reason}: bdev_presnap_delete for its volumes, \
             presnap_store_unload, presnap_store_load, bdev_presnap_create)",
            store.name
        ),
    ))
}
