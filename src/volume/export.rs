//! Snapshots as read-only NVMe-oF namespaces, one subsystem each.
//!
//! What is exported is asked of SPDK's NVMe-oF target, not remembered: `save_config` saves its
//! subsystems, and other RPCs may change them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::failure::{Failure, Sort};
use super::store_host::{KnownVolume, StoreHost};
use crate::engine::records::{SnapshotRecord, SnapshotState};
use crate::spdk::error::Errno;
use crate::spdk::executor;
use crate::spdk::nvmf::{self, Address, Hosts, Namespace, SubsystemSpec};

/// How long a bdev that is being removed waits for its subsystem. Changes take milliseconds, or as
/// long as the longest command in flight.
const EVICT_TIME_MAX: Duration = Duration::from_secs(5);

/// Pause between two tries.
const EVICT_PAUSE: Duration = Duration::from_millis(1);

/// How long an export may take to begin or to end. It needs every reactor, and its end the commands of hosts: what hangs
/// there is answered with an error, and goes on by itself.
const CHANGE_TIME_MAX: Duration = Duration::from_secs(10);

/// Model number of the subsystems made here: it is saved and comes back with them.
const MODEL: &str = "presnap snapshot";

/// A snapshot's place in the NVMe-oF target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The subsystem.
    pub nqn: String,
    /// The namespace in it.
    pub nsid: u32,
    /// Where the subsystem listens first, if anywhere.
    pub address: Option<Address>,
    /// Who may connect; `None` for anyone.
    pub hosts: Option<Vec<String>>,
}

/// What an export is to be like.
#[derive(Clone, Debug)]
pub struct ExportRequest {
    /// Name of the subsystem.
    pub nqn: String,
    /// Where to listen.
    pub address: Address,
    /// Who may connect; `None` for anyone.
    pub hosts: Option<Vec<String>>,
}

impl ExportRequest {
    /// Whether that is what it asks for.
    fn asks_for(&self, exported: &Exported) -> bool {
        let place = |address: &Address| {
            (address.trtype.to_uppercase(), address.traddr.clone(), address.trsvcid.clone())
        };
        let hosts = |hosts: &Option<Vec<String>>| {
            hosts.as_ref().map(|hosts| hosts.iter().cloned().collect::<BTreeSet<_>>())
        };
        exported.nqn == self.nqn
            && exported.address.as_ref().map(place) == Some(place(&self.address))
            && hosts(&exported.hosts) == hosts(&self.hosts)
    }
}

thread_local! {
    /// Bdevs whose export is being made or ended.
    static CHANGING: RefCell<BTreeSet<String>> = RefCell::default();
}

/// The right to make or end the export of a bdev; given back when dropped.
struct Change(String);

impl Change {
    async fn take(bdev: &str) -> Result<Self, Failure> {
        let started = Instant::now();
        while !CHANGING.with_borrow_mut(|changing| changing.insert(bdev.to_owned())) {
            if started.elapsed() > CHANGE_TIME_MAX {
                let what = format!("an export of '{bdev}' is just being made or ended; try again");
                return Err(Failure::new(Sort::Busy, what));
            }
            executor::sleep(EVICT_PAUSE).await;
        }
        Ok(Self(bdev.to_owned()))
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        CHANGING.with_borrow_mut(|changing| changing.remove(&self.0));
    }
}

/// Where a bdev is exported, if it is.
pub fn find(bdev: &str) -> Option<Exported> {
    nvmf::subsystems().into_iter().find_map(|subsystem| {
        let namespaces = nvmf::namespaces(&subsystem.nqn).ok()?;
        let (nsid, _) = namespaces.into_iter().find(|(_, name)| name == bdev)?;
        Some(Exported {
            nqn: subsystem.nqn,
            nsid,
            address: subsystem.listen.into_iter().next(),
            hosts: match subsystem.hosts {
                Hosts::Any => None,
                Hosts::Only(mut hosts) => {
                    // SPDK lists them last one first, hence the other way round after a restart.
                    hosts.sort_unstable();
                    Some(hosts)
                }
            },
        })
    })
}

