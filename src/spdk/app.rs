//! The SPDK application: start, shutdown.

use std::ffi::{CString, NulError, c_int, c_void};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use spdk_sys as sys;

use super::executor::{self, LocalFuture};
use super::thread::Thread;
use super::{bdev, bdev_module, guard, rpc, stopping};

/// SPDK's own default.
pub const RPC_ADDR_DEFAULT: &str = "/var/tmp/spdk.sock";

/// How to start SPDK.
#[allow(clippy::struct_excessive_bools, reason = "independent switches, as SPDK has them")]
#[derive(Clone, Debug)]
pub struct AppOptions {
    /// Name of the application in logs.
    pub name: String,
    /// SPDK JSON configuration to load.
    pub json_config: Option<PathBuf>,
    /// Unix socket of the JSON-RPC server, mode 0600; `None` for no server.
    pub rpc_addr: Option<PathBuf>,
    /// Mask ("0x3") or list ("[0,1]") of CPUs that get a reactor; default CPU 0.
    pub reactor_mask: Option<String>,
    /// Hugepage memory; default SPDK's: all there is.
    pub mem_mib: Option<u32>,
    /// Shared memory id, for SPDK's tracing and for secondary processes.
    pub shm_id: Option<i32>,
    /// Entries per core of the file in /dev/shm that SPDK's tracepoints write to, a power of two; 0
    /// for no file, and then no tracing. Default SPDK's: 32,768, a file of some 130 MiB, which
    /// outlives a process that is killed.
    pub trace_entries: Option<u32>,
    /// Leave PCI devices alone.
    pub no_pci: bool,
    /// No hugepages at all (SPDK 24.01 and later).
    pub no_huge: bool,
    /// One file per hugepage segment.
    pub single_file_segments: bool,
    /// Wait for `framework_start_init` before initializing subsystems.
    pub wait_for_rpc: bool,
    /// Let SPDK log warnings and errors only.
    pub quiet: bool,
    /// How long a stop may take before the process is ended; `None`: as long as it takes.
    pub stop_within: Option<Duration>,
    /// More arguments for DPDK's environment layer.
    pub env_args: Option<String>,
}

impl Default for AppOptions {
    fn default() -> Self {
        Self {
            name: "presnap".to_owned(),
            json_config: None,
            rpc_addr: Some(RPC_ADDR_DEFAULT.into()),
            reactor_mask: None,
            mem_mib: None,
            shm_id: None,
            trace_entries: None,
            no_pci: false,
            no_huge: false,
            single_file_segments: false,
            wait_for_rpc: false,
            quiet: false,
            stop_within: None,
            env_args: None,
        }
    }
}

