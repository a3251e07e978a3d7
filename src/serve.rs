//! The target: starts SPDK with presnap's volumes, stores and methods in it.

use std::io::IsTerminal;
use std::rc::Rc;

use tracing_subscriber::EnvFilter;

use crate::cli::{LogLevel, ServeOptions};
use crate::rpc::handlers;
use crate::spdk::app::{self, AppOptions};
use crate::volume::hooks;
use crate::volume::store_host::CATALOG_CPUS;

/// Runs the target until it is told to stop.
///
/// # Errors
/// Why it could not start, or did not stop cleanly, in one line.
pub fn run(options: &ServeOptions) -> Result<(), String> {
    start_log(options.log_level);
    if let Some(cores) = &options.catalog_cores {
        let cpus = cores.0.iter().map(|&cpu| u32::from(cpu)).collect();
        // A process serves once.
        let _ = CATALOG_CPUS.set(cpus);
    }
    handlers::register_all();
    hooks::install();
    let app_options = AppOptions {
        json_config: options.config.clone(),
        rpc_addr: Some(options.socket.clone()),
        reactor_mask: Some(options.cores.clone()),
        mem_mib: options.memory_mib,
        shm_id: options.shm_id,
        no_pci: options.no_pci,
        wait_for_rpc: options.wait_for_rpc,
        quiet: matches!(options.log_level, LogLevel::Error | LogLevel::Warn),
        env_args: options.hugepage_dir.as_ref().map(|dir| format!("--huge-dir={}", dir.display())),
        ..AppOptions::default()
    };
    let socket = Rc::new(options.socket.clone());
    let started = move || {
        hooks::started();
        tracing::info!(socket = %socket.display(), "presnap is ready");
    };
    match app::run(&app_options, started) {
        Ok(0) => Ok(()),
        Ok(code) => Err(format!(
            "the target stopped with {code}; SPDK's messages above say why (hugepages: \
             scripts/setup.sh --help; a method of the configuration: its error)"
        )),
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            Err(crate::store::chain(error))
        }
    }
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
