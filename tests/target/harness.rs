//! Starts and stops real processes for a test, and talks to them.
//!
//! A [`Bench`] is the place of one test: a temporary folder, the lock that keeps other tests of this
//! kind away, hugepages. On it run [`Process`]es: targets (the real `presnap serve`) and agents (see
//! `agent.rs`). All end with the test, also when it panics or is killed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use presnap::rpc::{Client, ClientError, RpcError};
use presnap::store::{self, CheckReport};
use serde_json::{Value, json};

/// Hugepages for all processes of one test: twice [`MEMORY_MIB`], and fio's.
const HUGEPAGES_MIB: u32 = 2560;
/// Memory in pieces is together again, or given back by whoever holds it, within this time or not soon.
const HUGEPAGES_MAX: Duration = Duration::from_secs(30);
/// What one target or agent takes.
const MEMORY_MIB: u32 = 768;
/// A start takes under a second; with other work on the machine several.
const START_MAX: Duration = Duration::from_mins(1);
/// The longest a call takes that moves data.
const CALL_MAX: Duration = Duration::from_mins(1);
/// Copies under way are over by then.
const SLOTS_SETTLE_MAX: Duration = Duration::from_secs(10);
const STOP_MAX: Duration = Duration::from_mins(1);
/// Ports of tests, below those that Linux gives to outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..30_000;
/// Pause between two looks at a condition.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// Waits until `look` finds what it looks for.
///
/// # Panics
/// When it does not within `within`.
pub fn wait_for<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < within, "after {within:?} still not: {what}");
        std::thread::sleep(LOOK_PAUSE);
    }
}

struct Place {
    processes_stopped_by: Instant,
    _hugepages: Hugepages,
    folder: tempfile::TempDir,
    _lock: File,
}

/// The place of one test.
#[derive(Clone)]
pub struct Bench(Rc<Place>);

impl Bench {
    /// Waits for its turn, then reserves what a test needs.
    ///
    /// # Panics
    /// With what to run, if this machine or user cannot run such tests.
    pub fn new() -> Self {
        Self::with_hugepages(HUGEPAGES_MIB)
    }

    /// The same with fewer hugepages, or more.
    ///
    /// # Panics
    /// Likewise.
    pub fn with_hugepages(mib: u32) -> Self {
        let lock = File::create(std::env::temp_dir().join("presnap-target-tests.lock"));
        let lock = lock.expect("a lock file in the temporary folder");
        lock.lock().expect("locked");
        let folder = tempfile::Builder::new().prefix("presnap-test-").tempdir().expect("a folder");
        Self(Rc::new(Place {
            processes_stopped_by: Instant::now(),
            _hugepages: Hugepages::reserve(mib),
            folder,
            _lock: lock,
        }))
    }

