//! A scrub: reads a store's copies, no faster than allowed, and compares them with their checksums.
//!
//! One task on the app thread with one buffer: what it reads it looks at in pieces short enough for the
//! reactor. Whether a slot that looks damaged is so is decided with the volume to itself (`Exclusive`):
//! nobody frees the slot then, and no snapshot of the volume is under way.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::failure::{Failure, Sort};
use super::stats::unix_ms;
use super::store_host::{Exclusive, KnownVolume, StoreHost, Work};
use super::volume::{self, Volume};
use super::world::world;
use crate::engine::crc::{append, crc32c};
use crate::engine::events::{Event, Micros};
use crate::engine::records::{BLOCKS_PER_CHUNK, BlockCrcs, SlotIndex, SlotRef, StagedRecord};
use crate::engine::{Content, Engine};
use crate::gate::{ChunkIndex, Geometry};
use crate::spdk::bdev::IoChannel;
use crate::spdk::dma::DmaBuf;
use crate::spdk::error::IoError;
use crate::spdk::executor;
use crate::store::scrub::{DueSlots, Throttle, left_ms};
use crate::store::{self, DamagedSlot, RowPlace, ScrubRow};

/// Bytes read and looked at in one go: some ten microseconds of the app thread.
const PIECE_BYTES: u32 = 256 << 10;
/// Alignment of the buffer, for devices that want pages.
const BUFFER_ALIGN: usize = 4096;
/// Pause between two looks at whether to go on, and the longest until a stop is noticed.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// How long a store that closes waits for its scrub: a device may never answer.
const END_MAX: Duration = Duration::from_secs(5);

/// What a scrub has found and done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Bytes read.
    pub bytes_read: u64,
    /// Slots found damaged that were not known to be.
    pub found: u64,
    /// Damaged slots that are in order again.
    pub repaired: u64,
    /// Damaged staged copies, dropped.
    pub staged_dropped: u64,
}

/// How a scrub ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Every slot was looked at.
    Done,
    /// It was told to stop, for this reason.
    Stopped(String),
    /// It could not go on.
    Failed(String),
}

/// How far a scrub is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Slots in the beginning.
    pub total: u64,
    /// Slots looked at, or free meanwhile, 0 to 100.
    pub percent: u8,
    /// Time left at the present rate.
    pub left_ms: Option<u64>,
}

/// A scrub of a store.
pub struct Scrub {
    /// Limit for reading, in MiB/s; 0: none.
    pub mbytes_per_sec: u64,
    /// When it began, milliseconds since the Unix epoch.
    pub started_at_unix_ms: u64,
    started: Micros,
    ended: Cell<Option<Micros>>,
    end: RefCell<Option<End>>,
    /// Why it is to stop.
    stop: RefCell<Option<String>>,
    due: RefCell<DueSlots>,
    counts: Cell<Counts>,
}

impl Scrub {
    /// How it ended; `None` while it is under way.
    pub fn end(&self) -> Option<End> {
        self.end.borrow().clone()
    }

    /// What it has found so far.
    pub fn counts(&self) -> Counts {
        self.counts.get()
    }

    /// How long it took, or takes so far.
    pub fn took_ms(&self) -> u64 {
        self.ended.get().unwrap_or_else(volume::now).since(self.started) / 1000
    }

    /// How far it is.
    pub fn progress(&self, store: &StoreHost) -> Progress {
        let due = self.due.borrow();
        let (total, left) = (due.total(), due.left(&store.slots.borrow()));
        let done = total.saturating_sub(left);
        let percent = (done * 100).checked_div(total).unwrap_or(100) as u8;
        Progress { total, percent, left_ms: left_ms(self.took_ms(), done, left) }
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }

    fn runs(&self) -> bool {
        self.end.borrow().is_none()
    }

    /// Resolves when it has ended.
    pub async fn ended(&self) {
        while self.runs() {
            executor::sleep(LOOK_PAUSE).await;
        }
    }
}

