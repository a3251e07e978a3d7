//! The `presnap` command: reads the command line, talks to a target over its JSON-RPC socket, and
//! prints tables for people or JSON for programs.
//!
//! Runs on the process's main thread; `target` starts SPDK on it, for `presnap serve`.

mod heatmap;
mod perf;
mod progress;
mod render;
mod replay;
mod report;
mod serve;
#[cfg(feature = "spdk")]
mod target;
mod train;
mod tree;

pub use perf::PerfArgs;
pub use replay::ReplayArgs;
pub use report::ReportArgs;
pub use serve::{CoreList, LogLevel, ServeOptions};
#[cfg(feature = "spdk")]
pub use target::run as serve;
pub use train::TrainOptions;
pub use tree::DEFAULT_SOCKET;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use crate::rpc::objects::Volume;
use crate::rpc::schema::Method;
use crate::rpc::{self, Client, ClientError, RpcError};
use progress::Question;
use tree::{Action, Request};

/// How long an answer is waited for, unless the user says otherwise or it may take long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Exit status: the target refused or failed.
const REFUSED: u8 = 1;
/// Exit status: wrong usage, or no target to talk to.
const USAGE: u8 = 2;

/// Where a command's text goes.
struct Console<'a> {
    out: &'a mut dyn Write,
    err: &'a mut (dyn Write + Send),
    /// Whether `err` is a terminal, so that progress may be shown on it.
    err_is_terminal: bool,
    /// Whether what goes to `out` may have colours.
    colours: bool,
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let mut err = std::io::stderr();
    let err_is_terminal = err.is_terminal();
    let mut out = std::io::stdout().lock();
    // See https://no-color.org.
    let asked_for_none = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let colours = out.is_terminal() && !asked_for_none;
    let mut console = Console { out: &mut out, err: &mut err, err_is_terminal, colours };
    ExitCode::from(execute(std::env::args_os(), &mut console))
}

/// Runs one command line; the answer is the exit status.
fn execute(args: impl IntoIterator<Item = OsString>, console: &mut Console<'_>) -> u8 {
    let request = match tree::parse(args) {
        Ok(request) => request,
        Err(error) => {
            // Colours, and standard output for --help, as clap does it.
            let to_out = !error.use_stderr();
            let text = error.render();
            let text = if console.err_is_terminal && !to_out {
                text.ansi().to_string()
            } else {
                text.to_string()
            };
            print(if to_out { &mut *console.out } else { &mut *console.err }, &text);
            return if to_out { 0 } else { USAGE };
        }
    };
    match perform(&request, console) {
        Ok(text) => {
            print(console.out, &text);
            0
        }
        Err(failure) => {
            if let Some(text) = failure.text {
                print(console.out, &text);
            }
            print(console.err, &format!("error: {}\n", failure.message));
            failure.status
        }
    }
}

/// Writes text; a reader that went away is no trouble of ours.
fn print(to: &mut dyn Write, text: &str) {
    let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
}

/// A command that did not do what it was asked.
struct Failure {
    status: u8,
    message: String,
    /// A result to print all the same.
    text: Option<String>,
}

impl Failure {
    fn refused(message: impl Into<String>) -> Self {
        Self { status: REFUSED, message: message.into(), text: None }
    }

    fn usage(message: impl Into<String>) -> Self {
        Self { status: USAGE, message: message.into(), text: None }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let status = if matches!(error, ClientError::Connect { .. }) { USAGE } else { REFUSED };
        // What a target says may hold anything.
        Self { status, message: render::clean(&error.to_string()), text: None }
    }
}

fn perform(request: &Request, console: &mut Console<'_>) -> Result<String, Failure> {
    match &request.action {
        Action::Print(text) => Ok(text.clone()),
        Action::ListMethods if request.json => {
            let names: Vec<_> = rpc::METHODS.iter().map(|method| method.name).collect();
            Ok(pretty(&json!(names)))
        }
        Action::ListMethods => Ok(render::methods()),
        Action::Perf(args) => perf::run(args, request.json, console),
        Action::Replay(args) => replay::run(args, request.json, console),
        Action::Report(args) => report::run(args, request.json, console),
        Action::Serve(options) => start(options).map(|()| String::new()).map_err(Failure::refused),
        Action::Train(options) => train(options, request.json, console),
        Action::Raw(method, params) => raw(request, method, params.as_ref()),
        Action::Heatmap(_) if request.json => {
            Err(Failure::usage("a picture is no JSON: leave out --json, or --heatmap"))
        }
        Action::Heatmap(args) => {
            heatmap::run(args, &request.socket, request.timeout, console.colours)
        }
        Action::ListVolumes(name) => list_volumes(request, name.as_deref()),
        Action::Call(method, params) => call(request, method, params, console),
    }
}

#[cfg(feature = "spdk")]
fn start(options: &ServeOptions) -> Result<(), String> {
    target::run(options)
}

#[cfg(not(feature = "spdk"))]
fn start(_options: &ServeOptions) -> Result<(), String> {
    Err("this presnap was built without SPDK and cannot serve; build it without \
         --no-default-features (see README.md)"
        .into())
}

#[cfg(feature = "lstm")]
fn train(options: &TrainOptions, json: bool, console: &mut Console<'_>) -> Result<String, Failure> {
    train::run(options, json, console)
}

#[cfg(not(feature = "lstm"))]
fn train(_: &TrainOptions, _: bool, _: &mut Console<'_>) -> Result<String, Failure> {
    Err(Failure::refused(
        "this presnap was built without its network and cannot train; build it with --features lstm",
    ))
}

