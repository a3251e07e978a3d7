//! The methods of [`super::table`], served: parameters in, operations of `volume`, objects out.

use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::objects::{
    Address, BlockMapHex, CatalogUse, Chunk, ChunkPage, DamagedSlot, Export, PModify, Policy,
    Progress, Scrub as ScrubObject, ScrubState, SlotCounts, Snapshot, Store, StoreState,
    StoreVolume, Volume as VolumeObject, VolumeChunks, VolumeState, rfc3339,
};
use super::params::{self, PolicyName, ScrubAction, Share, Wait};
use super::statistics::{age_ms, get_stats, rounded};
use super::{Errno, METHODS, Params, RpcError, decode, default_nqn};
use crate::engine::events::Micros;
use crate::engine::records::{SnapshotRecord, SnapshotState};
use crate::engine::{Content, Engine, HeldSlots, Score};
use crate::gate::ChunkIndex;
use crate::predict::WINDOWS;
use crate::spdk;
use crate::spdk::nvmf;
use crate::store::DamagedSlot as FoundDamaged;
use crate::volume::control;
use crate::volume::export::{self, ExportRequest, Exported};
use crate::volume::failure::{Failure, Sort};
use crate::volume::scrub::{self, End, Scrub};
use crate::volume::snapshots::bdev_name;
use crate::volume::stats::unix_ms;
use crate::volume::store_host::{self, KnownVolume, StoreHost};
use crate::volume::tuning::{PredictorKind, StagingPolicy, Tuning};
use crate::volume::volume::{self, Volume, VolumeOptions, WaitFor};
use crate::volume::world::{Describe, set_describe, world};

impl From<Failure> for RpcError {
    fn from(failure: Failure) -> Self {
        let errno = match failure.sort {
            Sort::Refused => Errno::Perm,
            Sort::NotFound => Errno::NoEnt,
            Sort::Io => Errno::Io,
            Sort::NoMemory => Errno::NoMem,
            Sort::Busy => Errno::Busy,
            Sort::Exists => Errno::Exist,
            Sort::NoDevice => Errno::NoDev,
            Sort::Invalid => Errno::Inval,
            Sort::NoSpace => Errno::NoSpc,
            Sort::Damaged => Errno::BadMsg,
            Sort::NotSupported => Errno::NotSup,
            Sort::TimedOut => Errno::TimedOut,
            Sort::Stale => Errno::Stale,
        };
        Self::new(errno, failure.message)
    }
}

fn value<T: Serialize>(object: &T) -> Value {
    serde_json::to_value(object).expect("objects hold nothing that JSON cannot")
}

/// Registers every method with SPDK, before the app is run.
pub fn register_all() {
    set_describe(Describe {
        volume_call: volume_create_call,
        volume: |volume| value(&volume_object(volume)),
        snapshot: |store, known, record| value(&snapshot_object(store, known, record)),
    });
    for method in METHODS {
        let name = method.name;
        spdk::rpc::register(name, move |params| async move {
            serve(name, &params).await.map_err(|error| {
                if !world().started.get() {
                    // SPDK shows the answer but not the method, and then stops.
                    tracing::error!(method = name, %error, "a method of the configuration failed");
                }
                spdk::RpcError { code: error.code, message: error.message }
            })
        });
    }
}

fn reply<T: Serialize>(object: &T) -> Result<Value, RpcError> {
    serde_json::to_value(object)
        .map_err(|error| RpcError::new(Errno::Io, format!("the answer cannot be written: {error}")))
}

