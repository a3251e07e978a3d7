//! The command tree: `serve`, `rpc`, `replay`, `report`, `train`, `perf`, `volume list` and the pictures of `chunks` are
//! written out, all other commands follow from the table of methods.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Args as _, Command, FromArgMatches as _, value_parser};
use serde_json::{Map, Value};

use super::heatmap::{self, HeatmapArgs};
use super::perf::PerfArgs;
use super::replay::ReplayArgs;
use super::report::ReportArgs;
use super::serve::ServeOptions;
use super::train::{self, TrainOptions};
use crate::rpc::schema::{Kind, Method, Param, Reply};
use crate::rpc::{METHODS, method};

/// Where SPDK's targets listen unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/var/tmp/spdk.sock";

/// What a command line asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The target's socket.
    pub socket: PathBuf,
    /// Whether to print JSON.
    pub json: bool,
    /// How long to wait for an answer; `None`: not said.
    pub timeout: Option<Duration>,
    /// What to do.
    pub action: Action,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Start the target.
    Serve(Box<ServeOptions>),
    /// Measure; starts targets of its own.
    Perf(Box<PerfArgs>),
    /// Replay traces; needs no target.
    Replay(Box<ReplayArgs>),
    /// Replay traces under everything, and write a report; needs no target.
    Report(Box<ReportArgs>),
    /// Train a model.
    Train(Box<TrainOptions>),
    /// Call a method of the table; parameters as given.
    Call(&'static Method, Value),
    /// Draw the chunks of a volume.
    Heatmap(HeatmapArgs),
    /// List volumes, or the one with this name.
    ListVolumes(Option<String>),
    /// Call any method.
    Raw(String, Option<Value>),
    /// Print this text.
    Print(String),
    /// List presnap's methods.
    ListMethods,
}

const ABOUT: &str = "Snapshots that are copied before they are asked for: an SPDK storage target \
                     and its commands.";

/// Heading of the options that every command has.
const EVERY: &str = "Options of every command";

const ROOT_HELP: &str = "\
Examples:
  presnap serve --config configs/demo.json
  presnap volume list
  presnap snapshot create vol0 monday
  presnap snapshot list vol0 --json

Exit status: 0 done; 1 the target refused or failed; 2 wrong usage, or no target to talk to.";

const SERVE_HELP: &str = "\
Examples:
  presnap serve
  presnap serve --config configs/demo.json
  presnap serve --cores 0x3 --memory-mib 1024 --config /etc/presnap/presnap.json
  presnap serve --cores 2,3 --catalog-cores 0-1 --socket /run/presnap.sock

Stop it with SIGINT or SIGTERM, or with:
  presnap rpc spdk_kill_instance '{\"sig_name\": \"SIGTERM\"}'";

const RPC_HELP: &str = "\
Examples:
  presnap rpc bdev_get_bdevs
  presnap rpc bdev_malloc_create '{\"num_blocks\": 262144, \"block_size\": 512}'
  presnap rpc presnap_snapshot_create --help
  presnap rpc save_config > presnap.json
  presnap rpc --list

JSON is read from standard input where it is given as -.";

const VOLUME_LIST_HELP: &str = "\
Examples:
  presnap volume list
  presnap volume list vol0 --json";

/// Reads a command line.
///
/// # Errors
///
/// What clap makes of wrong usage, of `--help` and of `--version`.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Request, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(args)?;
    request(&mut command, &matches)
}

