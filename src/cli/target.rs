//! The target: starts SPDK with presnap's volumes, stores and methods in it.

use std::fs;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::serve::{LogLevel, ServeOptions};
use crate::rpc::handlers;
use crate::spdk::app::{self, AppOptions};
use crate::spdk::watchdog;
use crate::volume::hooks;
use crate::volume::predictor::PREDICTOR_CPUS;
use crate::volume::store_host::CATALOG_CPUS;

/// Runs the target until it is told to stop.
///
/// # Errors
/// Why it could not start, or did not stop cleanly, in one line.
pub fn run(options: &ServeOptions) -> Result<(), String> {
    start_log(options.log_level);
    check_cores(&options.cores)?;
    let config = options.config.as_deref().map(read_config).transpose()?.flatten();
    check_machine(options.memory_mib)?;
    if let Some(cores) = &options.catalog_cores {
        let cpus = cores.0.iter().map(|&cpu| u32::from(cpu)).collect();
        // A process serves once.
        let _ = CATALOG_CPUS.set(cpus);
    }
    if let Some(cores) = &options.predictor_cores {
        let _ = PREDICTOR_CPUS.set(cores.0.iter().map(|&cpu| u32::from(cpu)).collect());
    }
    if let Some(config) = &config {
        let _ = hooks::CONFIGURED_MASTERS.set(masters(config));
    }
    handlers::register_all();
    hooks::install();
    let app_options = AppOptions {
        json_config: options.config.clone(),
        rpc_addr: Some(options.socket.clone()),
        reactor_mask: Some(options.cores.clone()),
        mem_mib: options.memory_mib,
        shm_id: options.shm_id,
        trace_entries: options.num_trace_entries,
        no_pci: options.no_pci,
        wait_for_rpc: options.wait_for_rpc,
        stop_within: (options.stop_seconds > 0)
            .then(|| Duration::from_secs(options.stop_seconds.into())),
        quiet: matches!(options.log_level, LogLevel::Error | LogLevel::Warn),
        env_args: options.hugepage_dir.as_ref().map(|dir| format!("--huge-dir={}", dir.display())),
        ..AppOptions::default()
    };
    let socket = Rc::new(options.socket.clone());
    let stall = Duration::from_millis(options.stall_ms.into());
    let started = move || {
        // Before the volumes, so that it ends after them.
        if !stall.is_zero() {
            let cpus = PREDICTOR_CPUS.get().or_else(|| CATALOG_CPUS.get());
            watchdog::start(stall, cpus.map(Vec::as_slice));
        }
        hooks::started();
        tracing::info!(socket = %socket.display(), "presnap is ready");
    };
    match app::run(&app_options, started) {
        Ok(0) => Ok(()),
        Ok(code) => Err(format!(
            "the target stopped with {code}; SPDK's messages above say why (a method of the \
             configuration: its error)"
        )),
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            Err(crate::store::chain(error))
        }
    }
}

/// A configuration, as JSON; `None` for a file that cannot be opened, of which is told later.
///
/// # Errors
/// What it holds is no JSON: of that SPDK says a number, and neither file nor place.
fn read_config(file: &Path) -> Result<Option<serde_json::Value>, String> {
    let Ok(bytes) = fs::read(file) else { return Ok(None) };
    let parsed = serde_json::from_slice(&without_comments(bytes));
    parsed.map(Some).map_err(|error| {
        format!(
            "configuration '{}' is no JSON: {error}; correct it, or write it again with save_config",
            file.display()
        )
    })
}

/// JSON with comments as SPDK takes them, `//` and `/* */`, with blanks in their place: all else stays
/// where it is.
fn without_comments(mut json: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    let mut in_string = false;
    while at < json.len() {
        match (json[at], json.get(at + 1)) {
            (b'\\', _) if in_string => at += 1,
            (b'"', _) => in_string = !in_string,
            (b'/', Some(b'/' | b'*')) if !in_string => {
                let rest = &json[at..];
                let len = if rest[1] == b'/' {
                    rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())
                } else {
                    // One without an end stays, and is an error.
                    rest.windows(2).skip(2).position(|pair| pair == b"*/").map_or(0, |end| end + 4)
                };
                for byte in &mut json[at..at + len] {
                    if *byte != b'\n' {
                        *byte = b' ';
                    }
                }
                at += len;
            }
            _ => {}
        }
        at += 1;
    }
    json
}