async fn serve(method: &str, params: &Value) -> Result<Value, RpcError> {
    match decode(method, params)? {
        Params::StoreCreate(p) => {
            let made = control::create_store(&p.name, &p.bdev, p.slot_size_kib, p.force).await?;
            reply(&store_object(&made, StoreState::Loaded).await)
        }
        Params::StoreLoad(p) => {
            let store = control::load_store(p.name.as_deref(), p.bdev.as_deref()).await?;
            match store {
                Some(store) => reply(&[store_object(&store, StoreState::Loaded).await]),
                None => reply::<[Store; 0]>(&[]),
            }
        }
        Params::StoreUnload(p) => {
            let store = store_host::find(&world(), p.name.as_deref(), p.bdev.as_deref())?;
            let object = store_object(&store, StoreState::Unloaded).await;
            control::unload_store(&store).await?;
            reply(&[object])
        }
        Params::StoreDelete(p) => {
            let store = store_host::find(&world(), p.name.as_deref(), p.bdev.as_deref())?;
            let object = store_object(&store, StoreState::Deleted).await;
            control::delete_store(&store).await?;
            reply(&[object])
        }
        Params::GetStores(p) => reply(&get_stores(&p).await?),
        Params::StoreScrub(p) => reply(&scrub_store(&p).await?),
        Params::VolumeCreate(p) => {
            let name = p.name.clone();
            control::create_volume(options(&p)).await?;
            reply(&name)
        }
        Params::VolumeDelete(p) => {
            control::delete_volume(&p.name).await?;
            reply(&true)
        }
        Params::SnapshotCreate(p) => reply(&create_snapshot(&p).await?),
        Params::GetSnapshots(p) => reply(&get_snapshots(&p)?),
        Params::SnapshotDelete(p) => {
            control::delete_snapshot(&p.volume, &p.name).await?;
            reply(&true)
        }
        Params::SnapshotExport(p) => reply(&export_snapshot(p).await?),
        Params::SnapshotUnexport(p) => {
            find_snapshot(&p.volume, &p.name)?;
            export::remove(&bdev_name(&p.volume, &p.name)).await?;
            reply(&true)
        }
        Params::GetStats(p) => reply(&get_stats(&p)?),
        Params::GetChunks(p) => reply(&get_chunks(&p)?),
        Params::SetPolicy(p) => reply(&set_policy(&p)?),
    }
}

// ---- stores -------------------------------------------------------------------------------------

async fn get_stores(p: &params::GetStores) -> Result<Vec<Store>, RpcError> {
    let stores: Vec<Rc<StoreHost>> = if p.name.is_some() || p.bdev.is_some() {
        vec![store_host::find(&world(), p.name.as_deref(), p.bdev.as_deref())?]
    } else {
        world().stores.borrow().values().cloned().collect()
    };
    let mut objects = Vec::with_capacity(stores.len());
    for store in stores {
        let state =
            if store.gone.borrow().is_some() { StoreState::Failed } else { StoreState::Loaded };
        objects.push(store_object(&store, state).await);
    }
    Ok(objects)
}

async fn store_object(store: &StoreHost, state: StoreState) -> Store {
    let usage = store.usage().await;
    let mut volumes = Vec::new();
    let mut held = HeldSlots::default();
    for known in store.all_known() {
        let record = known.record.borrow();
        let attached = world().attached(store, record.id);
        let of_volume = match &attached {
            Some(volume) => volume.with_engine(Engine::slots_in_hand),
            None => HeldSlots { staged: known.saved_staged_slots.get(), copying: 0 },
        };
        held.staged += of_volume.staged;
        held.copying += of_volume.copying;
        volumes.push(StoreVolume {
            name: record.name.clone(),
            uuid: record.uuid,
            attached: attached.is_some(),
            snapshots: known.chain.borrow().len() as u64,
        });
    }
    let slots = store.slots.borrow();
    let taken = u64::from(slots.taken_count());
    Store {
        name: store.name.clone(),
        uuid: store.superblock.uuid,
        bdev: store.bdev.clone(),
        slot_size_kib: store.superblock.slot_bytes / 1024,
        slots: SlotCounts {
            total: u64::from(slots.slot_count()),
            free: u64::from(slots.free_count()),
            reserved: u64::from(slots.reserved_count()),
            staged: held.staged,
            copying: held.copying,
            owned: taken.saturating_sub(held.staged + held.copying),
        },
        catalog: CatalogUse {
            bytes: store.superblock.catalog_bytes,
            used: usage.map_or(0, |usage| usage.used_bytes),
        },
        volumes,
        state,
        reason: store.gone.borrow().clone(),
        damaged_slots: scrub::damaged_slots(store).len() as u64,
        scrub: scrub_end(store.scrub.borrow().as_deref()).0,
    }
}