/// Exports a snapshot.
///
/// # Errors
/// See `presnap_snapshot_export` in docs/rpc.md.
pub async fn create(
    store: &StoreHost,
    known: &KnownVolume,
    record: &SnapshotRecord,
    request: ExportRequest,
) -> Result<Exported, Failure> {
    let bdev = super::snapshots::bdev_name(&known.name(), &record.name);
    if record.state == SnapshotState::Failed {
        let reason = record.reason.as_deref().unwrap_or("unknown");
        return Err(Failure::new(
            Sort::Invalid,
            format!("snapshot '{bdev}' failed ({reason}); delete it and take another"),
        ));
    }
    if !known.hosts.borrow().contains_key(&record.seq) {
        if let Some(Failure { sort, message }) = store.unusable() {
            return Err(Failure::new(sort, format!("snapshot '{bdev}': {message}")));
        }
        return Err(Failure::new(
            Sort::Busy,
            format!("snapshot '{bdev}' is not readable yet; wait until it is consistent"),
        ));
    }
    let change = Change::take(&bdev).await?;
    if let Some(exported) = find(&bdev) {
        if request.asks_for(&exported) {
            return Ok(exported);
        }
        // To answer with what is there would say that hosts are kept out who are not.
        return Err(Failure::new(
            Sort::Exists,
            format!(
                "snapshot '{bdev}' is exported in '{}' already, not as asked for now; unexport it \
                 first",
                exported.nqn
            ),
        ));
    }
    let uuid = record.uuid.into_bytes();
    let spec = SubsystemSpec {
        nqn: request.nqn.clone(),
        serial: format!("PS{}", &record.uuid.simple().to_string()[..16]),
        model: MODEL.to_owned(),
        max_namespaces: 1,
        hosts: match &request.hosts {
            None => Hosts::Any,
            Some(hosts) => Hosts::Only(hosts.clone()),
        },
        listen: vec![request.address.clone()],
        namespaces: vec![Namespace {
            bdev: bdev.clone(),
            nsid: 1,
            nguid: uuid,
            eui64: [0; 8],
            uuid,
        }],
    };
    let nqn = request.nqn.clone();
    let given_up = Rc::new(Cell::new(false));
    let making = executor::spawn(make(change, spec, request, Rc::clone(&given_up)));
    let Some(made) = executor::timeout(CHANGE_TIME_MAX, making).await else {
        given_up.set(true);
        return Err(Failure::new(
            Sort::TimedOut,
            format!(
                "the export of snapshot '{bdev}' in '{nqn}' was not there within {} s and is given up: a reactor \
                 does not answer (`presnap stats` and the log say which); nothing of it stays when it does",
                CHANGE_TIME_MAX.as_secs()
            ),
        ));
    };
    made?;
    find(&bdev).ok_or_else(|| {
        Failure::new(Sort::Io, format!("snapshot '{bdev}' is not in its subsystem; see the log"))
    })
}

async fn make(
    change: Change,
    spec: SubsystemSpec,
    request: ExportRequest,
    given_up: Rc<Cell<bool>>,
) -> Result<(), Failure> {
    let bdev = &change.0;
    if is_own(&request.nqn, 0) {
        // Somebody took its namespace out.
        nvmf::destroy(&request.nqn).await.map_err(|error| refused(bdev, &request, error))?;
    }
    if nvmf::exists(&request.nqn) {
        return Err(Failure::new(
            Sort::Exists,
            format!("subsystem '{}' exists; choose another nqn for '{bdev}'", request.nqn),
        ));
    }
    nvmf::create(&spec).await.map_err(|error| refused(bdev, &request, error))?;
    if given_up.get() {
        let undone = nvmf::destroy(&request.nqn).await;
        tracing::warn!(bdev, nqn = request.nqn, ?undone, "export that came too late is taken back");
    }
    Ok(())
}