    /// A path in the test's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.folder.path().join(name)
    }

    /// A sparse file in the test's folder.
    pub fn file(&self, name: &str, mib: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).and_then(|file| file.set_len(mib << 20)).expect("a sparse file");
        path
    }

    /// Starts `presnap serve` with more options, and waits until it answers. One reactor, on core
    /// 0, unless the options say otherwise.
    pub fn target(&self, name: &str, options: &[&str]) -> Process {
        let mut process = self.target_spawn(name, options);
        process.answers();
        process
    }

    /// The same, without waiting for an answer.
    fn target_spawn(&self, name: &str, options: &[&str]) -> Process {
        let mut command = limited(env!("CARGO_BIN_EXE_presnap"));
        let socket = self.path(&format!("{name}.sock"));
        command.arg("--socket").arg(&socket);
        command.args(["serve", "--no-pci", "--num-trace-entries", "0"]);
        command.args(["-s", &MEMORY_MIB.to_string()]).args(options);
        self.spawn(name, socket, command)
    }

    /// Starts a target and kills it `after` that, wherever its start may be then.
    pub fn target_killed(&self, name: &str, options: &[&str], after: Duration) {
        let process = self.target_spawn(name, options);
        let killer = process.kill_after(after);
        killer.join().expect("no panic");
        process.kill();
    }

    /// Starts an agent: a target with the test methods of `agent.rs`, in this test's program.
    pub fn agent(&self, name: &str, cores: &str) -> Process {
        let program = std::env::current_exe().expect("the path of this program");
        let mut command = limited(&program);
        let socket = self.path(&format!("{name}.sock"));
        command.args(["agent::process", "--exact", "--ignored", "--nocapture"]);
        command.env(crate::agent::SOCKET_VARIABLE, &socket);
        command.env(crate::agent::CORES_VARIABLE, cores);
        command.env(crate::agent::MEMORY_VARIABLE, MEMORY_MIB.to_string());
        let mut process = self.spawn(name, socket, command);
        process.answers();
        process
    }

    fn spawn(&self, name: &str, socket: PathBuf, mut command: Command) -> Process {
        let _ = fs::remove_file(&socket);
        let log = self.path(&format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log).expect("a log");
        let err = out.try_clone().expect("the log again");
        let child = command
            .current_dir(self.0.folder.path())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .expect("started");
        Process { bench: self.clone(), name: name.to_owned(), socket, log, child: Some(child) }
    }

    /// A TCP port that is free now, and stays free while a target that had it is away: not one of
    /// those that outgoing connections get.
    #[allow(clippy::unused_self, reason = "ports are for tests that have the lock")]
    pub fn port(&self) -> u16 {
        static NEXT: AtomicU16 = AtomicU16::new(PORTS.start);
        std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed))
            .take_while(|port| PORTS.contains(port))
            .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
            .expect("a free port")
    }

    /// Runs fio with SPDK's bdev plugin as initiator on the namespace `nsid` of `subsystem`, and
    /// returns its one job's part of the report.
    ///
    /// # Panics
    /// When fio fails, which it does when its verification finds anything wrong.
    pub fn fio(&self, subsystem: &Subsystem, options: &[&str]) -> Value {
        self.fio_start(subsystem, options).finish()
    }

    /// The same, in the background.
    pub fn fio_start(&self, subsystem: &Subsystem, options: &[&str]) -> Fio {
        let number = self.0.folder.path().read_dir().expect("readable").count();
        let config = self.path(&format!("fio-{number}.json"));
        let report = self.path(&format!("fio-{number}.out"));
        let params = subsystem.attach_params("Fio", 0);
        let config_json = json!({"subsystems": [{"subsystem": "bdev", "config": [
            {"method": "bdev_nvme_attach_controller", "params": params}]}]});
        fs::write(&config, config_json.to_string()).expect("written");
        // The plugin can be loaded into fio alone, so `env` does it, after `setpriv`.
        let mut command = limited("env");
        command.arg(format!("LD_PRELOAD={}", fio_plugin().display())).arg("fio");
        command.arg("--ioengine=spdk_bdev").arg(format!("--spdk_json_conf={}", config.display()));
        command.args(["--thread=1", "--direct=1", "--name=job", "--spdk_mem=512"]);
        command.args(["--filename=Fion1", "--randrepeat=0", "--output-format=json"]);
        command.arg(format!("--output={}", report.display())).args(options);
        command.current_dir(self.0.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Fio { child: Some(command.spawn().expect("fio, from Debian's package fio")), report }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::env::var_os("PRESNAP_KEEP").is_some() {
            self.folder.disable_cleanup(true);
            eprintln!("kept: {}", self.folder.path().display());
        }
        eprintln!("test took {:.1?}", self.processes_stopped_by.elapsed());
    }
}

