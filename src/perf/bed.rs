//! One contender, running: its target with its stack, ready for fio.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::PerfError;
use super::contender::Contender;
use super::fio::{self, Fio, FioReport, Job};
use super::meter::Reading;
use super::place::{Interrupt, Programs, Sockets};
use super::scenario::{Load, Scenario, Transport};
use super::stack::{Stack, VOLUME};
use super::target::{Namespace, Target, TargetOptions, initiator_bdev};

/// A snapshot that takes longer has failed.
pub const SNAPSHOT_MAX: Duration = Duration::from_mins(10);
/// Reads of the initiator itself, which looks for partitions, at most.
const OWN_COMMANDS: u64 = 32;
/// fio has connected and begun by then.
const BEGIN_MAX: Duration = Duration::from_mins(1);

/// What every run needs.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Programs that take part.
    pub programs: &'a Programs,
    /// Folder for sockets.
    pub sockets: &'a Sockets,
    /// How it is stopped.
    pub interrupt: &'a Interrupt,
    /// The scenario.
    pub scenario: &'a Scenario,
    /// The contender.
    pub contender: &'a Contender,
    /// The round, from 1.
    pub round: u32,
    /// Where files of this run go.
    pub folder: &'a Path,
    /// Says what is being done.
    pub say: &'a dyn Fn(&str),
}

/// A contender, running.
pub struct Bed<'a> {
    context: Context<'a>,
    /// Its stack.
    pub stack: Stack,
    /// Its target; none where all is in fio's process.
    target: Option<Target>,
    namespace: Option<Namespace>,
}

impl<'a> Bed<'a> {
    /// Starts it on `reactor_cores`, and fills its volume.
    ///
    /// # Errors
    /// When anything of that fails.
    pub fn start(context: Context<'a>, reactor_cores: &str) -> Result<Self, PerfError> {
        let Context { scenario, contender, .. } = context;
        let stack = Stack::of(scenario, contender);
        (context.say)("start");
        let mut bed = Self { context, stack, target: None, namespace: None };
        if scenario.transport == Transport::Direct {
            return Ok(bed);
        }
        let options = TargetOptions {
            programs: context.programs,
            sockets: context.sockets,
            log: &context.folder.join("target.log"),
            reactor_cores,
            memory_mib: bed.stack.memory_mib,
            pcie: scenario.devices.uses_pcie(),
        };
        let mut target = Target::start(&options, context.interrupt)?;
        target.make(&bed.stack.calls)?;
        bed.target = Some(target);
        bed.expose_load()?;
        if !scenario.devices.forgets() {
            (context.say)("fill");
            let load = fio::filling();
            bed.fio("fill", &load, None, None, false)?.finish(context.interrupt)?;
        }
        Ok(bed)
    }

    /// Makes the volume a namespace for fio.
    ///
    /// # Errors
    /// When the target refuses.
    pub fn expose_load(&mut self) -> Result<(), PerfError> {
        let top = self.stack.top.clone();
        self.namespace = Some(self.target()?.expose("load", &[&top])?);
        Ok(())
    }

    /// Takes that back.
    ///
    /// # Errors
    /// When the target refuses.
    pub fn conceal_load(&mut self) -> Result<(), PerfError> {
        match self.namespace.take() {
            Some(namespace) => self.target()?.conceal(&namespace),
            None => Ok(()),
        }
    }