/// Slots named in one answer at most.
const DAMAGED_SLOTS_MAX: usize = 1000;

async fn scrub_store(p: &params::StoreScrub) -> Result<ScrubObject, RpcError> {
    let store = store_host::find(&world(), p.name.as_deref(), p.bdev.as_deref())?;
    match p.action {
        ScrubAction::Start => drop(scrub::start(&store, p.mbytes_per_sec)?),
        ScrubAction::Stop => scrub::end(&store, "as asked for").await,
        ScrubAction::Status => {}
    }
    let last = store.scrub.borrow().clone();
    if let Some(scrub) = last.filter(|_| p.wait) {
        scrub.ended().await;
    }
    Ok(scrub_object(&store))
}

fn scrub_end(scrub: Option<&Scrub>) -> (ScrubState, Option<String>) {
    match scrub.map(Scrub::end) {
        None => (ScrubState::None, None),
        Some(None) => (ScrubState::Running, None),
        Some(Some(End::Done)) => (ScrubState::Done, None),
        Some(Some(End::Stopped(reason))) => (ScrubState::Stopped, Some(reason)),
        Some(Some(End::Failed(reason))) => (ScrubState::Failed, Some(reason)),
    }
}

fn scrub_object(store: &StoreHost) -> ScrubObject {
    let last = store.scrub.borrow();
    let scrub = last.as_deref();
    let (state, reason) = scrub_end(scrub);
    let counts = scrub.map(Scrub::counts).unwrap_or_default();
    let progress = scrub.map(|scrub| scrub.progress(store));
    let damaged = scrub::damaged_slots(store);
    ScrubObject {
        store: store.name.clone(),
        state,
        reason,
        mbytes_per_sec: scrub.map_or(0, |scrub| scrub.mbytes_per_sec),
        started_at: scrub.map(|scrub| rfc3339(scrub.started_at_unix_ms)),
        took_ms: scrub.map_or(0, Scrub::took_ms),
        slots: progress.map_or(0, |progress| progress.total),
        bytes_read: counts.bytes_read,
        progress: progress
            .filter(|_| state == ScrubState::Running)
            .map(|progress| Progress { percent: progress.percent, left_ms: progress.left_ms }),
        found: counts.found,
        repaired: counts.repaired,
        staged_dropped: counts.staged_dropped,
        damaged: damaged.len() as u64,
        damaged_slots: damaged
            .iter()
            .take(DAMAGED_SLOTS_MAX)
            .filter_map(|found| damaged_slot(store, found))
            .collect(),
    }
}

fn damaged_slot(store: &StoreHost, found: &FoundDamaged) -> Option<DamagedSlot> {
    let known = store.known(found.volume)?;
    let geometry = scrub::geometry(&known)?;
    let range = geometry.chunk_range(found.chunk);
    let lba_bytes = u64::from(geometry.lba_bytes());
    Some(DamagedSlot {
        slot: u64::from(found.slot.0),
        volume: known.name(),
        snapshots: scrub::snapshots_with(&known, found.chunk, found.slot),
        chunk_id: u64::from(found.chunk.0),
        lba: range.lba,
        blocks: range.count,
        offset: range.lba * lba_bytes,
        bytes: range.count * lba_bytes,
        found_at: rfc3339(found.found_at_unix_ms),
    })
}

// ---- volumes ------------------------------------------------------------------------------------

fn policy_of(name: PolicyName) -> StagingPolicy {
    match name {
        PolicyName::Off => StagingPolicy::Off,
        PolicyName::Idle => StagingPolicy::Idle,
        PolicyName::Deadline => StagingPolicy::Predicted(PredictorKind::Deadline),
        PolicyName::Rate => StagingPolicy::Predicted(PredictorKind::Rate),
        PolicyName::Likely => StagingPolicy::Predicted(PredictorKind::Likely),
        PolicyName::Lstm => StagingPolicy::Predicted(PredictorKind::Lstm),
    }
}

