//! What a contender is made of: devices, and what it puts on them. Only says what to call.

use serde_json::json;

use super::contender::Contender;
use super::device::Call;
use super::scenario::{Run, Scenario, Transport};

/// Name of the presnap volume and of the logical volume.
pub const VOLUME: &str = "vol";
/// Name of the logical volume store.
const LVSTORE: &str = "lvs";
/// Name of presnap's store.
pub const STORE: &str = "store";
/// Metadata of an lvol store, generously.
const LVSTORE_MIB: u64 = 64;
/// Superblocks and catalog of a presnap store, generously.
const CATALOG_MIB: u64 = 256;
/// What a target takes beside memory bdevs: buffers of the NVMe-oF target and of bdevs.
const TARGET_MIB: u64 = 640;

/// A contender on its devices.
#[derive(Debug)]
pub struct Stack {
    /// What to call, in order.
    pub calls: Vec<Call>,
    /// The bdev for fio.
    pub top: String,
    /// The bdev of the master device.
    pub master: String,
    /// The bdev of the store's device, if the contender uses one.
    pub store: Option<String>,
    /// Hugepage memory for the process that holds all this.
    pub memory_mib: u64,
}

impl Stack {
    /// The stack of `contender` in `scenario`.
    pub fn of(scenario: &Scenario, contender: &Contender) -> Self {
        let volume_mib = scenario.volume_mib;
        let devices = &scenario.devices;
        let snapshots = match &scenario.run {
            Run::Load(run) => run.snapshots_at_s.len() as u64,
            _ => 1,
        };
        let master_mib = match contender {
            Contender::Lvol { .. } => volume_mib * (snapshots + 1) + LVSTORE_MIB,
            _ => volume_mib,
        };
        let master = devices.device(&devices.master, "master", master_mib);
        let mut calls = master.calls;
        let mut memory_mib = master.memory_mib + TARGET_MIB;
        let store_mib = match contender {
            Contender::Bare | Contender::Passthru => None,
            Contender::Lvol { copy, .. } => copy.then_some(volume_mib),
            // A base snapshot, those of the run, and staged copies.
            Contender::Presnap { .. } => {
                Some(devices.store_mib.unwrap_or(volume_mib * (snapshots + 2) + CATALOG_MIB))
            }
        };
        let store = store_mib.map(|mib| {
            let store = devices.device(&devices.store, "store", mib);
            calls.extend(store.calls);
            memory_mib += store.memory_mib;
            store.bdev
        });
        let top = top(scenario, contender, &master.bdev, store.as_deref(), &mut calls);
        if scenario.transport == Transport::Direct {
            memory_mib = master.memory_mib + 256;
        }
        Self { calls, top, master: master.bdev, store, memory_mib }
    }
}

/// Adds the calls for what is on the devices; the answer is the bdev for fio.
fn top(
    scenario: &Scenario,
    contender: &Contender,
    master: &str,
    store: Option<&str>,
    calls: &mut Vec<Call>,
) -> String {
    match contender {
        Contender::Bare => master.to_owned(),
        Contender::Passthru => {
            let params = json!({"base_bdev_name": master, "name": "passthru"});
            calls.push(Call::new("bdev_passthru_create", params));
            "passthru".to_owned()
        }
        Contender::Presnap { policy } => {
            // A scenario may have been run on this device before.
            let mut params = json!({"name": STORE, "bdev": store, "force": true});
            if let Some(kib) = scenario.volume.get("chunk_size_kib") {
                params["slot_size_kib"] = kib.clone();
            }
            calls.push(Call::new("presnap_store_create", params));
            calls.push(volume_call(scenario, master, policy));
            VOLUME.to_owned()
        }
        Contender::Lvol { cluster_mib, thin, .. } => {
            let params = json!({"bdev_name": master, "lvs_name": LVSTORE,
                "cluster_sz": cluster_mib << 20, "clear_method": "none"});
            calls.push(Call::new("bdev_lvol_create_lvstore", params));
            let params = json!({"lvs_name": LVSTORE, "lvol_name": VOLUME,
                "size": scenario.volume_mib << 20, "thin_provision": thin, "clear_method": "none"});
            calls.push(Call::new("bdev_lvol_create", params));
            lvol_name(VOLUME)
        }
    }
}

/// The call that makes the presnap volume.
pub fn volume_call(scenario: &Scenario, master: &str, policy: &str) -> Call {
    let mut params = json!({"name": VOLUME, "base_bdev": master, "store": STORE, "policy": policy});
    for (key, value) in &scenario.volume {
        params[key] = value.clone();
    }
    Call::new("bdev_presnap_create", params)
}

/// The bdev name of a logical volume.
pub fn lvol_name(name: &str) -> String {
    format!("{LVSTORE}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario() -> Scenario {
        let text = r#"{"title": "t", "about": "a", "volume_mib": 64,
            "volume": {"chunk_size_kib": 64}, "contenders": ["bare"],
            "run": {"kind": "load", "load": {"rw": "randwrite"}, "seconds": 20,
                    "snapshots_at_s": [10]}}"#;
        Scenario::parse("test", text).unwrap()
    }

    fn methods(stack: &Stack) -> Vec<&'static str> {
        stack.calls.iter().map(|call| call.method).collect()
    }

    #[test]
    fn each_contender_has_what_it_needs() {
        let scenario = scenario();
        let bare = Stack::of(&scenario, &Contender::Bare);
        assert_eq!(methods(&bare), ["bdev_malloc_create"]);
        assert_eq!((bare.store, bare.memory_mib), (None, 64 + TARGET_MIB));

        let presnap = Stack::of(&scenario, &"presnap:lstm".parse().unwrap());
        let expected = [
            "bdev_malloc_create",
            "bdev_malloc_create",
            "presnap_store_create",
            "bdev_presnap_create",
        ];
        assert_eq!(methods(&presnap), expected);
        assert_eq!(presnap.calls[2].params["slot_size_kib"], 64);
        assert_eq!(presnap.calls[3].params["policy"], "lstm");
        assert_eq!(presnap.calls[3].params["chunk_size_kib"], 64);

        let lvol = Stack::of(&scenario, &"lvol:4MiB:thin".parse().unwrap());
        assert_eq!(lvol.top, "lvs/vol");
        assert_eq!(lvol.store, None);
        assert_eq!(lvol.calls[1].params["cluster_sz"], 4 << 20);
        // Room for every cluster to be written anew after the snapshot.
        assert_eq!(lvol.memory_mib, 64 * 2 + LVSTORE_MIB + TARGET_MIB);
        let copied = Stack::of(&scenario, &"lvol:4MiB:copy".parse().unwrap());
        assert_eq!(copied.store.as_deref(), Some("store-base"));
    }
}
