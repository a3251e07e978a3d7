//! Links SPDK and DPDK statically.
//!
//! Every archive is linked whole: bdev modules, transports, subsystems, socket layers and RPC
//! methods register themselves in constructors and would silently vanish otherwise.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Archives of an SPDK tree that presnap does not want.
/// - `ut_mock`: replaces functions for SPDK's own unit tests.
/// - `sock_uring`: registers above the posix sockets in 20.07, where it was experimental.
/// - the rest: protocols a block target over NVMe-oF has no use for; each drags in libraries.
const UNWANTED: [&str; 13] = [
    "ut_mock",
    "ut",
    "sock_uring",
    "event_iscsi",
    "iscsi",
    "event_scsi",
    "scsi",
    "event_vhost",
    "event_vhost_blk",
    "event_vhost_scsi",
    "vhost",
    "rte_vhost",
    "fuse_dispatcher",
];

/// What SPDK's environment layer uses of DPDK, for trees that do not say; those there are linked.
const DPDK: [&str; 22] = [
    "argparse",
    "bus_pci",
    "bus_vdev",
    "cryptodev",
    "eal",
    "ethdev",
    "hash",
    "kvargs",
    "log",
    "mbuf",
    "mempool",
    "mempool_ring",
    "meter",
    "net",
    "pci",
    "pmu",
    "power",
    "rcu",
    "ring",
    "stack",
    "telemetry",
    "timer",
];

/// System libraries, where the tree does not name them itself (20.07 makes no pkg-config files).
const SYSTEM: [&str; 9] = ["numa", "dl", "uring", "rt", "uuid", "ssl", "crypto", "aio", "m"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_SPDK").is_none() {
        return;
    }
    let Some(spdk) = env::var_os("DEP_PRESNAP_SPDK_DIR").map(PathBuf::from) else {
        return;
    };
    let lib = spdk.join("build/lib");
    println!("cargo::rerun-if-changed={}", lib.display());

    println!("cargo::rustc-link-search=native={}", lib.display());
    for name in archives(&lib, "libspdk_") {
        if !UNWANTED.contains(&name.as_str()) {
            link_whole(&format!("spdk_{name}"));
        }
    }

    // Newer trees say what they use of DPDK, and where it is when it is not their own.
    let named = pkg_config_words(&lib, "spdk_dpdklibs");
    let dpdk = named
        .iter()
        .find_map(|word| word.strip_prefix("-L"))
        .map_or_else(|| spdk.join("dpdk/build/lib"), PathBuf::from);
    println!("cargo::rustc-link-search=native={}", dpdk.display());
    for name in archives(&dpdk, "librte_") {
        let wanted = if named.is_empty() {
            DPDK.contains(&name.as_str())
        } else {
            named.contains(&format!("-lrte_{name}"))
        };
        if wanted {
            link_whole(&format!("rte_{name}"));
        }
    }

    for (dir, name) in [("isa-l/.libs", "isal"), ("isa-l-crypto/.libs", "isal_crypto")] {
        let dir = spdk.join(dir);
        if dir.join(format!("lib{name}.a")).exists() {
            println!("cargo::rustc-link-search=native={}", dir.display());
            println!("cargo::rustc-link-lib=static:-bundle={name}");
        }
    }
    for name in system_libs(&lib) {
        println!("cargo::rustc-link-lib={name}");
    }
}

fn link_whole(name: &str) {
    // Not bundled: the rlib would swallow the archives otherwise.
    println!("cargo::rustc-link-lib=static:-bundle,+whole-archive={name}");
}

/// Names, without prefix and suffix, of the archives in a folder, sorted.
fn archives(dir: &Path, prefix: &str) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return BTreeSet::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|file| Some(file.strip_prefix(prefix)?.strip_suffix(".a")?.to_owned()))
        .collect()
}

/// Words of the `Libs` lines of one of the tree's own pkg-config files, if it has that.
fn pkg_config_words(lib: &Path, name: &str) -> BTreeSet<String> {
    let path = lib.join("pkgconfig").join(name).with_extension("pc");
    fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.strip_prefix("Libs"))
        .flat_map(str::split_whitespace)
        .map(str::to_owned)
        .collect()
}

/// What the tree's `spdk_syslibs.pc` names, else what 20.07 needs.
fn system_libs(lib: &Path) -> Vec<String> {
    let named: Vec<String> = pkg_config_words(lib, "spdk_syslibs")
        .iter()
        .filter_map(|word| word.strip_prefix("-l"))
        // Linked above, from the tree.
        .filter(|name| !name.starts_with("isal"))
        .map(str::to_owned)
        .collect();
    if named.is_empty() { SYSTEM.iter().map(|&name| name.to_owned()).collect() } else { named }
}