/// Why the app did not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// SPDK's environment can be set up once per process.
    #[error("SPDK was started in this process before")]
    Again,
    /// An option holds a zero byte.
    #[error("an option holds a zero byte")]
    Option(#[from] NulError),
    /// Another process serves RPC there.
    #[error("RPC socket {0} is in use by another process; choose another with --socket")]
    RpcInUse(PathBuf),
    /// Nothing can be made there.
    #[error(
        "the folder of RPC socket {0} cannot be used; make it, or choose another socket with --socket"
    )]
    RpcFolder(PathBuf, #[source] std::io::Error),
    /// The configuration cannot be read.
    #[error("configuration {0} cannot be read")]
    Config(PathBuf, #[source] std::io::Error),
}

/// On the app thread, when everything is up.
type OnStart = Box<dyn FnOnce()>;
type Hook = Box<dyn FnOnce() -> LocalFuture<()> + Send>;

static SHUTDOWN_HOOKS: Mutex<Vec<Hook>> = Mutex::new(Vec::new());
static STOPPING: AtomicBool = AtomicBool::new(false);
/// As [`run`] was told.
static STOP_WITHIN: OnceLock<Option<Duration>> = OnceLock::new();

fn shutdown_hooks() -> MutexGuard<'static, Vec<Hook>> {
    SHUTDOWN_HOOKS.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Start {
    then: Option<OnStart>,
    rpc_addr: Option<PathBuf>,
    /// Other processes may find this one's hugepages by name.
    shares_memory: bool,
}

static CALLS: sys::psr_calls = sys::psr_calls {
    psr_app_started: Some(psr_app_started),
    psr_app_shutdown: Some(psr_app_shutdown),
    psr_desc_event: Some(bdev::psr_desc_event),
    psr_module_init: Some(psr_module_init),
    psr_module_fini_start: Some(bdev_module::psr_module_fini_start),
    psr_module_fini: Some(bdev_module::psr_module_fini),
    psr_module_config_json: Some(bdev_module::psr_module_config_json),
    psr_examine_config: Some(bdev_module::psr_examine_config),
    psr_examine_disk: Some(bdev_module::psr_examine_disk),
    psr_rpc: Some(rpc::psr_rpc),
};

/// Runs SPDK on this thread until [`stop`], and gives the code passed to it. SPDK's own failures to
/// start are codes other than zero, too; it has logged the reason then.
///
/// `on_start` runs on the app thread after the configuration is loaded.
///
/// # Errors
/// When SPDK was not even tried.
pub fn run(options: &AppOptions, on_start: impl FnOnce() + 'static) -> Result<i32, AppError> {
    static RAN: AtomicBool = AtomicBool::new(false);

    let c_string = |text: &str| CString::new(text);
    let path = |path: &Path| c_string(&path.to_string_lossy());
    if let Some(config) = &options.json_config {
        // SPDK only says that it could not; the system says why.
        File::open(config).map_err(|error| AppError::Config(config.clone(), error))?;
    }
    if let Some(addr) = &options.rpc_addr {
        check_rpc_addr(addr)?;
    }
    let name = c_string(&options.name)?;
    let json_config = options.json_config.as_deref().map(path).transpose()?;
    let rpc_addr = options.rpc_addr.as_deref().map(path).transpose()?;
    let reactor_mask = options.reactor_mask.as_deref().map(c_string).transpose()?;
    let env_args = options.env_args.as_deref().map(c_string).transpose()?;
    if RAN.swap(true, Ordering::SeqCst) {
        return Err(AppError::Again);
    }

    let _ = STOP_WITHIN.set(options.stop_within);

    let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |t| t.as_ptr());
    let raw = sys::psc_app_opts {
        name: name.as_ptr(),
        json_config: pointer(&json_config),
        rpc_addr: pointer(&rpc_addr),
        reactor_mask: pointer(&reactor_mask),
        env_args: pointer(&env_args),
        mem_mib: options.mem_mib.map_or(-1, |mib| i32::try_from(mib).unwrap_or(i32::MAX)),
        shm_id: options.shm_id.unwrap_or(-1),
        trace_entries: options.trace_entries.map_or(-1, i64::from),
        no_pci: options.no_pci,
        no_huge: options.no_huge,
        single_file_segments: options.single_file_segments,
        delay_subsystem_init: options.wait_for_rpc,
        quiet: options.quiet,
    };
    let shares_memory = options.shm_id.is_some();
    let mut start =
        Start { then: Some(Box::new(on_start)), rpc_addr: options.rpc_addr.clone(), shares_memory };
    // SAFETY: the table is static. All strings live until the call returns, as does `start`, which
    // only psr_app_started() uses, during the call and on an SPDK thread of this OS thread.
    let rc = unsafe {
        sys::psc_set_rust(&raw const CALLS);
        // Sockets and files SPDK makes are for this user only.
        sys::psc_umask_private();
        sys::psc_app_run(&raw const raw, (&raw mut start).cast())
    };
    stopping::end();
    if !shares_memory {
        remove_hugepage_files();
    }
    Ok(rc)
}