/// The whole tree.
pub fn command() -> Command {
    Command::new("presnap")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .after_help(ROOT_HELP)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(
            Arg::new("socket")
                .long("socket")
                .global(true)
                .help_heading(EVERY)
                .value_name("PATH")
                .default_value(DEFAULT_SOCKET)
                .value_parser(value_parser!(PathBuf))
                .help("JSON-RPC socket of the target"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .global(true)
                .help_heading(EVERY)
                .action(ArgAction::SetTrue)
                .help("Print the result as JSON"),
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .global(true)
                .help_heading(EVERY)
                .value_name("SECONDS")
                .value_parser(value_parser!(u64).range(1..=86_400))
                .help(
                    "How long to wait for the target's answer [default: 30, or no limit for \
                       commands that may take long]",
                ),
        )
        .subcommand(
            ServeOptions::augment_args(Command::new("serve"))
                .about("Starts the target")
                .after_help(SERVE_HELP),
        )
        .subcommand(
            ReplayArgs::augment_args(Command::new("replay"))
                .about("Replays a block trace under several policies; needs no target")
                .after_help(super::replay::HELP),
        )
        .subcommand(
            ReportArgs::augment_args(Command::new("report"))
                .about("Replays traces under every policy and reports what predicting is worth")
                .after_help(super::report::HELP),
        )
        .subcommand(
            PerfArgs::augment_args(Command::new("perf"))
                .about("Measures what a snapshot costs, with fio, beside SPDK's own snapshots")
                .after_help(super::perf::HELP),
        )
        .subcommand(
            TrainOptions::augment_args(Command::new("train"))
                .about("Trains a model that predicts modifications, from traces")
                .after_help(train::HELP),
        )
        .subcommand(group("store", "Formats, loads and lists stores"))
        .subcommand(
            group("volume", "Creates, deletes and lists volumes").subcommand(
                Command::new("list")
                    .about("Lists volumes")
                    .after_help(VOLUME_LIST_HELP)
                    .arg(Arg::new("name").value_name("NAME").help("Only this volume")),
            ),
        )
        .subcommand(group("snapshot", "Takes, lists, deletes and exports snapshots"))
        .subcommands(METHODS.iter().filter(|m| m.command.path.len() == 1).map(leaf))
        .subcommand(rpc_command())
}

fn group(name: &'static str, about: &'static str) -> Command {
    let methods = METHODS.iter().filter(|method| method.command.path[0] == name);
    let examples: Vec<_> = methods.clone().filter_map(|m| m.command.examples.first()).collect();
    let examples = examples.iter().fold("Examples:".to_owned(), |text, line| text + "\n  " + line);
    Command::new(name)
        .about(about)
        .after_help(examples)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(methods.map(leaf))
}

fn leaf(method: &'static Method) -> Command {
    let name = method.command.path.last().expect("every method has a command");
    let pictures = if draws(method) { heatmap::EXAMPLES } else { &[] };
    let after = method
        .command
        .examples
        .iter()
        .chain(pictures)
        .fold("Examples:".to_owned(), |text, line| text + "\n  " + line)
        + "\n\nCalls "
        + method.name
        + "; see `presnap rpc "
        + method.name
        + " --help` for results and errors.";
    let long_about = match method.details {
        "" => summary(method).to_owned(),
        details => format!("{}\n\n{details}", method.summary),
    };
    let command =
        Command::new(*name).about(summary(method)).long_about(long_about).after_help(after);
    let positional = method.command.positional.iter().enumerate().map(|(index, name)| {
        let param = method.param(name).expect("positional parameters are parameters");
        argument(method, param).index(index + 1)
    });
    let options = method
        .params
        .iter()
        .filter(|param| !method.command.positional.contains(&param.name))
        .map(|param| argument(method, param).long(option_name(param.name)));
    let command = command.args(positional).args(options);
    if draws(method) { heatmap::augment(command) } else { command }
}

/// Whether what it answers can be shown as a picture.
fn draws(method: &Method) -> bool {
    method.reply == Reply::Chunks
}

/// Without the full stop, as clap's own texts are.
fn summary(method: &Method) -> &'static str {
    method.summary.trim_end_matches('.')
}

/// `slot_size_kib` as `slot-size-kib`. Leaked: clap wants names that live for ever, and the tree
/// is built once per process.
fn option_name(name: &str) -> &'static str {
    name.replace('_', "-").leak()
}