/// A command that ends with this thread, however that ends.
pub fn limited(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn fio_plugin() -> PathBuf {
    let plugin = spdk_folder().join("build/fio/spdk_bdev");
    assert!(plugin.exists(), "no {}: run scripts/setup.sh", plugin.display());
    plugin
}

/// The SPDK that this was built with.
pub fn spdk_folder() -> PathBuf {
    std::env::var_os("SPDK_DIR").map_or_else(|| cache_folder().join("spdk"), Into::into)
}

fn cache_folder() -> PathBuf {
    let var = |name| std::env::var_os(name).map(PathBuf::from);
    var("PRESNAP_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|cache| cache.join("presnap")))
        .unwrap_or_else(|| var("HOME").unwrap_or("/root".into()).join(".cache/presnap"))
}

/// fio at work.
pub struct Fio {
    child: Option<Child>,
    report: PathBuf,
}

impl Fio {
    /// Waits for its end.
    pub fn finish(mut self) -> Value {
        let child = self.child.take().expect("once");
        let output = child.wait_with_output().expect("fio's output");
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "fio: {}: {said}", output.status);
        let report = fs::read_to_string(&self.report).expect("fio's report");
        let start = report.find('{').unwrap_or_else(|| panic!("no report: {report} {said}"));
        let report: Value = serde_json::from_str(&report[start..]).expect("JSON");
        let job = report["jobs"][0].clone();
        assert_eq!(job["error"], 0, "{said}");
        job
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        let child = self.child.as_mut().expect("not finished");
        child.try_wait().expect("a child").is_none()
    }
}

impl Drop for Fio {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Hugepages held by a shell that gives them back when its standard input ends, hence also when
/// this process is killed.
struct Hugepages(Child);

impl Hugepages {
    /// # Panics
    /// With what to run, when there are none.
    fn reserve(mib: u32) -> Self {
        let started = Instant::now();
        loop {
            match Self::try_reserve(mib) {
                Ok(reserved) => return reserved,
                // lib.sh's words for too little memory; all else stays as it is.
                Err(why) if why.contains("could not give") && started.elapsed() < HUGEPAGES_MAX => {
                    std::thread::sleep(Duration::from_secs(1));
                }
                Err(why) => panic!("cannot run: {why}run ./scripts/test.sh as root"),
            }
        }
    }

    fn try_reserve(mib: u32) -> Result<Self, String> {
        let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lib.sh");
        let script = format!(
            "source '{}' && hugepages_reserve {mib} && echo reserved && read -r _; exit 0",
            lib.display()
        );
        let mut child = Command::new("bash")
            .args(["-c", &script, "tests"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bash");
        let mut first = [0; 8];
        let reserved = child.stdout.take().expect("piped").read_exact(&mut first).is_ok();
        if !reserved {
            let mut why = String::new();
            let _ = child.stderr.take().expect("piped").read_to_string(&mut why);
            let _ = child.wait();
            return Err(why);
        }
        Ok(Self(child))
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// An NVMe-oF subsystem with one namespace.
#[derive(Clone, Debug)]
pub struct Subsystem {
    pub nqn: String,
    pub ports: Vec<u16>,
}

impl Subsystem {
    /// Parameters for `bdev_nvme_attach_controller`, by way of the port with this index.
    pub fn attach_params(&self, controller: &str, port: usize) -> Value {
        json!({"name": controller, "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1",
            "trsvcid": self.ports[port].to_string(), "subnqn": self.nqn})
    }
}

/// A running target or agent.
pub struct Process {
    bench: Bench,
    pub name: String,
    pub socket: PathBuf,
    pub log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Waits until it answers.
    fn answers(&mut self) {
        let name = self.name.clone();
        wait_for(&format!("{name} answers"), START_MAX, || {
            let child = self.child.as_mut().expect("running");
            if let Some(status) = child.try_wait().expect("a child") {
                self.child = None;
                panic!("{name} ended at its start: {status}");
            }
            let mut client = Client::connect(&self.socket).ok()?;
            // Answers before the framework is up are "Method may only be called after...".
            client.call("bdev_get_bdevs", None, Some(CALL_MAX)).ok()
        });
    }

    /// Calls a method of a target that may be killed any moment: `None` if there is no answer for that.
    pub fn call_until_killed(
        &self,
        method: &str,
        params: &Value,
    ) -> Option<Result<Value, RpcError>> {
        let answer = Client::connect(&self.socket)
            .and_then(|mut client| client.call(method, Some(params), Some(CALL_MAX)));
        match answer {
            Ok(result) => Some(Ok(result)),
            Err(ClientError::Refused(error)) => Some(Err(error)),
            Err(ClientError::Connect { .. } | ClientError::Closed { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Kills it from another thread `after` this. [`Process::kill`] has to follow.
    pub fn kill_after(&self, after: Duration) -> std::thread::JoinHandle<()> {
        let child = self.child.as_ref().expect("running");
        // Not waited for before this has ended, hence nobody else's.
        let pid = rustix::process::Pid::from_child(child);
        std::thread::spawn(move || {
            std::thread::sleep(after);
            // It may have ended by itself, which whoever waits for it will see.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        })
    }

    /// Stops it as users do, and kills it `after` that. Whether it had ended by itself, and well.
    pub fn stop_then_kill(mut self, after: Duration) -> bool {
        let mut child = self.child.take().expect("running");
        signal(&child, "TERM");
        std::thread::sleep(after);
        child.kill().expect("killed");
        let status = child.wait().expect("a child");
        assert!(status.success() || status.signal() == Some(9), "{} ended: {status}", self.name);
        status.success()
    }

    /// Calls a method.
    ///
    /// # Errors
    /// What the target answers.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn try_call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        try_call(&self.socket, method, params)
    }

    /// Calls a method that works.
    pub fn call(&self, method: &str, params: Value) -> Value {
        let shown = params.to_string();
        self.try_call(method, params)
            .unwrap_or_else(|error| panic!("{}: {method} {shown}: {error}", self.name))
    }

    /// Calls a method from a thread of its own.
    pub fn call_start(
        &self,
        method: &str,
        params: Value,
    ) -> std::thread::JoinHandle<Result<Value, RpcError>> {
        let (socket, method) = (self.socket.clone(), method.to_owned());
        std::thread::spawn(move || try_call(&socket, &method, params))
    }

    /// Memory as a bdev.
    pub fn malloc(&self, name: &str, mib: u64, block_bytes: u64) {
        let blocks = (mib << 20) / block_bytes;
        let params = json!({"name": name, "num_blocks": blocks, "block_size": block_bytes});
        self.call("bdev_malloc_create", params);
    }

    /// A file as a bdev.
    pub fn aio(&self, name: &str, file: &Path, block_bytes: u64) {
        let params = json!({"name": name, "filename": file, "block_size": block_bytes});
        self.call("bdev_aio_create", params);
    }

    /// Formats a store.
    pub fn store(&self, name: &str, bdev: &str, slot_kib: u32) {
        let params = json!({"name": name, "bdev": bdev, "slot_size_kib": slot_kib});
        self.call("presnap_store_create", params);
    }

    /// Creates a volume; `more` are more parameters.
    pub fn volume(&self, name: &str, base: &str, store: &str, more: &Value) {
        let mut params = json!({"name": name, "base_bdev": base, "store": store});
        for (key, value) in more.as_object().into_iter().flatten() {
            params[key] = value.clone();
        }
        self.call("bdev_presnap_create", params);
    }

    /// Takes a snapshot and waits until it is complete.
    pub fn snapshot(&self, volume: &str, name: &str) -> Value {
        self.call("presnap_snapshot_create", json!({"volume": volume, "name": name}))
    }

    /// Takes a snapshot and waits until it is readable.
    pub fn snapshot_cut(&self, volume: &str, name: &str) -> Value {
        let params = json!({"volume": volume, "name": name, "wait": "consistent"});
        self.call("presnap_snapshot_create", params)
    }

    /// The snapshot's object as it is now.
    pub fn get_snapshot(&self, volume: &str, name: &str) -> Option<Value> {
        let params = json!({"volume": volume, "name": name});
        self.try_call("presnap_get_snapshots", params).ok()?.get(0).cloned()
    }

    /// Waits until the snapshot is complete or failed.
    pub fn snapshot_ended(&self, volume: &str, name: &str) -> Value {
        wait_for(&format!("{volume}@{name} ends"), CALL_MAX, || {
            self.get_snapshot(volume, name).filter(|snapshot| snapshot["state"] != "completing")
        })
    }

    /// Deletes a snapshot.
    pub fn snapshot_delete(&self, volume: &str, name: &str) {
        self.call("presnap_snapshot_delete", json!({"volume": volume, "name": name}));
    }

    /// Counters of the only volume.
    pub fn stats(&self) -> Value {
        self.call("presnap_get_stats", json!({}))["volumes"][0].clone()
    }

    /// Asserts I8 as far as the interface shows it: every slot of every store is in one of its
    /// states, and as many are owned as the snapshots say. Two calls see two moments while copies are
    /// under way, hence several looks.
    pub fn check_slots(&self) {
        let started = Instant::now();
        while let Err(problem) = self.try_check_slots() {
            assert!(started.elapsed() < SLOTS_SETTLE_MAX, "{problem}");
            std::thread::sleep(LOOK_PAUSE);
        }
    }

    fn try_check_slots(&self) -> Result<(), String> {
        let snapshots = self.call("presnap_get_snapshots", json!({}));
        let bytes = |snapshot: &Value| snapshot["bytes_used"].as_u64().expect("a number");
        let owned: u64 = snapshots.as_array().expect("a list").iter().map(bytes).sum();
        let stores = self.call("presnap_get_stores", json!({}));
        let slots = &stores[0]["slots"];
        let count = |name: &str| slots[name].as_u64().expect("a count");
        let slot_bytes = stores[0]["slot_size_kib"].as_u64().expect("a size") << 10;
        let states = ["free", "reserved", "staged", "copying", "owned"];
        if count("total") != states.map(count).iter().sum::<u64>() {
            return Err(format!("a slot in no state or in two: {slots}"));
        }
        if owned != count("owned") * slot_bytes {
            return Err(format!("snapshots own {} slots: {slots}", owned / slot_bytes));
        }
        Ok(())
    }

    /// Makes a bdev reachable over NVMe/TCP on `listeners` ports.
    pub fn serve_nvmf(&self, bdev: &str, listeners: usize) -> Subsystem {
        let nqn = format!("nqn.2016-06.io.spdk:{bdev}");
        // There already, if another bdev is served.
        let _ = self.try_call("nvmf_create_transport", json!({"trtype": "TCP"}));
        self.call(
            "nvmf_create_subsystem",
            json!({"nqn": nqn, "allow_any_host": true, "serial_number": "PRESNAPTEST"}),
        );
        self.call("nvmf_subsystem_add_ns", json!({"nqn": nqn, "namespace": {"bdev_name": bdev}}));
        let ports: Vec<u16> = (0..listeners).map(|_| self.bench.port()).collect();
        for port in &ports {
            self.call(
                "nvmf_subsystem_add_listener",
                json!({"nqn": nqn, "listen_address": {"trtype": "TCP", "adrfam": "IPv4",
                    "traddr": "127.0.0.1", "trsvcid": port.to_string()}}),
            );
        }
        Subsystem { nqn, ports }
    }

    /// Exports a snapshot.
    pub fn export(&self, volume: &str, name: &str) -> Subsystem {
        let port = self.bench.port();
        let result = self.call(
            "presnap_snapshot_export",
            json!({"volume": volume, "name": name, "trsvcid": port.to_string(),
                "allow_any_host": true}),
        );
        let nqn = result["nqn"].as_str().expect("an NQN").to_owned();
        Subsystem { nqn, ports: vec![port] }
    }

    /// Attaches a subsystem as initiator; the answer is the name of the bdev.
    pub fn attach(&self, controller: &str, subsystem: &Subsystem, port: usize) -> String {
        let params = subsystem.attach_params(controller, port);
        let names = self.call("bdev_nvme_attach_controller", params);
        names[0].as_str().expect("a namespace").to_owned()
    }

    /// All bytes of a bdev, read by an agent.
    pub fn dump(&self, bdev: &str) -> Vec<u8> {
        self.try_dump(bdev).unwrap_or_else(|error| panic!("{}: {bdev}: {error}", self.name))
    }

    /// The same, of a bdev that may not be readable.
    pub fn try_dump(&self, bdev: &str) -> Result<Vec<u8>, RpcError> {
        let file = self.bench.path("dump");
        self.try_call("test_dump", json!({"bdev": bdev, "file": file}))?;
        let bytes = fs::read(&file).expect("the dump");
        fs::remove_file(&file).expect("removed");
        Ok(bytes)
    }

    /// One command by an agent; the answer is `{ok, error, sct, sc}`.
    pub fn io(&self, bdev: &str, op: &str, offset: u64, bytes: u64, fill: u8) -> Value {
        let params =
            json!({"bdev": bdev, "op": op, "offset": offset, "bytes": bytes, "fill": fill});
        self.call("test_io", params)
    }

    /// Writes the process's configuration as `save_config` gives it, and returns the file.
    pub fn save_config(&self) -> PathBuf {
        let subsystems = self.call("framework_get_subsystems", json!({}));
        let subsystems: Vec<Value> = subsystems
            .as_array()
            .expect("a list")
            .iter()
            .map(|subsystem| {
                let name = &subsystem["subsystem"];
                let config = self.call("framework_get_config", json!({"name": name}));
                json!({"subsystem": name, "config": config})
            })
            .collect();
        let path = self.bench.path(&format!("{}-config.json", self.name));
        fs::write(&path, json!({"subsystems": subsystems}).to_string()).expect("written");
        path
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    /// What it logged, all starts of that name.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Stops it as users do, and asserts that it ended well.
    pub fn stop(self) {
        self.stop_by("TERM");
    }

    /// The same with another signal.
    pub fn stop_by(mut self, name: &str) {
        let mut child = self.child.take().expect("running");
        signal(&child, name);
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child") {
                break status;
            }
            if started.elapsed() > STOP_MAX {
                self.child = Some(child);
                panic!("{} did not stop within {STOP_MAX:?}", self.name);
            }
            std::thread::sleep(LOOK_PAUSE);
        };
        assert!(status.success(), "{} ended with {status}", self.name);
        self.check_no_core(status);
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        signal(self.child.as_ref().expect("running"), name);
    }

    /// Waits for its end, whatever that is like.
    pub fn ended(mut self, within: Duration) -> std::process::ExitStatus {
        let what = format!("{} ends", self.name);
        let status = wait_for(&what, within, || {
            let child = self.child.as_mut().expect("running");
            child.try_wait().expect("a child")
        });
        self.child = None;
        self.check_no_core(status);
        status
    }

    /// Stops it as power cuts do.
    pub fn kill(mut self) {
        let mut child = self.child.take().expect("running");
        child.kill().expect("killed");
        let status = child.wait().expect("a child");
        assert_eq!(status.signal(), Some(9), "{} had ended before: {status}", self.name);
    }

    fn check_no_core(&self, status: std::process::ExitStatus) {
        assert!(!status.core_dumped(), "{} dumped core", self.name);
        let folder = self.socket.parent().expect("a folder").read_dir().expect("readable");
        for entry in folder {
            let name = entry.expect("an entry").file_name();
            assert!(!name.to_string_lossy().starts_with("core"), "a core dump: {}", name.display());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(40)..];
            let mut err = std::io::stderr().lock();
            let _ = writeln!(err, "---- end of {}'s log\n{}\n----", self.name, tail.join("\n"));
        }
    }
}

fn try_call(socket: &Path, method: &str, params: Value) -> Result<Value, RpcError> {
    let mut client = Client::connect(socket).unwrap_or_else(|error| panic!("{method}: {error}"));
    let params = params.as_object().is_some_and(|map| !map.is_empty()).then_some(params);
    match client.call(method, params.as_ref(), Some(CALL_MAX)) {
        Ok(result) => Ok(result),
        Err(ClientError::Refused(error)) => Err(error),
        Err(error) => panic!("{error}"),
    }
}

/// A file as a store's device, once no target has it any more.
#[derive(Debug)]
struct FileDevice(File);

impl store::Device for FileDevice {
    fn block_bytes(&self) -> u32 {
        512
    }

    fn size_bytes(&self) -> u64 {
        self.0.metadata().expect("a file").len()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn flush(&self) -> std::io::Result<()> {
        self.0.sync_data()
    }
}

/// What the catalog of a store in a file holds after a clean stop: it is in order (I8), down to the
/// rows that take no slot.
pub fn check_catalog(file: &Path) -> CheckReport {
    let file = File::options().read(true).write(true).open(file).expect("the store's file");
    let device: store::SharedDevice = Arc::new(FileDevice(file));
    let mut loaded = store::load(&device).expect("a store");
    let report = loaded.catalog.check().expect("readable");
    loaded.catalog.close().expect("closed");
    assert!(report.is_clean(), "{:?}", &report.problems[..report.problems.len().min(10)]);
    assert_eq!(report.slots_taken.len() as u32, loaded.allocator.taken_count());
    report
}

/// Files of hugepages that a process has, or had.
pub fn hugepage_files(pid: u32) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
    let folders = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (folder, kind) = (words.next()?, words.next()?);
        (kind == "hugetlbfs").then(|| folder.to_owned())
    });
    let prefix = format!("spdk_pid{pid}map_");
    let files = folders.flat_map(|folder| fs::read_dir(folder).expect("readable"));
    let files = files.map(|entry| entry.expect("an entry"));
    let of_process = files.filter(|file| file.file_name().to_string_lossy().starts_with(&prefix));
    of_process.map(|file| file.path()).collect()
}

/// Sends a signal.
pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(status.expect("kill, from coreutils or procps").success(), "signalled");
}