/// Starts a scrub.
///
/// # Errors
/// One is under way, the store is gone, or no memory is left to read to.
pub fn start(store: &Rc<StoreHost>, mbytes_per_sec: u64) -> Result<Rc<Scrub>, Failure> {
    let (_, channel) = store.device()?;
    if let Some(scrub) = store.scrub.borrow().as_ref().filter(|scrub| scrub.runs()) {
        let Progress { total, percent, .. } = scrub.progress(store);
        return Err(Failure::new(
            Sort::Busy,
            format!(
                "store '{}' is being scrubbed already ({percent}% of {total} slots done so far); \
                 wait for it, or stop it first",
                store.name
            ),
        ));
    }
    let piece_bytes = store.superblock.slot_bytes.min(PIECE_BYTES);
    let buf = DmaBuf::zeroed(piece_bytes as usize, BUFFER_ALIGN).map_err(|error| {
        Failure::new(
            Sort::NoMemory,
            format!(
                "store '{}' cannot be scrubbed: no {piece_bytes} bytes of DMA memory ({error}); \
                 give the target more hugepages",
                store.name
            ),
        )
    })?;
    let now = volume::now();
    let bytes_per_s_max = (mbytes_per_sec != 0).then_some(mbytes_per_sec << 20);
    let scrub = Rc::new(Scrub {
        mbytes_per_sec,
        started_at_unix_ms: unix_ms(),
        started: now,
        ended: Cell::new(None),
        end: RefCell::new(None),
        stop: RefCell::new(None),
        due: RefCell::new(DueSlots::new(&store.slots.borrow())),
        counts: Cell::default(),
    });
    *store.scrub.borrow_mut() = Some(Rc::clone(&scrub));
    tracing::info!(store = store.name, mbytes_per_sec, "scrub begins");
    let mut task = Task {
        store: Rc::clone(store),
        scrub: Rc::clone(&scrub),
        channel,
        buf: Some(buf),
        piece_bytes,
        throttle: Throttle::new(bytes_per_s_max, now.0),
    };
    executor::spawn(async move {
        let end = task.all().await.err().unwrap_or(End::Done);
        task.end(end);
    })
    .detach();
    Ok(scrub)
}

/// Ends the scrub of a store, if one is under way, and waits for that.
pub async fn end(store: &StoreHost, reason: &str) {
    let scrub = store.scrub.borrow().clone();
    let Some(scrub) = scrub.filter(|scrub| scrub.runs()) else { return };
    scrub.stop.borrow_mut().get_or_insert_with(|| reason.to_owned());
    if executor::timeout(END_MAX, scrub.ended()).await.is_none() {
        tracing::warn!(store = store.name, "the scrub waits for a read; it ends with that");
    }
}

/// What is known of the damaged slots of snapshots.
pub fn damaged_slots(store: &StoreHost) -> Vec<DamagedSlot> {
    let mut found = store.found_damaged.borrow_mut();
    // The others are free, or filled anew.
    found.retain(|slot, _| store.damaged.contains(*slot));
    found.values().copied().collect()
}

/// Names of the snapshots that have the chunk in this slot, the oldest first.
pub fn snapshots_with(known: &KnownVolume, chunk: ChunkIndex, slot: SlotIndex) -> Vec<String> {
    let (views, chain) = (known.views.borrow(), known.chain.borrow());
    let has_it = views
        .iter()
        .filter(|(_, view)| view.get(chunk).and_then(SlotRef::slot) == Some(slot))
        .map(|(seq, _)| *seq);
    has_it.filter_map(|seq| chain.get(seq)).map(|record| record.name.clone()).collect()
}

/// Sizes of a volume.
pub fn geometry(known: &KnownVolume) -> Option<Geometry> {
    let record = known.record.borrow();
    let master = &record.master;
    Geometry::new(record.chunk_bytes, master.block_bytes, master.block_count).ok()
}