fn argument(method: &Method, param: &'static Param) -> Arg {
    let absent = match (param.default, param.absent) {
        (Some("false"), _) | (None, "") => String::new(),
        (Some(json), _) => format!(" [default: {}]", json.trim_matches('"')),
        (None, absent) => format!(" [default: {}]", absent.replace('`', "")),
    };
    let bounds = match param.kind {
        Kind::Integer { min, max, unit, power_of_two } => {
            let form = if power_of_two { "a power of two, " } else { "" };
            format!(" [{form}{min} to {max}, {unit}]")
        }
        Kind::Share => " [0 to 1]".to_owned(),
        _ => String::new(),
    };
    let doc = param.doc.trim_end_matches('.').replace('`', "");
    let arg = Arg::new(param.name).help(format!("{doc}{bounds}{absent}"));
    let arg = match param.kind {
        Kind::Flag => return arg.action(ArgAction::SetTrue),
        Kind::Integer { min, max, .. } => {
            arg.value_name("N").value_parser(value_parser!(u64).range(min..=max))
        }
        Kind::Share => arg.value_name("P").value_parser(share),
        Kind::Text(_) => arg.value_name(value_name(param)),
        Kind::Choice(choices) => {
            arg.value_name(value_name(param)).value_parser(PossibleValuesParser::new(choices))
        }
        Kind::List { .. } => {
            arg.value_name(value_name(param)).action(ArgAction::Append).value_delimiter(',')
        }
    };
    let by_position = method.command.positional.first() == Some(&param.name);
    let stands_in = method.one_of.contains(&param.name) && by_position;
    let others = method.one_of.iter().copied().filter(|other| *other != param.name);
    if stands_in { arg.required_unless_present_any(others) } else { arg.required(param.required) }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "must be a number from 0 to 1, such as 0.5".to_owned())
}

fn value_name(param: &Param) -> &'static str {
    match param.name {
        "hosts" => "NQN",
        name => name.to_uppercase().leak(),
    }
}

fn rpc_command() -> Command {
    Command::new("rpc")
        .about("Calls any JSON-RPC method of the target")
        .after_help(RPC_HELP)
        .disable_help_flag(true)
        .arg(Arg::new("method").value_name("METHOD").help("Name of the method"))
        .arg(
            Arg::new("params")
                .value_name("JSON")
                .help("Parameters as a JSON object, or - to read it from standard input"),
        )
        .arg(switch("help").short('h').help("Print help, or that of METHOD"))
        .arg(switch("list").help("List presnap's methods").conflicts_with("method"))
        .arg(switch("doc").help("Print docs/rpc.md").conflicts_with_all(["method", "list"]))
        .arg(
            switch("plugin")
                .help("Print scripts/presnap_rpc.py, a plugin for SPDK's rpc.py")
                .conflicts_with_all(["method", "list", "doc"]),
        )
}

fn switch(name: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue)
}

fn request(command: &mut Command, matches: &ArgMatches) -> Result<Request, clap::Error> {
    let mut leaf_matches = matches;
    let mut path = Vec::new();
    while let Some((name, inner)) = leaf_matches.subcommand() {
        path.push(name);
        leaf_matches = inner;
    }
    let socket = leaf_matches.get_one::<PathBuf>("socket").expect("it has a default").clone();
    let action = match path[..] {
        ["serve"] => {
            let mut options = ServeOptions::from_arg_matches(leaf_matches)?;
            options.socket.clone_from(&socket);
            Action::Serve(Box::new(options))
        }
        ["perf"] => Action::Perf(Box::new(PerfArgs::from_arg_matches(leaf_matches)?)),
        ["replay"] => Action::Replay(Box::new(ReplayArgs::from_arg_matches(leaf_matches)?)),
        ["report"] => Action::Report(Box::new(ReportArgs::from_arg_matches(leaf_matches)?)),
        ["train"] => Action::Train(Box::new(TrainOptions::from_arg_matches(leaf_matches)?)),
        ["volume", "list"] => Action::ListVolumes(leaf_matches.get_one("name").cloned()),
        ["rpc"] => rpc_action(command, leaf_matches)?,
        _ => {
            let method = METHODS
                .iter()
                .find(|method| method.command.path == path)
                .expect("every other command is one of the table");
            match draws(method).then(|| heatmap::asked(leaf_matches)).flatten() {
                Some(args) => Action::Heatmap(args),
                None => Action::Call(method, params(method, leaf_matches)),
            }
        }
    };
    Ok(Request {
        socket,
        json: leaf_matches.get_flag("json"),
        timeout: leaf_matches.get_one("timeout").copied().map(Duration::from_secs),
        action,
    })
}

