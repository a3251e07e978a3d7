//! Parameters of each method as types. [`super::table`] is where they are described and bounded;
//! a test compares the two.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::error::RpcError;

/// What `presnap_snapshot_create` waits for before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// Until the snapshot is readable.
    Consistent,
    /// Until the snapshot needs nothing of the master any more.
    #[default]
    Complete,
}

/// What `presnap_store_scrub` does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScrubAction {
    /// Begins a scrub.
    #[default]
    Start,
    /// Ends the one under way.
    Stop,
    /// Only says how it stands.
    Status,
}

/// When staged copies are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyName {
    /// Never: all copying is done after the cut.
    Off,
    /// When a dirty chunk was not written for `idle_ms`.
    #[default]
    Idle,
    /// As late before the next snapshot as copying takes.
    Deadline,
    /// When a Poisson process with the chunk's decayed rate says that the copy will be of use.
    Rate,
    /// When the same says that the chunk will be written.
    Likely,
    /// When the LSTM says that the copy will be of use.
    Lstm,
}

impl PolicyName {
    /// The name as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Idle => "idle",
            Self::Deadline => "deadline",
            Self::Rate => "rate",
            Self::Likely => "likely",
            Self::Lstm => "lstm",
        }
    }
}

/// A number from 0 to 1, in steps of 1/10,000: written and read, it stays what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "f64", into = "f64")]
pub struct Share(u16);

/// Steps from 0 to 1.
const SHARE_STEPS: f64 = 1e4;

impl From<f64> for Share {
    #[allow(clippy::cast_sign_loss, reason = "clamped to 0 and above")]
    fn from(share: f64) -> Self {
        Self((share.clamp(0.0, 1.0) * SHARE_STEPS).round() as u16)
    }
}

impl From<Share> for f64 {
    fn from(share: Share) -> Self {
        f64::from(share.0) / SHARE_STEPS
    }
}

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident = $method:literal {
        $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
    })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
            #[serde(deny_unknown_fields)]
            pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        )*

        /// Checked parameters of one call.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Params {
            $(#[doc = concat!("Of `", $method, "`.")] $name($name),)*
        }

        impl Params {
            /// The methods that have parameter types, in the order of this file.
            pub const METHODS: &'static [&'static str] = &[$($method,)*];

            /// The method's name.
            pub fn method(&self) -> &'static str {
                match self { $(Self::$name(_) => $method,)* }
            }

            /// The parameters as a JSON object, absent ones left out: what a client sends and
            /// what a saved configuration holds.
            pub fn to_json(&self) -> Value {
                let mut value = match self {
                    $(Self::$name(params) => serde_json::to_value(params),)*
                }
                .expect("parameter types hold nothing that JSON cannot");
                if let Value::Object(map) = &mut value {
                    map.retain(|_, value| !value.is_null());
                }
                value
            }

            /// Types what the table has checked. `None`: no such method.
            pub(super) fn from_checked(
                method: &str,
                value: Value,
            ) -> Option<Result<Self, RpcError>> {
                match method {
                    $($method => Some(serde_json::from_value(value).map(Self::$name)),)*
                    _ => None,
                }
                .map(|typed| typed.map_err(|error| RpcError::invalid(format!("{method}: {error}"))))
            }
        }
    };
}

