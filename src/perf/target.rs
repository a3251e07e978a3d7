//! A target under measurement: `presnap serve` with one contender's stack.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::PerfError;
use super::device::Call;
use super::place::{Interrupt, Programs, Running, Sockets};
use crate::rpc::{Client, ClientError};

/// A start takes under a second, with other work on the machine several.
const START_MAX: Duration = Duration::from_mins(1);
/// The longest that a call takes which moves data.
const CALL_MAX: Duration = Duration::from_mins(10);
/// How long the first answers of a target may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The subsystem with the volume.
const NQN: &str = "nqn.2016-06.io.spdk:presnap-perf";

/// How to start a target.
#[derive(Clone, Copy, Debug)]
pub struct TargetOptions<'a> {
    /// Its program.
    pub programs: &'a Programs,
    /// Where its socket goes.
    pub sockets: &'a Sockets,
    /// Where its log goes.
    pub log: &'a Path,
    /// Cores of its reactors.
    pub reactor_cores: &'a str,
    /// Hugepage memory.
    pub memory_mib: u64,
    /// Whether it looks for PCIe devices.
    pub pcie: bool,
}

/// A running target.
#[derive(Debug)]
pub struct Target {
    client: Client,
    socket: PathBuf,
    port: u16,
    /// The process.
    pub running: Running,
}

/// An NVMe-oF namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// NQN of its subsystem.
    pub nqn: String,
    /// Its TCP port on the loopback interface.
    pub port: u16,
}

impl Target {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(options: &TargetOptions<'_>, interrupt: &Interrupt) -> Result<Self, PerfError> {
        let socket = options.sockets.path("target.sock");
        // That of the target before would be taken for the new one's.
        let _ = fs::remove_file(&socket);
        let program = &options.programs.presnap;
        let mut running = Running::start("presnap serve", options.log, None, program, |command| {
            command.arg("--socket").arg(&socket);
            command.args(["serve", "--num-trace-entries", "0", "--cores", options.reactor_cores]);
            command.args(["--memory-mib", &options.memory_mib.to_string()]);
            if !options.pcie {
                command.arg("--no-pci");
            }
        })?;
        let client = interrupt.wait_for("presnap serve answers", START_MAX, || {
            if let Some(status) = running.ended()? {
                return Err(running.failure(status));
            }
            let Ok(mut client) = Client::connect(&socket) else { return Ok(None) };
            // Answers before the framework is up are "Method may only be called after...".
            let up = client.call("bdev_get_bdevs", None, Some(ANSWER_MAX)).is_ok();
            Ok(up.then_some(client))
        })?;
        Ok(Self { client, socket, port: free_port()?, running })
    }

    /// Calls a method.
    ///
    /// # Errors
    /// What the target answers, or that it does not.
    pub fn call(&mut self, method: &str, params: &Value) -> Result<Value, PerfError> {
        call(&mut self.client, method, params)
    }

    /// Calls one after the other.
    ///
    /// # Errors
    /// The first that fails.
    pub fn make(&mut self, calls: &[Call]) -> Result<(), PerfError> {
        for Call { method, params } in calls {
            self.call(method, params)?;
        }
        Ok(())
    }

    /// Calls a method over a connection and from a thread of its own; the answer comes with the time
    /// that it took.
    pub fn call_aside(
        &self,
        method: &'static str,
        params: Value,
    ) -> JoinHandle<Result<(Value, Duration), PerfError>> {
        let socket = self.socket.clone();
        std::thread::spawn(move || {
            let mut client =
                Client::connect(&socket).map_err(|e| PerfError::failed(e.to_string()))?;
            let began = Instant::now();
            let answer = call(&mut client, method, &params)?;
            Ok((answer, began.elapsed()))
        })
    }

    /// Makes a subsystem with `bdevs` as namespaces, from 1 on.
    ///
    /// # Errors
    /// When the target refuses.
    pub fn expose(&mut self, suffix: &str, bdevs: &[&str]) -> Result<Namespace, PerfError> {
        let nqn = format!("{NQN}:{suffix}");
        let transports = self.call("nvmf_get_transports", &Value::Null)?;
        if transports.as_array().is_none_or(Vec::is_empty) {
            self.call("nvmf_create_transport", &json!({"trtype": "TCP"}))?;
        }
        let serial = format!("PERF{suffix}");
        let params = json!({"nqn": nqn, "allow_any_host": true, "serial_number": serial});
        self.call("nvmf_create_subsystem", &params)?;
        for bdev in bdevs {
            let params = json!({"nqn": nqn, "namespace": {"bdev_name": bdev}});
            self.call("nvmf_subsystem_add_ns", &params)?;
        }
        let address = json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1",
            "trsvcid": self.port.to_string()});
        self.call("nvmf_subsystem_add_listener", &json!({"nqn": nqn, "listen_address": address}))?;
        Ok(Namespace { nqn, port: self.port })
    }

    /// Removes what [`Target::expose`] made.
    ///
    /// # Errors
    /// When the target refuses.
    pub fn conceal(&mut self, namespace: &Namespace) -> Result<(), PerfError> {
        self.call("nvmf_delete_subsystem", &json!({"nqn": namespace.nqn})).map(drop)
    }

    /// The port on which it listens for initiators.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops it.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn stop(self) -> Result<(), PerfError> {
        drop(self.client);
        self.running.stop()
    }
}

fn call(client: &mut Client, method: &str, params: &Value) -> Result<Value, PerfError> {
    let params = (!params.is_null()).then_some(params);
    client.call(method, params, Some(CALL_MAX)).map_err(|error| match error {
        ClientError::Refused(error) => {
            let shown = params.map(Value::to_string).unwrap_or_default();
            PerfError::failed(format!("{method} {shown}: {error}"))
        }
        error => PerfError::failed(error.to_string()),
    })
}

/// A TCP port that nobody has now.
fn free_port() -> Result<u16, PerfError> {
    let listener = TcpListener::bind("127.0.0.1:0");
    let address = listener.and_then(|listener| listener.local_addr());
    address
        .map(|address| address.port())
        .map_err(|error| PerfError::failed(format!("no TCP port: {error}")))
}

impl Namespace {
    /// The configuration with which SPDK's initiator makes bdevs of it: `Perfn1` and so on.
    pub fn initiator_config(&self) -> Value {
        json!({"subsystems": [{"subsystem": "bdev", "config": [
            {"method": "bdev_nvme_attach_controller", "params": {"name": INITIATOR, "trtype": "TCP",
             "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": self.port.to_string(),
             "subnqn": self.nqn}}]}]})
    }
}

/// Name of the initiator's controller.
const INITIATOR: &str = "Perf";

/// The initiator's bdev of namespace `number`.
pub fn initiator_bdev(number: u32) -> String {
    format!("{INITIATOR}n{number}")
}