fn policy_name(policy: StagingPolicy) -> PolicyName {
    match policy {
        StagingPolicy::Off => PolicyName::Off,
        StagingPolicy::Idle => PolicyName::Idle,
        StagingPolicy::Predicted(PredictorKind::Deadline) => PolicyName::Deadline,
        StagingPolicy::Predicted(PredictorKind::Rate) => PolicyName::Rate,
        StagingPolicy::Predicted(PredictorKind::Likely) => PolicyName::Likely,
        StagingPolicy::Predicted(PredictorKind::Lstm) => PolicyName::Lstm,
    }
}

/// 0: none is set.
fn threshold_of(share: Share) -> Option<Score> {
    (share != Share::default()).then(|| Score::of(f64::from(share) as f32))
}

fn threshold_share(tuning: Tuning) -> Share {
    tuning.threshold.map_or(Share::default(), |score| f64::from(score.probability()).into())
}

fn options(p: &params::VolumeCreate) -> VolumeOptions {
    VolumeOptions {
        name: p.name.clone(),
        base_bdev: p.base_bdev.clone(),
        store: p.store.clone(),
        chunk_size_kib: p.chunk_size_kib,
        tuning: Tuning {
            policy: policy_of(p.policy),
            idle_ms: p.idle_ms,
            threshold: threshold_of(p.threshold),
            window_ms: p.window_ms,
            staging_limit_percent: p.staging_limit_percent,
            snapshot_target_ms: p.snapshot_target_ms,
            copy_mbytes_per_sec: p.copy_mbytes_per_sec,
        },
    }
}

/// The call that creates a volume with these options.
fn volume_create_call(options: &VolumeOptions) -> (&'static str, Value) {
    let tuning = options.tuning;
    let params = Params::VolumeCreate(params::VolumeCreate {
        name: options.name.clone(),
        base_bdev: options.base_bdev.clone(),
        store: options.store.clone(),
        chunk_size_kib: options.chunk_size_kib,
        policy: policy_name(tuning.policy),
        idle_ms: tuning.idle_ms,
        threshold: threshold_share(tuning),
        window_ms: tuning.window_ms,
        staging_limit_percent: tuning.staging_limit_percent,
        snapshot_target_ms: tuning.snapshot_target_ms,
        copy_mbytes_per_sec: tuning.copy_mbytes_per_sec,
    });
    (params.method(), params.to_json())
}

pub(super) fn policy_object(tuning: Tuning) -> Policy {
    Policy {
        policy: policy_name(tuning.policy),
        idle_ms: tuning.idle_ms,
        threshold: threshold_share(tuning).into(),
        window_ms: tuning.window_ms,
        staging_limit_percent: tuning.staging_limit_percent,
        snapshot_target_ms: tuning.snapshot_target_ms,
        copy_mbytes_per_sec: tuning.copy_mbytes_per_sec,
    }
}

/// A volume as users see it.
fn volume_object(volume: &Volume) -> VolumeObject {
    let options = volume.options();
    let known = &volume.known;
    let geometry = *volume.device.gate.geometry();
    let gone = volume.store.gone.borrow().is_some();
    volume.with_engine(|engine| VolumeObject {
        name: options.name,
        uuid: known.record.borrow().uuid,
        base_bdev: options.base_bdev,
        store: options.store,
        state: if gone || engine.store_gone().is_some() {
            VolumeState::NoStore
        } else {
            VolumeState::Online
        },
        bytes: geometry.volume_lbas() * u64::from(geometry.lba_bytes()),
        block_size: geometry.lba_bytes(),
        chunk_size_kib: geometry.chunk_bytes() / 1024,
        chunks: VolumeChunks {
            total: u64::from(geometry.chunk_count()),
            dirty: engine.gate().dirty_count(),
            staged: engine.staged_len() as u64,
        },
        operation_number: engine.gate().next_operation().0.saturating_sub(1),
        snapshots: known.chain.borrow().len() as u64,
        policy: policy_object(options.tuning),
    })
}

pub(super) fn attached(name: &str) -> Result<Rc<Volume>, RpcError> {
    Ok(world().volume(name).ok_or_else(|| Failure::no_volume(name))?)
}