struct Task {
    store: Rc<StoreHost>,
    scrub: Rc<Scrub>,
    channel: IoChannel,
    buf: Option<DmaBuf>,
    piece_bytes: u32,
    throttle: Throttle,
}

impl Task {
    fn end(&self, end: End) {
        let counts = self.scrub.counts();
        let (store, ms) = (&self.store.name, self.scrub.took_ms());
        let Counts { bytes_read, found, repaired, staged_dropped } = counts;
        match &end {
            End::Done => {
                tracing::info!(
                    store,
                    ms,
                    bytes_read,
                    found,
                    repaired,
                    staged_dropped,
                    "scrub done"
                );
            }
            End::Stopped(reason) => {
                tracing::info!(store, ms, bytes_read, found, reason, "scrub stopped");
            }
            End::Failed(reason) => {
                tracing::error!(store, ms, bytes_read, found, reason, "scrub failed");
            }
        }
        self.scrub.ended.set(Some(volume::now()));
        *self.scrub.end.borrow_mut() = Some(end);
    }

    fn go_on(&self) -> Result<(), End> {
        // One that is gone is closed, too.
        if let Some(reason) = &*self.store.gone.borrow() {
            return Err(End::Failed(format!("the store is gone: {reason}")));
        }
        match &*self.scrub.stop.borrow() {
            Some(reason) => Err(End::Stopped(reason.clone())),
            None => Ok(()),
        }
    }

    /// What the catalog answered to a question.
    fn answer<T>(&self, answer: Result<T, store::Error>) -> Result<T, End> {
        answer.map_err(|error| match self.go_on() {
            Err(end) => end,
            Ok(()) => End::Failed(store::chain(&error)),
        })
    }

    /// A note that the catalog did not take down is forgotten at the next load, and that is all.
    fn note<T>(&self, slot: SlotIndex, answer: Result<T, store::Error>) {
        if let Err(error) = answer {
            let error = store::chain(&error);
            tracing::warn!(
                store = self.store.name,
                slot = slot.0,
                error,
                "what was found of the slot is not known after a restart; scrub again then"
            );
        }
    }

    async fn all(&mut self) -> Result<(), End> {
        // Staged copies first: what a snapshot adopts meanwhile is a row by then.
        for known in self.store.all_known() {
            self.staged(&known).await?;
        }
        let mut place = Some(RowPlace::default());
        while let Some(from) = place {
            let portion = self.store.with_catalog(move |catalog| catalog.rows_from(from)).await;
            let portion = self.answer(portion)?;
            for row in portion.rows {
                self.row(row).await?;
            }
            place = portion.next;
        }
        Ok(())
    }

    fn is_due(&self, slot: SlotIndex) -> bool {
        self.scrub.due.borrow_mut().take(slot)
    }

    // ---- reading ------------------------------------------------------------------------------

    /// Shows the bytes of a chunk in a slot to `look`, in pieces.
    async fn read(
        &mut self,
        slot: SlotIndex,
        bytes: u64,
        mut look: impl FnMut(&[u8]),
    ) -> Result<Result<(), IoError>, End> {
        let block_bytes = u64::from(self.store.superblock.block_bytes);
        let begin = self.store.layout().block_at(slot, 0);
        let mut at = 0;
        while at < bytes {
            let piece_bytes = u64::from(self.piece_bytes).min(bytes - at);
            let mut wait = self.throttle.wait(volume::now().0, piece_bytes);
            self.go_on()?;
            while !wait.is_zero() {
                let pause = wait.min(LOOK_PAUSE);
                executor::sleep(pause).await;
                self.go_on()?;
                wait -= pause;
            }
            let buf = self.buf.take().expect("one read at a time");
            let blocks = piece_bytes.div_ceil(block_bytes);
            let (buf, read) = self.channel.read(buf, begin + at / block_bytes, blocks).await;
            if read.is_ok() {
                look(&buf[..piece_bytes as usize]);
                self.scrub.count(|counts| counts.bytes_read += piece_bytes);
            }
            self.buf = Some(buf);
            if let Err(error) = read {
                // Of a device that is going away nothing is said of its slots.
                self.go_on()?;
                return Ok(Err(error));
            }
            at += piece_bytes;
            // Others come in between, also where reads end at once.
            executor::yield_now().await;
        }
        Ok(Ok(()))
    }

