//! Snapshots taken and deleted.

use std::rc::Rc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::LOOK_PAUSE;
use super::volumes::name_taken;
use crate::engine::events::Event;
use crate::engine::records::{
    CatalogReply, CatalogRequest, SnapshotRecord, SnapshotSeq, SnapshotState,
};
use crate::engine::{ChainError, CreatePlan, Shortage};
use crate::spdk::bdev;
use crate::spdk::executor;
use crate::store;
use crate::volume::export;
use crate::volume::failure::{Failure, Sort};
use crate::volume::snapshots;
use crate::volume::stats::unix_ms;
use crate::volume::store_host::{Exclusive, KnownVolume, StoreHost, Work};
use crate::volume::volume::{self, Volume, WaitFor};
use crate::volume::world::world;

/// How long an operation waits for what has the volume to itself before it gives up.
const TURN_WAIT_MAX: Duration = Duration::from_secs(30);

/// How long the answer to a create whose time is up waits for the snapshot to be cleared away.
const UNDO_WAIT_MAX: Duration = Duration::from_secs(5);

/// Takes a snapshot and waits until it is as far as asked for.
///
/// # Errors
/// See `presnap_snapshot_create` in docs/rpc.md.
pub async fn create_snapshot(
    volume_name: &str,
    name: &str,
    uuid: Option<Uuid>,
    wait: WaitFor,
    timeout: Option<Duration>,
) -> Result<(Rc<StoreHost>, Rc<KnownVolume>, SnapshotRecord), Failure> {
    let volume = world().volume(volume_name).ok_or_else(|| Failure::no_volume(volume_name))?;
    if let Some(failure) = volume::no_store(&volume) {
        return Err(failure);
    }
    let known = Rc::clone(&volume.known);
    let asked_at = Instant::now();
    wait_for_turn(&known, timeout.unwrap_or(TURN_WAIT_MAX)).await?;
    let mut plan = known.chain.borrow().plan_create(name, uuid);
    if let Ok(CreatePlan::Retry(seq)) = plan {
        drop_record(&volume.store, &known, seq).await?;
        plan = known.chain.borrow().plan_create(name, uuid);
    }
    let (seq, is_repeated) = match plan {
        Ok(CreatePlan::New(seq)) => {
            begin(&volume, seq, name, uuid)?;
            (seq, false)
        }
        Ok(CreatePlan::Existing(seq) | CreatePlan::Retry(seq)) => (seq, true),
        Err(error) => return Err(busy_with_progress(&volume, volume_name, &error)),
    };
    let watch = volume.watch(seq, wait);
    let reached = match timeout {
        Some(timeout) => executor::timeout(timeout.saturating_sub(asked_at.elapsed()), watch).await,
        None => Some(watch.await),
    };
    let Some(reached) = reached else {
        let ms = timeout.map_or(0, |timeout| timeout.as_millis());
        if is_repeated {
            // Whoever asked first has not given up.
            return Err(Failure::new(
                Sort::TimedOut,
                format!(
                    "snapshot '{name}' of volume '{volume_name}' was not ready within {ms} ms; it goes \
                     on, since an earlier request asked for it, and can be waited for again"
                ),
            ));
        }
        // Whoever waits for a chunk goes on now.
        volume.abort_snapshot("it was not ready within timeout_ms");
        let undoing = executor::spawn(clear_away(Rc::clone(&volume), Rc::clone(&known), seq));
        let end = match executor::timeout(UNDO_WAIT_MAX, undoing).await.transpose()? {
            // It was being committed when the time was up, and that was quicker.
            Some(Some(record)) => return Ok((Rc::clone(&volume.store), known, record)),
            Some(None) => "nothing of it stays, ask again with a longer timeout_ms",
            None => "what there is of it is cleared away when its store answers again",
        };
        return Err(Failure::new(
            Sort::TimedOut,
            format!(
                "snapshot '{name}' of volume '{volume_name}' was not ready within {ms} ms and was given up; {end}"
            ),
        ));
    };
    let record = reached.ok_or_else(|| gone_meanwhile(volume_name, name))?;
    if record.state == SnapshotState::Failed {
        let reason = record.reason.clone().unwrap_or_default();
        let sort = Sort::of_snapshot(volume.cause_of_failure(seq));
        if record.times.consistent_us == 0 {
            // It never came to a cut: nothing of it is worth keeping.
            drop_record(&volume.store, &known, seq).await?;
        }
        return Err(Failure::new(
            sort,
            format!("snapshot '{name}' of volume '{volume_name}' failed: {reason}"),
        ));
    }
    Ok((Rc::clone(&volume.store), known, record))
}