    /// The scenario.
    pub fn scenario(&self) -> &'a Scenario {
        self.context.scenario
    }

    /// The target.
    ///
    /// # Errors
    /// When there is none, because all is in fio's process.
    pub fn target(&mut self) -> Result<&mut Target, PerfError> {
        let none = || PerfError::usage("this needs a target: use transport tcp".into());
        self.target.as_mut().ok_or_else(none)
    }

    /// All counters now.
    ///
    /// # Errors
    /// When the target does not answer, or there is none.
    pub fn read(&mut self) -> Result<Reading, PerfError> {
        let target = self.target.as_mut();
        let none = || PerfError::usage("this needs a target: use transport tcp".into());
        Reading::of(target.ok_or_else(none)?, &self.stack)
    }

    /// Takes a snapshot of a presnap volume and waits until it is complete.
    ///
    /// # Errors
    /// When the target refuses.
    pub fn snapshot(&mut self, name: &str) -> Result<(Value, Duration), PerfError> {
        let params = json!({"volume": VOLUME, "name": name});
        let answer = self.target()?.call_aside("presnap_snapshot_create", params);
        let answered = || Ok(answer.is_finished().then_some(()));
        self.context.interrupt.wait_for("the snapshot is complete", SNAPSHOT_MAX, answered)?;
        answer
            .join()
            .map_err(|_| PerfError::failed("the thread that asked for a snapshot panicked"))?
    }

    /// Starts fio on the volume.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn fio(
        &self,
        name: &str,
        load: &Load,
        iolog: Option<&Path>,
        seconds: Option<u32>,
        logs: bool,
    ) -> Result<Fio, PerfError> {
        if let Some(namespace) = &self.namespace {
            return self.fio_at(namespace, name, load, iolog, seconds, logs);
        }
        let calls: Vec<Value> = self.stack.calls.iter().map(call_as_config).collect();
        let config = json!({"subsystems": [{"subsystem": "bdev", "config": calls}]});
        let (bdev, memory_mib) = (&self.stack.top, self.stack.memory_mib);
        self.job(name, load, &config, bdev, memory_mib, iolog, seconds, logs)
    }

    /// Starts fio on another namespace.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn fio_at(
        &self,
        namespace: &Namespace,
        name: &str,
        load: &Load,
        iolog: Option<&Path>,
        seconds: Option<u32>,
        logs: bool,
    ) -> Result<Fio, PerfError> {
        let config = namespace.initiator_config();
        let bdev = initiator_bdev(1);
        self.job(name, load, &config, &bdev, fio::MEMORY_MIB, iolog, seconds, logs)
    }

    #[allow(clippy::too_many_arguments, reason = "one place that knows them all")]
    fn job(
        &self,
        name: &str,
        load: &Load,
        config: &Value,
        bdev: &str,
        memory_mib: u64,
        iolog: Option<&Path>,
        seconds: Option<u32>,
        logs: bool,
    ) -> Result<Fio, PerfError> {
        let context = &self.context;
        let job = Job {
            name,
            folder: context.folder,
            config,
            bdev,
            memory_mib,
            cores: &context.scenario.fio_cores,
            load,
            iolog,
            seconds,
            seed: context.round,
            logs,
        };
        job.start(context.programs)
    }

    /// Waits until fio's first command has been served.
    ///
    /// # Errors
    /// When fio fails or does not begin.
    pub fn until_begun(&mut self, fio: &mut Fio) -> Result<(), PerfError> {
        let Self { context, stack, target, .. } = self;
        let Some(target) = target else { return Ok(()) };
        let commands = |target: &mut Target| {
            let answer = target.call("bdev_get_iostat", &json!({"name": stack.top}))?;
            let bdev = &answer["bdevs"][0];
            let number = |field: &str| bdev[field].as_u64().unwrap_or(0);
            Ok::<_, PerfError>(number("num_read_ops") + number("num_write_ops"))
        };
        let before = commands(target)?;
        context.interrupt.wait_for("fio begins", BEGIN_MAX, || {
            let over = !fio.runs()?;
            Ok((over || commands(target)? > before + OWN_COMMANDS).then_some(()))
        })
    }

    /// Runs fio on another namespace to its end.
    ///
    /// # Errors
    /// When it fails.
    pub fn measure_at(
        &self,
        namespace: &Namespace,
        name: &str,
        load: &Load,
        seconds: u32,
    ) -> Result<FioReport, PerfError> {
        let fio = self.fio_at(namespace, name, load, None, Some(seconds), false)?;
        fio.finish(self.context.interrupt)
    }

    /// A file of this run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.context.folder.join(name)
    }

    /// Stops it.
    ///
    /// # Errors
    /// When the target does not end well.
    pub fn stop(self) -> Result<(), PerfError> {
        self.target.map_or(Ok(()), Target::stop)
    }
}

fn call_as_config(call: &super::device::Call) -> Value {
    json!({"method": call.method, "params": call.params})
}