/// Masters of the volumes in a configuration.
fn masters(config: &serde_json::Value) -> Vec<String> {
    let subsystems = config["subsystems"].as_array().into_iter().flatten();
    subsystems
        .filter_map(|subsystem| subsystem["config"].as_array())
        .flatten()
        .filter(|call| call["method"] == "bdev_presnap_create")
        .filter_map(|call| call["params"]["base_bdev"].as_str().map(str::to_owned))
        .collect()
}

/// Refuses cores that are not there, to which DPDK answers with a page about its own options.
fn check_cores(cores: &str) -> Result<(), String> {
    let folder = Path::new("/sys/devices/system/cpu");
    let missing: Vec<String> = super::serve::cores_in(cores)
        .iter()
        .filter(|core| !folder.join(format!("cpu{core}/topology")).exists())
        .map(u16::to_string)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let there = fs::read_to_string(folder.join("online")).unwrap_or_default();
    Err(format!(
        "--cores {cores} names cores that are not there: {}; this machine has {}, name some of \
         those, such as --cores 0x1",
        missing.join(", "),
        there.trim()
    ))
}

/// Refuses what SPDK would refuse in a page of messages none of which says what to do.
fn check_machine(memory_mib: Option<u32>) -> Result<(), String> {
    let uid = fs::metadata("/proc/self").map_or(0, |of_this_process| of_this_process.uid());
    // With an IOMMU, SPDK can do without physical addresses.
    let iommu = fs::read_dir("/sys/class/iommu").is_ok_and(|mut all| all.next().is_some());
    if uid != 0 && !iommu {
        return Err("SPDK works with physical addresses, which only root may see; run the same \
                    command as root (sudo presnap serve ...)"
            .to_owned());
    }
    let (free_mib, page_kib) = hugepages();
    let wanted_mib = u64::from(memory_mib.unwrap_or(1));
    if free_mib >= wanted_mib {
        return Ok(());
    }
    let pages_mib = u64::from(memory_mib.unwrap_or(MEMORY_MIB_USUAL));
    let more = ((pages_mib - free_mib) * 1024).div_ceil(page_kib);
    let count = format!("/sys/kernel/mm/hugepages/hugepages-{page_kib}kB/nr_hugepages");
    let now: u64 = fs::read_to_string(&count)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or_default();
    let lack = match memory_mib {
        Some(_) => format!("{wanted_mib} MiB of hugepages are needed and {free_mib} MiB are free"),
        None => format!("no hugepages are free; {pages_mib} MiB serve a few volumes well"),
    };
    Err(format!("{lack}; as root: echo {} > {count}, then start again", now + more))
}

/// What a target with a few volumes is well served with, in MiB.
const MEMORY_MIB_USUAL: u32 = 1024;

/// Free hugepages of all sizes in MiB, and the smallest size in KiB.
fn hugepages() -> (u64, u64) {
    let (mut free_kib, mut least_kib) = (0, u64::MAX);
    for entry in fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name.strip_prefix("hugepages-").and_then(|name| name.strip_suffix("kB"));
        let Some(page_kib) = size.and_then(|size| size.parse::<u64>().ok()) else { continue };
        let free = fs::read_to_string(entry.path().join("free_hugepages")).unwrap_or_default();
        free_kib += free.trim().parse::<u64>().unwrap_or_default() * page_kib;
        least_kib = least_kib.min(page_kib);
    }
    (free_kib / 1024, if least_kib == u64::MAX { 2048 } else { least_kib })
}

fn start_log(level: LogLevel) {
    let level = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Notice | LogLevel::Info => "info",
        LogLevel::Debug => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    // Only the first subscriber of a process counts.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_of_a_configuration_are_blanks() {
        let json = br#"{ // "a
 "b\"//": "/* no */", /* "c":
 */ "d": 1 }"#;
        let plain = without_comments(json.to_vec());
        assert_eq!(plain.len(), json.len());
        let value: serde_json::Value = serde_json::from_slice(&plain).expect("JSON");
        assert_eq!(value, serde_json::json!({"b\"//": "/* no */", "d": 1}));
        for bad in ["{} /* ", "{\"a\": \"", "/", "\"\\"] {
            let plain = without_comments(bad.as_bytes().to_vec());
            assert!(serde_json::from_slice::<serde_json::Value>(&plain).is_err(), "{bad}");
        }
    }
}
