//! Where a measurement runs: the programs it starts, hugepages, folders, and how it is stopped.
//!
//! Every child is in a process group of its own, so that Ctrl-C reaches this process only, and ends
//! with it, also when it is killed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::PerfError;

/// The scripts' functions: one way to reserve hugepages, also when the source is not there.
const LIB_SH: &str = include_str!("../../scripts/lib.sh");
/// Pause between two looks at a condition.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// A child that was asked to end does so within this time, or is killed.
const STOP_MAX: Duration = Duration::from_secs(30);
/// A socket's path is shorter than this.
const SOCKET_PATH_MAX: usize = 107;
/// Lines at the end of a log that an error shows.
const TAIL_LINES: usize = 4;

/// Set by SIGINT, SIGTERM and SIGHUP.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on signals are noted instead of ending the process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn install() -> io::Result<Self> {
        let flag = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag.0))?;
        }
        Ok(flag)
    }

    /// Fails once a signal has come.
    ///
    /// # Errors
    /// [`PerfError::Interrupted`].
    pub fn check(&self) -> Result<(), PerfError> {
        if self.0.load(Ordering::Relaxed) { Err(PerfError::Interrupted) } else { Ok(()) }
    }

    /// Sleeps until `deadline`, or until a signal comes.
    ///
    /// # Errors
    /// [`PerfError::Interrupted`].
    pub fn sleep_until(&self, deadline: Instant) -> Result<(), PerfError> {
        loop {
            self.check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK_PAUSE));
        }
    }

    /// Waits until `look` finds what it looks for.
    ///
    /// # Errors
    /// When it does not within `within`, or what it fails with, or a signal comes.
    pub fn wait_for<T>(
        &self,
        what: &str,
        within: Duration,
        mut look: impl FnMut() -> Result<Option<T>, PerfError>,
    ) -> Result<T, PerfError> {
        let deadline = Instant::now() + within;
        loop {
            self.check()?;
            if let Some(found) = look()? {
                return Ok(found);
            }
            if Instant::now() > deadline {
                return Err(PerfError::failed(format!(
                    "after {} s still not: {what}",
                    within.as_secs()
                )));
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }
}

/// The programs that take part.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The presnap that is measured.
    pub presnap: PathBuf,
    /// SPDK's plugin for fio.
    pub fio_plugin: PathBuf,
    /// SPDK's copying program.
    pub spdk_dd: PathBuf,
}

impl Programs {
    /// Finds them: SPDK in `SPDK_DIR`, else where scripts/setup.sh builds it.
    ///
    /// # Errors
    /// What is missing and where it comes from.
    pub fn find(presnap: Option<&Path>) -> Result<Self, PerfError> {
        let presnap = match presnap {
            Some(path) => path.to_owned(),
            None => std::env::current_exe()
                .map_err(|error| PerfError::usage(format!("the path of this program: {error}")))?,
        };
        let spdk =
            std::env::var_os("SPDK_DIR").map_or_else(|| cache_folder().join("spdk"), Into::into);
        let programs = Self {
            presnap,
            fio_plugin: spdk.join("build/fio/spdk_bdev"),
            spdk_dd: spdk.join("build/bin/spdk_dd"),
        };
        for (path, remedy) in [
            (&programs.presnap, "give --program the path of a presnap"),
            (
                &programs.fio_plugin,
                "run scripts/setup.sh, or set SPDK_DIR to a tree built --with-fio",
            ),
            (&programs.spdk_dd, "run scripts/setup.sh, or set SPDK_DIR to a built tree"),
        ] {
            if !path.is_file() {
                return Err(PerfError::usage(format!("no {}; {remedy}", path.display())));
            }
        }
        for (program, remedy) in
            [("fio", "install Debian's package fio"), ("setpriv", "install util-linux")]
        {
            let found = Command::new(program).arg("--version").stdout(Stdio::null()).status();
            found.map_err(|error| PerfError::usage(format!("{program}: {error}; {remedy}")))?;
        }
        Ok(programs)
    }
}