fn set_policy(p: &params::SetPolicy) -> Result<Policy, RpcError> {
    let volume = attached(&p.volume)?;
    let mut tuning = volume.options().tuning;
    if let Some(policy) = p.policy {
        tuning.policy = policy_of(policy);
    }
    tuning.idle_ms = p.idle_ms.unwrap_or(tuning.idle_ms);
    tuning.threshold = p.threshold.map_or(tuning.threshold, threshold_of);
    tuning.window_ms = p.window_ms.unwrap_or(tuning.window_ms);
    tuning.staging_limit_percent = p.staging_limit_percent.unwrap_or(tuning.staging_limit_percent);
    tuning.snapshot_target_ms = p.snapshot_target_ms.unwrap_or(tuning.snapshot_target_ms);
    tuning.copy_mbytes_per_sec = p.copy_mbytes_per_sec.unwrap_or(tuning.copy_mbytes_per_sec);
    // The same once more has it try again what it has given up.
    let gave_up = volume.with_engine(|engine| engine.staging_off().is_some());
    if tuning != volume.options().tuning || gave_up {
        volume.tune(tuning);
    }
    Ok(policy_object(tuning))
}

fn get_chunks(p: &params::GetChunks) -> Result<ChunkPage, RpcError> {
    let volume = attached(&p.volume)?;
    let geometry = *volume.device.gate.geometry();
    let total = u64::from(geometry.chunk_count());
    let at = volume::now();
    let chunk_object = |engine: &Engine, chunk: ChunkIndex| {
        let view = engine.gate().view(chunk);
        let staged = engine.staged_chunk(chunk);
        let forecast = volume.forecast(chunk);
        Chunk {
            chunk_id: u64::from(chunk.0),
            operation_number: staged.map(|staged| staged.operation_number.0),
            staging_location: staged.and_then(|staged| match staged.content {
                Content::Slot(slot) => Some(u64::from(slot.0)),
                Content::Zero | Content::Unchanged => None,
            }),
            valid: staged.is_some() && view.valid(),
            dirty: view.dirty,
            block_map: BlockMapHex(staged.map_or(0, |staged| staged.block_map.0)),
            last_write_age_ms: engine
                .last_write(chunk)
                .or(forecast.map(|forecast| Micros(forecast.last_write_us)))
                .map(|last| age_ms(at, last)),
            heat: forecast.map(|forecast| rounded(forecast.heat)),
            score: forecast.map(|forecast| rounded(forecast.score.probability())),
            p_modify: forecast.map(|forecast| p_modify(forecast.p_modify)),
        }
    };
    let (chunks, next) = volume.with_engine(|engine| {
        if p.staged_only {
            let mut staged: Vec<ChunkIndex> = engine
                .staged_chunks()
                .map(|staged| staged.chunk)
                .filter(|chunk| u64::from(chunk.0) >= p.start)
                .collect();
            staged.sort_unstable();
            let next = staged.get(p.count as usize).map(|chunk| u64::from(chunk.0));
            staged.truncate(p.count as usize);
            let chunks = staged.into_iter().map(|chunk| chunk_object(engine, chunk)).collect();
            (chunks, next)
        } else {
            let end = total.min(p.start.saturating_add(u64::from(p.count)));
            let chunks = (p.start..end)
                .map(|chunk| chunk_object(engine, ChunkIndex(chunk as u32)))
                .collect();
            (chunks, (end < total).then_some(end))
        }
    });
    Ok(ChunkPage {
        volume: p.volume.clone(),
        chunk_size_kib: geometry.chunk_bytes() / 1024,
        total,
        next,
        chunks,
    })
}

fn p_modify(windows: [f32; WINDOWS]) -> PModify {
    // Those of `predict::WINDOWS_US`.
    let p = windows.map(rounded);
    PModify { within_10_s: p[0], within_1_min: p[1], within_5_min: p[2], within_15_min: p[3] }
}

// ---- snapshots ----------------------------------------------------------------------------------