    async fn checksum(&mut self, slot: SlotIndex, bytes: u64) -> Result<Result<u32, IoError>, End> {
        let mut crc = 0;
        let read = self.read(slot, bytes, |piece| crc = append(crc, piece)).await?;
        Ok(read.map(|()| crc))
    }

    /// Whether a slot that cannot be read lies on a device that otherwise can.
    ///
    /// # Errors
    /// It does not.
    async fn check_device(&mut self, slot: SlotIndex, error: &IoError) -> Result<(), End> {
        let buf = self.buf.take().expect("one read at a time");
        let (buf, read) = self.channel.read(buf, 0, 1).await;
        self.buf = Some(buf);
        self.go_on()?;
        read.map_err(|_| {
            End::Failed(format!(
                "bdev '{}' cannot be read (slot {}: {error}); see to the device and scrub again",
                self.store.bdev, slot.0
            ))
        })
    }

    // ---- snapshots ----------------------------------------------------------------------------

    async fn row(&mut self, row: ScrubRow) -> Result<(), End> {
        if !self.is_due(row.slot) {
            return Ok(());
        }
        let Some(known) = self.store.known(row.volume) else { return Ok(()) };
        let Some(geometry) = geometry(&known) else { return Ok(()) };
        let bytes = chunk_bytes(&geometry, row.chunk);
        if self.checksum(row.slot, bytes).await?.ok() == Some(row.crc32c) {
            if self.store.damaged.contains(row.slot) && shows(&known, &row) {
                self.in_order_again(&known, row).await;
            }
            return Ok(());
        }
        // It may have been freed meanwhile, and filled with something else.
        let _alone = self.alone_with(&known).await?;
        if !shows(&known, &row) {
            return Ok(());
        }
        let again = self.checksum(row.slot, bytes).await?;
        match &again {
            Ok(crc) if *crc == row.crc32c => {
                let (store, slot) = (&self.store.name, row.slot.0);
                tracing::warn!(store, slot, "a slot was read wrong, and right the second time");
                if self.store.damaged.contains(row.slot) {
                    self.in_order_again(&known, row).await;
                }
                return Ok(());
            }
            Ok(_) => {}
            Err(error) => self.check_device(row.slot, error).await?,
        }
        self.damaged(&known, row, again.err()).await;
        self.repair(&known, row, bytes).await
    }

    /// Waits until no snapshot of the volume is under way, and keeps them away.
    async fn alone_with(&self, known: &Rc<KnownVolume>) -> Result<Exclusive, End> {
        loop {
            let alone = Exclusive::take(known, Work::Scrub).await;
            let attached = self.attached(known);
            let busy = known.chain.borrow().completing().is_some()
                || attached.is_some_and(|volume| volume.with_engine(Engine::has_snapshot));
            if !busy {
                return Ok(alone);
            }
            drop(alone);
            executor::sleep(LOOK_PAUSE).await;
            self.go_on()?;
        }
    }

    fn attached(&self, known: &KnownVolume) -> Option<Rc<Volume>> {
        let id = known.record.borrow().id;
        world().attached(&self.store, id)
    }