fn raw(request: &Request, method: &str, params: Option<&Value>) -> Result<String, Failure> {
    let mut client = Client::connect(&request.socket)?;
    let slow = rpc::method(method).is_some_and(|method| method.slow);
    let timeout = request.timeout.or((!slow).then_some(ANSWER_TIMEOUT));
    match client.call(method, params, timeout) {
        // Not a method of SPDK's targets, but of its rpc.py, where people know it from.
        Err(ClientError::Refused(error))
            if method == "save_config" && error.code == rpc::METHOD_NOT_FOUND_CODE =>
        {
            Ok(pretty(&saved_config(&mut client, timeout)?))
        }
        // What dies may be gone before it answers: SPDK's own client takes that for success too.
        Err(ClientError::Closed { .. }) if method == "spdk_kill_instance" => Ok("true\n".into()),
        result => Ok(pretty(&result?)),
    }
}

/// The configuration of every subsystem, in the form that `presnap serve --config` takes.
fn saved_config(client: &mut Client, timeout: Option<Duration>) -> Result<Value, ClientError> {
    let list = client.call("framework_get_subsystems", None, timeout)?;
    let names = list.as_array().into_iter().flatten().map(|entry| &entry["subsystem"]);
    let mut subsystems = Vec::new();
    for name in names {
        let config =
            client.call("framework_get_config", Some(&json!({ "name": name })), timeout)?;
        subsystems.push(json!({"subsystem": name, "config": config}));
    }
    Ok(json!({ "subsystems": subsystems }))
}

fn call(
    request: &Request,
    method: &Method,
    params: &Value,
    console: &mut Console<'_>,
) -> Result<String, Failure> {
    rpc::decode(method.name, params).map_err(|RpcError { message, .. }| Failure::usage(message))?;
    let timeout = request.timeout.or((!method.slow).then_some(ANSWER_TIMEOUT));
    let mut client = Client::connect(&request.socket)?;
    let shows_progress = console.err_is_terminal && !request.json;
    let question = Question::about(method.name, params).filter(|_| shows_progress);
    let answer = match question {
        Some(question) => progress::during(&request.socket, &question, console.err, || {
            client.call(method.name, Some(params), timeout)
        }),
        None => client.call(method.name, Some(params), timeout),
    };
    let value = answer.map_err(|error| match error {
        ClientError::Refused(error) if error.code == rpc::METHOD_NOT_FOUND_CODE => {
            Failure::refused(format!(
                "the target at {} does not know {}: it is another SPDK target or an older presnap; \
                 name presnap's socket with --socket",
                request.socket.display(),
                method.name
            ))
        }
        error => error.into(),
    })?;
    let text = if request.json {
        pretty(&value)
    } else {
        render::result(method, &value).map_err(|error| strange(&request.socket, &error))?
    };
    match bad_end(method, &value) {
        Some(words) => Err(Failure { text: Some(text), ..Failure::refused(render::clean(&words)) }),
        None => Ok(text),
    }
}

/// What is wrong with a result that is none of an error.
fn bad_end(method: &Method, value: &Value) -> Option<String> {
    let failed = value["state"] == "failed";
    let reason = value["reason"].as_str().unwrap_or("no reason given");
    match (method.name, value["damaged"].as_u64()) {
        ("presnap_snapshot_create", _) if failed => Some(format!("the snapshot failed: {reason}")),
        ("presnap_store_scrub", _) if failed => Some(format!("the scrub failed: {reason}")),
        ("presnap_store_scrub", Some(damaged @ 1..)) if value["state"] == "done" => {
            Some(format!("{damaged} slots are damaged: see \"Damaged slots\" in docs/operating.md"))
        }
        _ => None,
    }
}

/// The result is not what this version of the table says.
fn strange(socket: &Path, error: &serde_json::Error) -> Failure {
    Failure::refused(format!(
        "the target at {} gave a result that this presnap does not understand ({error}); \
         --json prints it as it is",
        socket.display()
    ))
}

/// Volumes are bdevs: SPDK's own list has them, each with presnap's object.
fn list_volumes(request: &Request, name: Option<&str>) -> Result<String, Failure> {
    let mut client = Client::connect(&request.socket)?;
    let params = name.map(|name| json!({ "name": name }));
    let timeout = request.timeout.unwrap_or(ANSWER_TIMEOUT);
    let bdevs = client.call("bdev_get_bdevs", params.as_ref(), Some(timeout));
    let bdevs = match (bdevs, name) {
        // SPDK says no more than this of a bdev that is not there.
        (Err(ClientError::Refused(error)), Some(name))
            if error.code == rpc::Errno::NoDev.code() =>
        {
            return Err(Failure::refused(format!(
                "there is no volume {name:?} (-ENODEV): see `presnap volume list`"
            )));
        }
        (bdevs, _) => bdevs?,
    };
    let objects: Vec<_> = bdevs
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|bdev| bdev.pointer("/driver_specific/presnap"))
        .collect();
    if let (Some(name), true) = (name, objects.is_empty()) {
        return Err(Failure::refused(format!(
            "bdev {name:?} is no volume: see `presnap volume list`"
        )));
    }
    if request.json {
        return Ok(pretty(&json!(objects)));
    }
    let volumes: Result<Vec<Volume>, _> =
        objects.into_iter().map(|object| serde_json::from_value(object.clone())).collect();
    Ok(render::volumes(&volumes.map_err(|error| strange(&request.socket, &error))?))
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("a JSON value can be written") + "\n"
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