/// Waits for the end of a snapshot that was given up, and deletes it. The record of one that is complete all the same.
async fn clear_away(
    volume: Rc<Volume>,
    known: Rc<KnownVolume>,
    seq: SnapshotSeq,
) -> Result<Option<SnapshotRecord>, Failure> {
    let ended = volume.watch(seq, WaitFor::Complete).await;
    if ended.is_some_and(|record| record.state == SnapshotState::Complete) {
        let record = known.chain.borrow().get(seq).cloned();
        let name = volume.name();
        return record.map(Some).ok_or_else(|| {
            let what = format!("a snapshot of volume '{name}' was deleted while it was being made");
            Failure::new(Sort::NotFound, what)
        });
    }
    drop_record(&volume.store, &known, seq).await?;
    Ok(None)
}

fn gone_meanwhile(volume: &str, name: &str) -> Failure {
    Failure::new(
        Sort::NotFound,
        format!("snapshot '{name}' of volume '{volume}' was deleted while it was being made"),
    )
}

fn busy_with_progress(volume: &Volume, name: &str, error: &ChainError) -> Failure {
    let mut failure = Failure::of_chain(name, error);
    if let (ChainError::Busy { .. }, Some(record)) = (error, volume.snapshot_so_far()) {
        let chunks = record.chunks;
        let done = chunks.adopted + chunks.copied + chunks.preserved + chunks.zero;
        let required = chunks.required.max(done);
        failure.message =
            format!("{} ({done} of {required} required chunks done so far)", failure.message);
    }
    failure
}

fn begin(
    volume: &Rc<Volume>,
    seq: SnapshotSeq,
    name: &str,
    uuid: Option<Uuid>,
) -> Result<(), Failure> {
    let bdev = snapshots::bdev_name(&volume.name(), name);
    if bdev::find(&bdev).is_some() {
        return Err(name_taken(&bdev));
    }
    if let Err(shortage) = volume.reserve_slots() {
        return Err(no_space(volume, shortage));
    }
    let uuid = uuid.unwrap_or_else(Uuid::new_v4);
    volume.begin_snapshot(SnapshotRecord::asked_for(volume.id, seq, name, uuid, unix_ms()));
    Ok(())
}

fn no_space(volume: &Volume, shortage: Shortage) -> Failure {
    let (store, Shortage { needed, free }) = (&volume.store, shortage);
    let reserved = match store.slots.borrow().reserved_count() {
        0 => String::new(),
        reserved => format!(" (and {reserved} reserved for snapshots that are completing)"),
    };
    let wait = if reserved.is_empty() { "" } else { "wait for those, " };
    Failure::new(
        Sort::NoSpace,
        format!(
            "store '{}' has {free} free slots{reserved}, and a snapshot of volume '{}' may need \
             {needed}, one for each dirty chunk without a copy, also for those that turn out to be \
             zeros; {wait}delete snapshots, or use a larger store",
            store.name,
            volume.name()
        ),
    )
}

async fn wait_for_turn(known: &KnownVolume, at_most: Duration) -> Result<(), Failure> {
    let at_most = at_most.min(TURN_WAIT_MAX);
    let started = Instant::now();
    while let Some(work) = known.busy_with.get() {
        if started.elapsed() > at_most {
            return Err(Failure::new(
                Sort::Busy,
                format!(
                    "volume '{}' is busy for more than {} s: {}; try again",
                    known.name(),
                    at_most.as_secs_f64(),
                    work.words()
                ),
            ));
        }
        executor::sleep(LOOK_PAUSE).await;
    }
    Ok(())
}