    /// Marks a slot, and says so once.
    async fn damaged(&mut self, known: &KnownVolume, row: ScrubRow, unreadable: Option<IoError>) {
        let ScrubRow { volume, chunk, slot, crc32c, .. } = row;
        if !self.store.damaged.insert(slot) {
            return;
        }
        let found = DamagedSlot { slot, volume, chunk, crc32c, found_at_unix_ms: unix_ms() };
        self.store.found_damaged.borrow_mut().insert(slot, found);
        self.scrub.count(|counts| counts.found += 1);
        let snapshots = snapshots_with(known, chunk, slot).join(", ");
        let range = geometry(known).map(|geometry| geometry.chunk_range(chunk));
        let (lba, blocks) = range.map_or((0, 0), |range| (range.lba, range.count));
        let why = unreadable.map_or("its checksum is wrong".to_owned(), |error| error.to_string());
        tracing::error!(
            store = self.store.name,
            slot = slot.0,
            volume = known.name(),
            snapshots,
            chunk = chunk.0,
            lba,
            blocks,
            why,
            "a slot is damaged: reads of that range of these snapshots fail"
        );
        let noted = self.store.with_catalog(move |catalog| catalog.mark_damaged(found)).await;
        self.note(slot, noted);
    }

    async fn in_order_again(&self, known: &KnownVolume, row: ScrubRow) {
        let slot = row.slot;
        self.store.damaged.remove(slot);
        self.store.found_damaged.borrow_mut().remove(&slot);
        self.scrub.count(|counts| counts.repaired += 1);
        tracing::info!(
            store = self.store.name,
            slot = slot.0,
            volume = known.name(),
            chunk = row.chunk.0,
            "a damaged slot is in order again"
        );
        let noted = self.store.with_catalog(move |catalog| catalog.unmark_damaged(slot)).await;
        self.note(slot, noted);
    }

    /// Writes a damaged slot anew, if the master still has what the newest snapshot has there; else sees
    /// to it that the next snapshot does not take the slot over.
    async fn repair(&mut self, known: &KnownVolume, row: ScrubRow, bytes: u64) -> Result<(), End> {
        let Some(volume) = self.attached(known) else { return Ok(()) };
        let newest = known.newest_view().and_then(|view| view.get(row.chunk));
        if newest.and_then(SlotRef::slot) != Some(row.slot) {
            return Ok(());
        }
        let written = match volume.rewrite(row.chunk, row.slot, row.crc32c).await {
            Ok(true) => self.store.flush().await.map(|()| true),
            other => other,
        };
        match written {
            Ok(true) => {
                if self.checksum(row.slot, bytes).await?.ok() == Some(row.crc32c) {
                    self.in_order_again(known, row).await;
                    return Ok(());
                }
            }
            Ok(false) => {}
            Err(error) => {
                let (store, slot) = (&self.store.name, row.slot.0);
                tracing::warn!(store, slot, error, "a damaged slot could not be written anew");
            }
        }
        if !volume.copy_again(row.chunk) {
            let (volume, chunk) = (volume.name(), row.chunk.0);
            tracing::warn!(volume, chunk, "the snapshot under way takes a damaged slot over");
        }
        Ok(())
    }

    // ---- staged copies ------------------------------------------------------------------------

    async fn staged(&mut self, known: &Rc<KnownVolume>) -> Result<(), End> {
        if let Some(volume) = self.attached(known) {
            let chunks: Vec<ChunkIndex> = volume.with_engine(|engine| {
                let in_slots = |content| matches!(content, Content::Slot(_));
                let staged = engine.staged_chunks().filter(|staged| in_slots(staged.content));
                staged.map(|staged| staged.chunk).collect()
            });
            for chunk in chunks {
                self.staged_copy(&volume, chunk).await?;
            }
            return Ok(());
        }
        let id = known.record.borrow().id;
        let state = self.store.with_catalog(move |catalog| catalog.load_state(id)).await;
        if let Err(store::Error::NoVolume { .. }) = state {
            return Ok(()); // forgotten meanwhile
        }
        for record in self.answer(state)?.staged {
            self.saved_copy(known, &record).await?;
        }
        Ok(())
    }

