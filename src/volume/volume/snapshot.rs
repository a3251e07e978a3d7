//! The snapshot under way, as far as the volume is concerned: begun, watched, read and ended.

use std::rc::Rc;

use super::{Volume, now};
use crate::engine::Shortage;
use crate::engine::events::{Event, ReadSource};
use crate::engine::records::{Cause, SlotRef, SnapshotRecord, SnapshotSeq, SnapshotState};
use crate::gate::{ChunkIndex, Epoch};
use crate::spdk::clock;
use crate::spdk::dma::DmaBuf;
use crate::spdk::executor::{self, Sender, oneshot};
use crate::store;
use crate::volume::{predictor, snapshots};

/// What a create request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// Readable.
    Consistent,
    /// Independent of the master.
    Complete,
}

/// Why a chunk of the snapshot under way cannot be read.
pub enum Unreadable {
    /// Its slot is damaged, which the log has said once.
    Damaged,
    /// This went wrong.
    Failed(String),
}

impl From<String> for Unreadable {
    fn from(what: String) -> Self {
        Self::Failed(what)
    }
}

/// Someone who waits for a snapshot.
pub(super) struct Watcher {
    seq: SnapshotSeq,
    wait: WaitFor,
    sender: Sender<SnapshotRecord>,
}

impl Volume {
    /// Reserves the slots that a snapshot may need; [`Volume::begin_snapshot`] is next.
    ///
    /// # Errors
    /// There is not enough.
    pub fn reserve_slots(&self) -> Result<(), Shortage> {
        self.engine.borrow_mut().reserve(&mut *self.store.slots.borrow_mut())
    }

    /// Starts a snapshot that the chain admitted.
    pub fn begin_snapshot(self: &Rc<Self>, record: SnapshotRecord) {
        self.known.chain.borrow_mut().put(record.clone());
        self.dirty_at_begin.set(self.device.gate.dirty_count());
        self.drive(Event::Create(record));
    }

    /// Resolves when the snapshot is as far as asked for, or has ended.
    pub async fn watch(&self, seq: SnapshotSeq, wait: WaitFor) -> Option<SnapshotRecord> {
        let known = &self.known;
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

    /// Why a snapshot failed that was under way just now.
    pub fn cause_of_failure(&self, seq: SnapshotSeq) -> Cause {
        match self.last_failure.get() {
            Some((failed, cause)) if failed == seq => cause,
            _ => Cause::Other,
        }
    }

    /// Gives the snapshot under way up.
    pub fn abort_snapshot(self: &Rc<Self>, reason: &str) {
        self.drive(Event::Abort(reason.to_owned()));
    }

    /// Record of the snapshot under way, as far as it is.
    pub fn snapshot_so_far(&self) -> Option<SnapshotRecord> {
        let mut record = self.engine.borrow().progress().cloned()?;
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

    pub(super) fn consistent(self: &Rc<Self>, mut record: SnapshotRecord) {
        let cut_ticks = clock::now_ticks().saturating_sub(self.called_at.get());
        record.times.cut_us = clock::ticks_to_us(cut_ticks);
        self.engine.borrow_mut().set_cut_us(record.times.cut_us);
        predictor::cut(self.key, now().0);
        self.counters.borrow_mut().cuts += 1;
        self.old_epoch.set(Epoch(self.device.gate.epoch().0 - 1));
        let known = &self.known;
        let view = known.newest_view();
        let view = view.unwrap_or_else(|| store::SlotMap::new(known.chunk_count()));
        *known.completing.borrow_mut() = Some(view);
        known.chain.borrow_mut().put(record.clone());
        snapshots::publish(&self.store, known, &record);
        self.notify(&record, WaitFor::Consistent);
    }

    pub(super) fn ended(self: &Rc<Self>, record: &SnapshotRecord, cause: Option<Cause>) {
        if let Some(cause) = cause {
            self.last_failure.set(Some((record.seq, cause)));
        }
        let known = &self.known;
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
                // Known until it is gone: whoever deletes the snapshot waits for that, too.
                let (known, seq) = (Rc::clone(known), record.seq);
                executor::spawn(async move {
                    host.retract().await;
                    known.hosts.borrow_mut().remove(&seq);
                })
                .detach();
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
    ) -> Option<Result<DmaBuf, Unreadable>> {
        let source = self.engine.borrow_mut().read_source(chunk);
        self.run_effects();
        let bytes = blocks as usize * self.device.gate.geometry().lba_bytes() as usize;
        let buffer = || {
            DmaBuf::zeroed(bytes, 4096)
                .map_err(|error| format!("no {bytes} bytes of DMA memory: {error}"))
        };
        let buf = match buffer() {
            Ok(buf) => buf,
            Err(error) => return Some(Err(error.into())),
        };
        match source? {
            ReadSource::Wait => None,
            ReadSource::Master => {
                let epoch = self.old_epoch.get();
                let master = self.master.borrow().clone();
                let Some(master) = master else {
                    return Some(Err("the master is gone".to_owned().into()));
                };
                let (buf, read) = master.read(buf, lba, blocks).await;
                if let Err(error) = read {
                    return Some(Err(format!("reading the master: {error}").into()));
                }
                // Else the slot has it now.
                self.device.gate.still_pending(chunk, epoch).then_some(Ok(buf))
            }
            ReadSource::Rows => {
                let known = &self.known;
                let entry = known.completing.borrow().as_ref().and_then(|map| map.get(chunk));
                match entry {
                    None => Some(Err(format!("the snapshot lacks chunk {}", chunk.0).into())),
                    Some(SlotRef::Zero) => Some(Ok(buf)),
                    Some(SlotRef::Slot { slot, .. }) if self.store.damaged.contains(slot) => {
                        Some(Err(Unreadable::Damaged))
                    }
                    Some(SlotRef::Slot { slot, .. }) => {
                        let within = lba - self.device.gate.geometry().chunk_range(chunk).lba;
                        let at = self.store.layout().block_at(slot, within);
                        let store = match self.store.device() {
                            Ok((_, store)) => store,
                            Err(failure) => return Some(Err(failure.message.into())),
                        };
                        let (buf, read) = store.read(buf, at, blocks).await;
                        Some(
                            read.map(|()| buf)
                                .map_err(|error| format!("reading the store: {error}").into()),
                        )
                    }
                }
            }
        }
    }
}