/// Deletes a snapshot; one that is completing is given up first.
///
/// # Errors
/// See `presnap_snapshot_delete` in docs/rpc.md.
pub async fn delete_snapshot(volume_name: &str, name: &str) -> Result<(), Failure> {
    let (store, known) = world().known_volume(volume_name)?;
    wait_for_turn(&known, TURN_WAIT_MAX).await?;
    // Before a completing one is given up, and once more after that took its time.
    check_not_exported(volume_name, name)?;
    let completing = known.chain.borrow().completing().filter(|r| r.name == name).map(|r| r.seq);
    if let Some(seq) = completing {
        let id = known.record.borrow().id;
        if let Some(volume) = world().attached(&store, id) {
            volume.abort_snapshot("it was deleted while it was being made");
            volume.watch(seq, WaitFor::Complete).await;
            wait_for_turn(&known, TURN_WAIT_MAX).await?;
            if known.chain.borrow().get(seq).is_none() {
                // It had not come to a cut: whoever asked for it has cleared it away.
                volume.counters.borrow_mut().deleted += 1;
                return Ok(());
            }
        }
    }
    check_not_exported(volume_name, name)?;
    let seq = known
        .chain
        .borrow()
        .plan_delete(name)
        .map_err(|error| Failure::of_chain(volume_name, &error))?;
    drop_record(&store, &known, seq).await?;
    if let Some(volume) = world().volume(volume_name) {
        volume.counters.borrow_mut().deleted += 1;
    }
    Ok(())
}

fn check_not_exported(volume: &str, name: &str) -> Result<(), Failure> {
    let bdev = snapshots::bdev_name(volume, name);
    match export::find(&bdev) {
        None => Ok(()),
        Some(export) => Err(Failure::new(
            Sort::Busy,
            format!("snapshot '{bdev}' is exported in '{}'; unexport it first", export.nqn),
        )),
    }
}

/// Deletes a snapshot that is complete or failed.
async fn drop_record(
    store: &Rc<StoreHost>,
    known: &Rc<KnownVolume>,
    seq: SnapshotSeq,
) -> Result<(), Failure> {
    let _deleting = Exclusive::take(known, Work::Deletion).await;
    drop_record_now(store, known, seq).await
}

async fn drop_record_now(
    store: &Rc<StoreHost>,
    known: &Rc<KnownVolume>,
    seq: SnapshotSeq,
) -> Result<(), Failure> {
    let Some(record) = known.chain.borrow().get(seq).cloned() else { return Ok(()) };
    if let Some(failure) = store.unusable() {
        return Err(failure);
    }
    let id = record.volume;
    let host = known.hosts.borrow_mut().remove(&seq);
    // That of a failed one is being removed already.
    let had_bdev = host.is_some() && record.state == SnapshotState::Complete;
    if let Some(host) = host {
        host.retract().await;
    }
    let request = CatalogRequest::DeleteSnapshot { volume: id, seq };
    let reply = match store.execute(request).await {
        Ok(reply) => reply,
        // A failed snapshot that could not even be recorded.
        Err(store::Error::NoSnapshot { .. }) if record.state == SnapshotState::Failed => {
            CatalogReply::Done
        }
        Err(error) => {
            // The bdev of a store that is closing would hold on to its device for ever.
            if had_bdev && !store.is_closing() {
                snapshots::publish(store, known, &record);
            }
            return Err(store.failure(&error));
        }
    };
    known.chain.borrow_mut().remove(seq);
    known.views.borrow_mut().remove(&seq);
    if let CatalogReply::Deleted { freed, dirtied, .. } = reply {
        {
            let mut slots = store.slots.borrow_mut();
            for slot in freed {
                slots.release(slot);
            }
        }
        if let Some(volume) = world().attached(store, id) {
            volume.drive(Event::Dirtied(dirtied));
        }
        // The heir uses more now.
        let records = store.with_catalog(move |catalog| catalog.snapshots(id)).await;
        let mut chain = known.chain.borrow_mut();
        for record in records.unwrap_or_default() {
            if chain.get(record.seq).is_some_and(|r| r.state == SnapshotState::Complete) {
                chain.put(record);
            }
        }
    }
    Ok(())
}