params! {
    /// Parameters of `presnap_store_create`.
    StoreCreate = "presnap_store_create" {
        /// Name of the new store.
        name: String,
        /// The bdev to format.
        bdev: String,
        /// Bytes per slot, in KiB; the chunk size of every volume that uses the store.
        slot_size_kib: u32,
        /// Whether to overwrite what the bdev holds.
        force: bool,
    }
    /// Parameters of `presnap_store_load`: at least one of the two is there.
    StoreLoad = "presnap_store_load" {
        /// The name the store must have.
        name: Option<String>,
        /// The bdev it is on.
        bdev: Option<String>,
    }
    /// Parameters of `presnap_store_unload`: at least one of the two is there.
    StoreUnload = "presnap_store_unload" {
        /// The store's name.
        name: Option<String>,
        /// The bdev it is on.
        bdev: Option<String>,
    }
    /// Parameters of `presnap_store_delete`: at least one of the two is there.
    StoreDelete = "presnap_store_delete" {
        /// The store's name.
        name: Option<String>,
        /// The bdev it is on.
        bdev: Option<String>,
    }
    /// Parameters of `presnap_get_stores`.
    GetStores = "presnap_get_stores" {
        /// Only the store with this name.
        name: Option<String>,
        /// Only the store on this bdev.
        bdev: Option<String>,
    }
    /// Parameters of `presnap_store_scrub`: at least one of `name` and `bdev` is there.
    StoreScrub = "presnap_store_scrub" {
        /// The store's name.
        name: Option<String>,
        /// The bdev it is on.
        bdev: Option<String>,
        /// What to do.
        action: ScrubAction,
        /// Limit for reading, in MiB/s; 0: none.
        mbytes_per_sec: u64,
        /// Whether to answer only when the scrub has ended.
        wait: bool,
    }
    /// Parameters of `bdev_presnap_create`.
    VolumeCreate = "bdev_presnap_create" {
        /// Name of the volume bdev.
        name: String,
        /// The master.
        base_bdev: String,
        /// Name of the store.
        store: String,
        /// Bytes per chunk, in KiB; absent: the store's slot size.
        chunk_size_kib: Option<u32>,
        /// When staged copies are made.
        policy: PolicyName,
        /// Rest of a chunk before policy `idle` stages it.
        idle_ms: u64,
        /// Score from which on a chunk is staged; 0: moved by itself.
        threshold: Share,
        /// Time between snapshots; 0: not known.
        window_ms: u64,
        /// Share of the store's slots that staged copies of this volume may take.
        staging_limit_percent: u8,
        /// Aim for the time from a create request to complete; 0: none.
        snapshot_target_ms: u64,
        /// Limit for copying, in MiB/s; 0: none.
        copy_mbytes_per_sec: u64,
    }
    /// Parameters of `bdev_presnap_delete`.
    VolumeDelete = "bdev_presnap_delete" {
        /// The volume.
        name: String,
    }
    /// Parameters of `presnap_snapshot_create`.
    SnapshotCreate = "presnap_snapshot_create" {
        /// The volume.
        volume: String,
        /// Name of the new snapshot.
        name: String,
        /// Chosen by the caller, so that a repeated request is known as such.
        uuid: Option<Uuid>,
        /// What to wait for.
        wait: Wait,
        /// Deadline for what is awaited, from the request; 0: none.
        timeout_ms: u64,
    }
    /// Parameters of `presnap_get_snapshots`.
    GetSnapshots = "presnap_get_snapshots" {
        /// Only of this volume.
        volume: Option<String>,
        /// Only with this name.
        name: Option<String>,
    }
    /// Parameters of `presnap_snapshot_delete`.
    SnapshotDelete = "presnap_snapshot_delete" {
        /// The volume.
        volume: String,
        /// The snapshot.
        name: String,
    }
    /// Parameters of `presnap_snapshot_export`.
    SnapshotExport = "presnap_snapshot_export" {
        /// The volume.
        volume: String,
        /// The snapshot.
        name: String,
        /// NQN of the subsystem; absent: see [`super::default_nqn`].
        nqn: Option<String>,
        /// Transport type, in upper case.
        trtype: String,
        /// Address to listen on.
        traddr: String,
        /// Port or service to listen on.
        trsvcid: String,
        /// Hosts that may connect.
        hosts: Option<Vec<String>>,
        /// Every host may connect.
        allow_any_host: bool,
    }
    /// Parameters of `presnap_snapshot_unexport`.
    SnapshotUnexport = "presnap_snapshot_unexport" {
        /// The volume.
        volume: String,
        /// The snapshot.
        name: String,
    }
    /// Parameters of `presnap_get_stats`.
    GetStats = "presnap_get_stats" {
        /// Only of this volume.
        volume: Option<String>,
        /// Whether to start counting anew after this reply.
        reset: bool,
    }
    /// Parameters of `presnap_get_chunks`.
    GetChunks = "presnap_get_chunks" {
        /// The volume.
        volume: String,
        /// First chunk looked at.
        start: u64,
        /// Chunks answered at most.
        count: u32,
        /// Whether to leave out chunks without a staged copy.
        staged_only: bool,
    }
    /// Parameters of `presnap_set_policy`; what is absent stays as it is.
    SetPolicy = "presnap_set_policy" {
        /// The volume.
        volume: String,
        /// When staged copies are made.
        policy: Option<PolicyName>,
        /// Rest of a chunk before policy `idle` stages it.
        idle_ms: Option<u64>,
        /// Score from which on a chunk is staged; 0: moved by itself.
        threshold: Option<Share>,
        /// Time between snapshots; 0: not known.
        window_ms: Option<u64>,
        /// Share of the store's slots that staged copies of this volume may take.
        staging_limit_percent: Option<u8>,
        /// Aim for the time from a create request to complete; 0: none.
        snapshot_target_ms: Option<u64>,
        /// Limit for copying, in MiB/s; 0: none.
        copy_mbytes_per_sec: Option<u64>,
    }
}