/// What was given, as the JSON object that the method takes.
fn params(method: &Method, matches: &ArgMatches) -> Value {
    let mut map = Map::new();
    for param in method.params {
        let name = param.name;
        let value = match param.kind {
            Kind::Flag => matches.get_flag(name).then_some(Value::Bool(true)),
            Kind::Integer { .. } => matches.get_one::<u64>(name).copied().map(Value::from),
            Kind::Share => matches.get_one::<f64>(name).copied().map(Value::from),
            Kind::Text(_) | Kind::Choice(_) => {
                matches.get_one::<String>(name).cloned().map(Value::from)
            }
            Kind::List { .. } => matches
                .get_many::<String>(name)
                .map(|items| items.cloned().map(Value::from).collect()),
        };
        if let Some(value) = value {
            map.insert(name.to_owned(), value);
        }
    }
    Value::Object(map)
}

fn rpc_action(command: &mut Command, matches: &ArgMatches) -> Result<Action, clap::Error> {
    use crate::rpc::doc;
    let name = matches.get_one::<String>("method");
    let rpc = command.find_subcommand_mut("rpc").expect("it is in the tree");
    if matches.get_flag("doc") {
        return Ok(Action::Print(doc::markdown()));
    }
    if matches.get_flag("plugin") {
        return Ok(Action::Print(doc::python_plugin()));
    }
    if matches.get_flag("list") {
        return Ok(Action::ListMethods);
    }
    let Some(name) = name else {
        let help = rpc.render_help();
        return if matches.get_flag("help") {
            Ok(Action::Print(help.to_string()))
        } else {
            let message = "name a METHOD, or use --list to see presnap's";
            Err(rpc.error(clap::error::ErrorKind::MissingRequiredArgument, message))
        };
    };
    if matches.get_flag("help") {
        return match method(name) {
            Some(method) => Ok(Action::Print(doc::method_help(method))),
            None => Err(rpc.error(
                clap::error::ErrorKind::InvalidValue,
                format!("{name:?} is no method of presnap; SPDK documents its own"),
            )),
        };
    }
    let params = match matches.get_one::<String>("params").map(String::as_str) {
        None => None,
        Some("-") => Some(
            serde_json::from_reader(std::io::stdin().lock())
                .map_err(|error| bad_json(rpc, &error))?,
        ),
        Some(text) => Some(serde_json::from_str(text).map_err(|error| bad_json(rpc, &error))?),
    };
    if params.as_ref().is_some_and(|params: &Value| !(params.is_object() || params.is_array())) {
        let message = "parameters must be a JSON object, such as '{\"name\": \"store0\"}'";
        return Err(rpc.error(clap::error::ErrorKind::ValueValidation, message));
    }
    Ok(Action::Raw(name.clone(), params))
}

fn bad_json(rpc: &mut Command, error: &serde_json::Error) -> clap::Error {
    let message = format!("parameters are not JSON: {error}; quote them, as in '{{\"a\": 1}}'");
    rpc.error(clap::error::ErrorKind::ValueValidation, message)
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