/// Removes the names of this process's hugepages, which else keep the memory until another SPDK process
/// starts. It stays mapped.
///
/// DPDK's `--huge-unlink` is not the same: in DPDK 20.05 memory that was given back and is taken once more
/// cannot be had then, for the name that it would unlink is gone.
fn remove_hugepage_files() {
    // As SPDK names them.
    let prefix = format!("spdk_pid{}map_", std::process::id());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(folder), Some("hugetlbfs")) = (words.next(), words.next()) else { continue };
        for file in fs::read_dir(folder).into_iter().flatten().flatten() {
            if file.file_name().to_string_lossy().starts_with(&prefix)
                && let Err(error) = fs::remove_file(file.path())
            {
                tracing::warn!(%error, file = %file.path().display(), "hugepage not given back");
            }
        }
    }
}

/// SPDK of 20.07 logs an error and runs on without RPC when another process has the socket, or there is no place for it.
fn check_rpc_addr(addr: &Path) -> Result<(), AppError> {
    // An address of TCP has none.
    if let Some(folder) = addr.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::read_dir(folder).map_err(|error| AppError::RpcFolder(addr.to_owned(), error))?;
    }
    let mut lock = addr.as_os_str().to_owned();
    lock.push(".lock");
    match OpenOptions::new().read(true).open(&lock).map(|file| file.try_lock()) {
        Ok(Err(fs::TryLockError::WouldBlock)) => Err(AppError::RpcInUse(addr.to_owned())),
        _ => Ok(()),
    }
}

extern "C" fn psr_app_started(ctx: *mut c_void) {
    guard("start", || {
        // SAFETY: `start` of run(), which waits for SPDK to end; called once.
        let start = unsafe { &mut *ctx.cast::<Start>() };
        if let Some(addr) = &start.rpc_addr
            && let Err(error) = fs::set_permissions(addr, fs::Permissions::from_mode(0o600))
        {
            tracing::error!(%error, socket = %addr.display(), "no RPC socket");
        }
        // Now as well as at the end, which a process that is killed does not come to.
        if !start.shares_memory {
            remove_hugepage_files();
        }
        if let Some(then) = start.then.take() {
            then();
        }
    });
}

/// SPDK has its signal handlers in place by now, and the first device may hang after this.
extern "C" fn psr_module_init() -> c_int {
    guard("stop", || {
        let within = STOP_WITHIN.get().copied().flatten();
        if let Err(error) = stopping::install(within) {
            tracing::warn!(%error, "a stop that hangs is not ended");
        }
    });
    bdev_module::psr_module_init()
}

/// SIGINT or SIGTERM came.
extern "C" fn psr_app_shutdown() {
    guard("shutdown", || stop_here(0));
}

/// Adds what has to be done before SPDK takes down its subsystems: export ends, catalogs close. The
/// hook added last runs first; each runs to its end, on the app thread, while RPC and I/O still work.
pub fn on_shutdown(hook: impl FnOnce() -> LocalFuture<()> + Send + 'static) {
    shutdown_hooks().push(Box::new(hook));
}

/// Ends the app: shutdown hooks, then SPDK's subsystems; [`run`] then returns `rc`. From any thread.
pub fn stop(rc: i32) {
    Thread::app().send(move || stop_here(rc));
}

fn stop_here(rc: i32) {
    if STOPPING.swap(true, Ordering::SeqCst) {
        return;
    }
    stopping::begin();
    executor::spawn(async move {
        loop {
            let hook = shutdown_hooks().pop();
            let Some(hook) = hook else { break };
            hook().await;
        }
        stopping::step("answers to RPC requests are awaited");
        rpc::drain().await;
        stopping::step("SPDK is closing its subsystems, and waits for commands on bdevs to end");
        // SAFETY: on the app thread, after start; once.
        unsafe { sys::psc_app_stop(rc) };
    })
    .detach();
}

/// The version of SPDK this was built with, as SPDK writes it.
pub fn spdk_version_string() -> String {
    // SAFETY: a static C string.
    let text = unsafe { std::ffi::CStr::from_ptr(sys::psc_spdk_version_string()) };
    text.to_string_lossy().into_owned()
}