    /// Checksums of a chunk's blocks in a slot; `None`: it cannot be read.
    async fn block_crcs(
        &mut self,
        geometry: &Geometry,
        chunk: ChunkIndex,
        slot: SlotIndex,
    ) -> Result<Option<Box<BlockCrcs>>, End> {
        let mut crcs = Box::new([0; BLOCKS_PER_CHUNK]);
        let mut next = crcs.iter_mut();
        let block_bytes = geometry.block_bytes() as usize;
        let look = |piece: &[u8]| {
            for (block, crc) in piece.chunks(block_bytes).zip(next.by_ref()) {
                *crc = crc32c(block);
            }
        };
        let read = self.read(slot, chunk_bytes(geometry, chunk), look).await?;
        if let Err(error) = &read {
            self.check_device(slot, error).await?;
        }
        Ok(read.is_ok().then_some(crcs))
    }

    async fn staged_copy(&mut self, volume: &Rc<Volume>, chunk: ChunkIndex) -> Result<(), End> {
        let staged = volume.with_engine(|engine| engine.staged_copy(chunk).cloned());
        let Some(staged) = staged else { return Ok(()) };
        let Content::Slot(slot) = staged.content else { return Ok(()) };
        if !self.is_due(slot) {
            return Ok(());
        }
        let geometry = *volume.device.gate.geometry();
        let crcs = self.block_crcs(&geometry, chunk, slot).await?;
        // Outdated blocks are what was copied, too; but a refresh may have come in between.
        let is_same = |engine: &Engine| {
            engine.staged_copy(chunk).is_some_and(|now| {
                now.content == staged.content && now.operation_number == staged.operation_number
            })
        };
        if crcs.as_ref() == Some(&staged.block_crcs) || !volume.with_engine(is_same) {
            return Ok(());
        }
        volume.drive(Event::StagedDamaged { chunk, slot });
        self.dropped(&volume.name(), chunk, slot);
        Ok(())
    }

    /// The same for one that a clean stop has saved.
    async fn saved_copy(
        &mut self,
        known: &Rc<KnownVolume>,
        record: &StagedRecord,
    ) -> Result<(), End> {
        let (Some(slot), chunk) = (record.slot, record.chunk) else { return Ok(()) };
        let Some(geometry) = geometry(known) else { return Ok(()) };
        if self.attached(known).is_some() || !self.is_due(slot) {
            return Ok(());
        }
        let crcs = self.block_crcs(&geometry, chunk, slot).await?;
        if crcs.as_ref() == Some(&record.block_crcs) {
            return Ok(());
        }
        let _alone = Exclusive::take(known, Work::Scrub).await;
        if self.attached(known).is_some() {
            return Ok(()); // its engine may have copied it again
        }
        let id = known.record.borrow().id;
        let drop_it = move |catalog: &mut store::Catalog| catalog.drop_saved_copy(id, chunk, slot);
        let dropped = self.store.with_catalog(drop_it).await;
        if self.answer(dropped)? {
            self.store.slots.borrow_mut().release(slot);
            known.saved_staged_slots.update(|slots| slots.saturating_sub(1));
            self.dropped(&known.name(), chunk, slot);
        }
        Ok(())
    }

    fn dropped(&self, volume: &str, chunk: ChunkIndex, slot: SlotIndex) {
        self.scrub.count(|counts| counts.staged_dropped += 1);
        tracing::warn!(
            store = self.store.name,
            slot = slot.0,
            volume,
            chunk = chunk.0,
            "a staged copy was damaged and is dropped; the chunk is copied again"
        );
    }
}

fn chunk_bytes(geometry: &Geometry, chunk: ChunkIndex) -> u64 {
    geometry.chunk_range(chunk).count * u64::from(geometry.lba_bytes())
}

/// Whether a snapshot, complete or not, still has the row's chunk in its slot.
fn shows(known: &KnownVolume, row: &ScrubRow) -> bool {
    let wanted = Some(SlotRef::Slot { slot: row.slot, crc32c: row.crc32c });
    let views = known.views.borrow();
    let completing = known.completing.borrow();
    views.values().chain(completing.as_ref()).any(|view| view.get(row.chunk) == wanted)
}