fn refused(bdev: &str, request: &ExportRequest, error: Errno) -> Failure {
    let Address { trtype, traddr, trsvcid, .. } = &request.address;
    if error == Errno::PROTONOSUPPORT {
        return Failure::new(
            Sort::NotSupported,
            format!(
                "snapshot '{bdev}' cannot be exported over {trtype}: this SPDK has no such \
                 transport; use TCP, or build SPDK with it"
            ),
        );
    }
    let sort = match error {
        Errno::EXIST => Sort::Exists,
        Errno::NODEV => Sort::NoDevice,
        Errno::NOMEM => Sort::NoMemory,
        // For an address that it cannot listen at, SPDK gives whatever errno is left over.
        _ => Sort::Invalid,
    };
    Failure::new(
        sort,
        format!(
            "snapshot '{bdev}' cannot be exported in '{}' at {trtype} {traddr} port {trsvcid}: \
             {error}; check the address (one of this machine's, and a free port) and the NQN",
            request.nqn
        ),
    )
}

/// Whether the subsystem was made here and has this many namespaces.
fn is_own(nqn: &str, namespaces: usize) -> bool {
    let made_here = nvmf::subsystems().iter().any(|other| other.nqn == nqn && other.model == MODEL);
    made_here && nvmf::namespaces(nqn).is_ok_and(|found| found.len() == namespaces)
}

/// Takes a bdev that is about to be removed out of every subsystem. One that was made here for nothing
/// else goes with it.
///
/// SPDK does that by itself, but tries only once: when the subsystem is just being changed, for the
/// removal of another bdev from it, say, SPDK of 20.07 gives up and keeps the bdev open for ever.
pub async fn evict(bdev: &str) {
    let started = Instant::now();
    loop {
        let Some(exported) = find(bdev) else { return };
        let nqn = exported.nqn.clone();
        let leaving = executor::spawn(async move {
            if is_own(&exported.nqn, 1) {
                nvmf::destroy(&exported.nqn).await
            } else {
                nvmf::remove_ns(&exported.nqn, exported.nsid).await
            }
        });
        let Some(left) = executor::timeout(EVICT_TIME_MAX, leaving).await else {
            tracing::error!(
                bdev,
                nqn,
                "bdev does not leave its subsystem: commands have not ended"
            );
            return;
        };
        match left {
            Ok(()) => {}
            Err(error) if started.elapsed() > EVICT_TIME_MAX => {
                tracing::error!(bdev, nqn, %error, "bdev stays in its subsystem");
                return;
            }
            Err(_) => executor::sleep(EVICT_PAUSE).await,
        }
    }
}

/// Ends the export of a snapshot.
///
/// # Errors
/// See `presnap_snapshot_unexport` in docs/rpc.md.
pub async fn remove(bdev: &str) -> Result<(), Failure> {
    let change = Change::take(bdev).await?;
    let exported = find(bdev).ok_or_else(|| {
        Failure::new(Sort::NotFound, format!("snapshot '{bdev}' is not exported; nothing to end"))
    })?;
    let nqn = exported.nqn.clone();
    let ending = executor::spawn(async move {
        let _change = change;
        let namespaces = nvmf::namespaces(&exported.nqn).unwrap_or_default();
        if namespaces.len() == 1 {
            nvmf::destroy(&exported.nqn).await
        } else {
            // Somebody put other namespaces beside it.
            nvmf::remove_ns(&exported.nqn, exported.nsid).await
        }
    });
    match executor::timeout(CHANGE_TIME_MAX, ending).await {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => {
            Err(Failure::new(Sort::Io, format!("export '{nqn}' of '{bdev}' does not end: {error}")))
        }
        None => Err(Failure::new(
            Sort::TimedOut,
            format!(
                "export '{nqn}' of '{bdev}' has not ended within {} s: a host's command or a reactor does not come \
                 back; it ends when they do, and `presnap snapshot list` shows when",
                CHANGE_TIME_MAX.as_secs()
            ),
        )),
    }
}