fn export_object(exported: Exported) -> Export {
    let (trtype, traddr, trsvcid) = exported
        .address
        .map(|address| (address.trtype, address.traddr, address.trsvcid))
        .unwrap_or_default();
    Export {
        nqn: exported.nqn,
        nsid: exported.nsid,
        address: Address { trtype, traddr, trsvcid },
        hosts: exported.hosts,
    }
}

/// A snapshot as users see it.
fn snapshot_object(store: &StoreHost, known: &KnownVolume, record: &SnapshotRecord) -> Snapshot {
    let volume = known.name();
    let mut record = record.clone();
    if record.state == SnapshotState::Completing
        && let Some(attached) = world().attached(store, record.volume)
        && let Some(so_far) = attached.snapshot_so_far()
        && so_far.seq == record.seq
    {
        record = so_far;
    }
    let exported = export::find(&bdev_name(&volume, &record.name)).map(export_object);
    let age = unix_ms().saturating_sub(record.created_at_unix_ms);
    Snapshot::from_record(&record, &volume, exported, age)
}

async fn create_snapshot(p: &params::SnapshotCreate) -> Result<Snapshot, RpcError> {
    let wait = match p.wait {
        Wait::Consistent => WaitFor::Consistent,
        Wait::Complete => WaitFor::Complete,
    };
    let timeout = (p.timeout_ms != 0).then(|| Duration::from_millis(p.timeout_ms));
    let (store, known, record) =
        control::create_snapshot(&p.volume, &p.name, p.uuid, wait, timeout).await?;
    Ok(snapshot_object(&store, &known, &record))
}

fn get_snapshots(p: &params::GetSnapshots) -> Result<Vec<Snapshot>, RpcError> {
    let known: Vec<(Rc<StoreHost>, Rc<KnownVolume>)> = match &p.volume {
        Some(volume) => vec![world().known_volume(volume)?],
        None => world()
            .stores
            .borrow()
            .values()
            .flat_map(|store| store.all_known().into_iter().map(|known| (Rc::clone(store), known)))
            .collect(),
    };
    let mut objects = Vec::new();
    for (store, known) in known {
        let records: Vec<SnapshotRecord> = known.chain.borrow().records().cloned().collect();
        for record in records.iter().filter(|r| p.name.as_ref().is_none_or(|name| *name == r.name))
        {
            objects.push(snapshot_object(&store, &known, record));
        }
    }
    Ok(objects)
}

fn find_snapshot(
    volume: &str,
    name: &str,
) -> Result<(Rc<StoreHost>, Rc<KnownVolume>, SnapshotRecord), RpcError> {
    let (store, known) = world().known_volume(volume)?;
    let record = known
        .chain
        .borrow()
        .by_name(name)
        .cloned()
        .map_err(|error| Failure::of_chain(volume, &error))?;
    Ok((store, known, record))
}

async fn export_snapshot(p: params::SnapshotExport) -> Result<Export, RpcError> {
    let (store, known, record) = find_snapshot(&p.volume, &p.name)?;
    let hosts = match (p.hosts, p.allow_any_host) {
        (Some(hosts), false) => Some(hosts),
        (None, true) => None,
        (None, false) => {
            return Err(RpcError::invalid(format!(
                "nobody could read the export of snapshot '{}@{}': name the hosts that may connect \
                 in `hosts`, or set `allow_any_host`",
                p.volume, p.name
            )));
        }
        (Some(_), true) => {
            return Err(RpcError::invalid(format!(
                "export of snapshot '{}@{}': give `hosts` or `allow_any_host`, not both",
                p.volume, p.name
            )));
        }
    };
    let nqn = p.nqn.unwrap_or_else(|| default_nqn(&p.volume, &p.name, record.uuid));
    let adrfam = if p.traddr.contains(':') { "IPv6" } else { "IPv4" };
    let request = ExportRequest {
        nqn,
        address: nvmf::Address {
            trtype: p.trtype,
            adrfam: adrfam.to_owned(),
            traddr: p.traddr,
            trsvcid: p.trsvcid,
        },
        hosts,
    };
    Ok(export_object(export::create(&store, &known, &record, request).await?))
}