fn cache_folder() -> PathBuf {
    let var = |name| std::env::var_os(name).map(PathBuf::from);
    var("PRESNAP_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|cache| cache.join("presnap")))
        .unwrap_or_else(|| var("HOME").unwrap_or("/root".into()).join(".cache/presnap"))
}

/// A folder for sockets, removed at the end.
#[derive(Debug)]
pub struct Sockets(PathBuf);

impl Sockets {
    /// Makes it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self, PerfError> {
        let path = std::env::temp_dir().join(format!("presnap-perf-{}", std::process::id()));
        fs::create_dir_all(&path)
            .map_err(|error| PerfError::failed(format!("{}: {error}", path.display())))?;
        if path.as_os_str().len() + 16 > SOCKET_PATH_MAX {
            let remedy = "set TMPDIR to a shorter path";
            return Err(PerfError::usage(format!(
                "{} is too long for sockets; {remedy}",
                path.display()
            )));
        }
        Ok(Self(path))
    }

    /// The path of a socket in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        // Only this process uses it; nothing depends on its removal.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Hugepages held by a shell that gives them back when its standard input ends, hence also when this
/// process is killed.
#[derive(Debug)]
pub struct Hugepages(Child);

/// Pages of programs that have ended are free within this time, or belong to somebody else.
const FREED_MAX: Duration = Duration::from_secs(20);
/// What the shell answers.
const ANSWER: &[u8] = b"done\n";
/// Free pages, as the kernel counts them.
const FREE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

impl Hugepages {
    /// Reserves `mib`.
    ///
    /// # Errors
    /// With what to do, when there are none.
    pub fn reserve(mib: u64) -> Result<Self, PerfError> {
        // Each line that it is given is a wish to sweep.
        let script = format!(
            "{LIB_SH}\nhugepages_reserve {mib} && echo done && \
             while read -r _; do hugepages_sweep; echo done; done; exit 0"
        );
        let mut child = Command::new("bash")
            .args(["-c", &script, "presnap perf"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| PerfError::failed(format!("bash: {error}; install it")))?;
        let mut answer = [0; ANSWER.len()];
        let reserved = child.stdout.as_mut().is_some_and(|out| out.read_exact(&mut answer).is_ok());
        if reserved {
            return Ok(Self(child));
        }
        let mut why = String::new();
        if let Some(err) = &mut child.stderr {
            // Without its words the error is still one.
            let _ = err.read_to_string(&mut why);
        }
        let _ = child.wait();
        Err(PerfError::failed(format!("no hugepages: {}", why.trim())))
    }
}

impl Hugepages {
    /// Waits until `mib` of them are free: an SPDK program leaves its pages behind, as files, when it
    /// ends. If they do not become free, whoever needs them says so.
    ///
    /// # Errors
    /// When a signal comes.
    pub fn ready(&mut self, mib: u64, interrupt: &Interrupt) -> Result<(), PerfError> {
        if let (Some(to), Some(from)) = (&mut self.0.stdin, &mut self.0.stdout) {
            // If the shell is gone, so are its pages, which is noticed below.
            let asked = to.write_all(b"sweep\n").and_then(|()| to.flush());
            let _ = asked.and_then(|()| from.read_exact(&mut [0; ANSWER.len()]));
        }
        let free = || {
            let text = fs::read_to_string(FREE_PAGES).unwrap_or_default();
            Ok((text.trim().parse().unwrap_or(0_u64) * 2 >= mib).then_some(()))
        };
        match interrupt.wait_for("hugepages are free", FREED_MAX, free) {
            Err(PerfError::Interrupted) => Err(PerfError::Interrupted),
            _ => Ok(()),
        }
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // The shell restores the count of pages; it cannot do more if that fails.
        let _ = self.0.wait();
    }
}

/// A program that was started, with its log.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts `program` under a name for messages; standard output and error go to `log`. It runs on
    /// `cores`, if any are named, and ends with this thread.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        name: &str,
        log: &Path,
        cores: Option<&str>,
        program: impl AsRef<OsStr>,
        add: impl FnOnce(&mut Command),
    ) -> Result<Self, PerfError> {
        let failed = |error: io::Error| PerfError::failed(format!("{name}: {error}"));
        let out = File::create(log).map_err(failed)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if let Some(cores) = cores {
            command.args(["taskset", "--cpu-list", cores]);
        }
        command.arg(program);
        add(&mut command);
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().map_err(failed)?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its process id: `setpriv` and `taskset` become the program.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its end, if it has ended.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, PerfError> {
        self.child.try_wait().map_err(|error| PerfError::failed(format!("{}: {error}", self.name)))
    }

    /// An error about its end, with the end of its log.
    pub fn failure(&self, status: ExitStatus) -> PerfError {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("; ");
        PerfError::failed(format!("{} ended with {status}: {tail}", self.name))
    }

    /// Waits for its end, which must be a good one.
    ///
    /// # Errors
    /// When it is not, or does not come within `within`, or a signal comes.
    pub fn finish(mut self, interrupt: &Interrupt, within: Duration) -> Result<(), PerfError> {
        let what = format!("{} ends", self.name);
        let status = interrupt.wait_for(&what, within, || self.ended())?;
        if status.success() { Ok(()) } else { Err(self.failure(status)) }
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn stop(mut self) -> Result<(), PerfError> {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + STOP_MAX;
        loop {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.failure(status)),
                None if Instant::now() > deadline => {
                    let text =
                        format!("{} did not stop within {} s", self.name, STOP_MAX.as_secs());
                    return Err(PerfError::failed(text));
                }
                None => std::thread::sleep(LOOK_PAUSE),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It has not been waited for, so the id is still its own; it may have ended all the same.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
