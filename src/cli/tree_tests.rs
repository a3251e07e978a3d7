use std::ffi::OsString;

use clap::Command;
use serde_json::{Value, json};

use super::{Action, Request, command, parse};
use crate::cli::serve::{CoreList, LogLevel};
use crate::rpc::schema::Kind;
use crate::rpc::{METHODS, decode};

fn line(text: &str) -> Result<Request, clap::Error> {
    parse(words(text).into_iter().map(OsString::from))
}

/// Splits as a shell does, as far as the examples need it: spaces and quotes.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in text.chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\'' | '"', None) => quote = Some(c),
            (' ', None) => words.push(String::new()),
            (c, _) => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn call(text: &str) -> (&'static str, Value) {
    match line(text).unwrap_or_else(|error| panic!("{error}")).action {
        Action::Call(method, params) => (method.name, params),
        other => panic!("{other:?}"),
    }
}

fn refusal(text: &str) -> String {
    line(text).expect_err("must be refused").to_string()
}

/// Every line that begins with `presnap` in the help of any command.
fn examples(command: &mut Command, found: &mut Vec<String>) {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    for text in help.lines().filter_map(|line| line.strip_prefix("  ")) {
        if text.starts_with("presnap ") {
            let text = text.split(" > ").next().unwrap();
            found.push(text.to_owned());
        }
    }
    for inner in command.get_subcommands_mut() {
        examples(inner, found);
    }
}

#[test]
fn the_tree_is_sound() {
    command().debug_assert();
}

#[test]
fn every_example_in_any_help_parses() {
    let mut found = Vec::new();
    examples(&mut command(), &mut found);
    assert!(found.len() > 40, "{}", found.len());
    for example in &found {
        let request = line(example).unwrap_or_else(|error| panic!("{example}: {error}"));
        if let Action::Call(method, params) = request.action {
            decode(method.name, &params).unwrap_or_else(|error| panic!("{example}: {error}"));
        }
    }
    for method in METHODS {
        for example in method.command.examples {
            let (name, _) = call(example);
            assert_eq!(name, method.name, "{example}");
            assert!(found.iter().any(|text| text == example), "{example}");
        }
    }
}

/// `presnap` commands in the console blocks of a document, without what only the shell reads.
fn commands_of(document: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut inside = false;
    for text in document.lines() {
        match text {
            "```console" => inside = true,
            "```" => inside = false,
            _ if inside && !text.contains('\\') => {
                let command = text.trim_start_matches("$ ").trim_start_matches("until ");
                let end = [" > ", " >> ", " 2>&1", " | ", " &", ";"]
                    .iter()
                    .filter_map(|mark| command.find(mark))
                    .min()
                    .unwrap_or(command.len());
                if command.starts_with("presnap ") {
                    commands.push(command[..end].to_owned());
                }
            }
            _ => {}
        }
    }
    commands
}

#[test]
fn every_command_in_the_documents_parses() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = 0;
    for path in ["docs/operating.md", "docs/rpc.md", "configs/README.md", "README.md"] {
        let Ok(document) = std::fs::read_to_string(root.join(path)) else { continue };
        for command in commands_of(&document) {
            found += 1;
            let request =
                line(&command).unwrap_or_else(|error| panic!("{path}: {command}: {error}"));
            match request.action {
                Action::Call(method, params) if !command.contains('$') => {
                    decode(method.name, &params)
                        .unwrap_or_else(|error| panic!("{path}: {command}: {error}"));
                }
                _ => {}
            }
        }
    }
    assert!(found > 60, "{found}");
}

#[test]
fn every_command_has_examples_in_its_help() {
    fn check(command: &Command, path: &str) {
        if command.get_name() == "help" {
            return;
        }
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains(&format!("\n  {path}")), "{path}: {help}");
        for inner in command.get_subcommands() {
            check(inner, &format!("{path} {}", inner.get_name()));
        }
    }
    check(&command(), "presnap");
}

#[test]
fn every_parameter_of_every_method_can_be_given() {
    for method in METHODS {
        let mut text = format!("presnap {}", method.command.path.join(" "));
        let mut wanted = serde_json::Map::new();
        let mut add = |param: &crate::rpc::schema::Param, text: &mut String, option: &str| {
            let (word, value) = match param.kind {
                Kind::Flag => ("", json!(true)),
                Kind::Integer { .. } => ("64", json!(64)),
                Kind::Share => ("0.25", json!(0.25)),
                Kind::Text(_) => ("some-text", json!("some-text")),
                Kind::Choice(choices) => (choices[1], json!(choices[1])),
                Kind::List { .. } => ("a,b", json!(["a", "b"])),
            };
            text.extend([" ", option, " ", word]);
            wanted.insert(param.name.to_owned(), value);
        };
        for name in method.command.positional {
            add(method.param(name).unwrap(), &mut text, "");
        }
        for param in method.params {
            if !method.command.positional.contains(&param.name) {
                let option = format!("--{}", param.name.replace('_', "-"));
                add(param, &mut text, &option);
            }
        }
        let (name, params) = call(&text);
        assert_eq!((name, params), (method.name, Value::Object(wanted)), "{text}");
    }
}

#[test]
fn what_is_not_given_is_not_sent() {
    assert_eq!(call("presnap policy vol0").1, json!({"volume": "vol0"}));
    assert_eq!(call("presnap store create s b").1, json!({"name": "s", "bdev": "b"}));
    assert_eq!(call("presnap store list").1, json!({}));
}

#[test]
fn hosts_may_be_repeated_or_listed() {
    let wanted = json!(["a", "b", "c"]);
    let (_, params) = call("presnap snapshot export v s --hosts a,b --hosts c");
    assert_eq!(params["hosts"], wanted);
}

#[test]
fn wrong_usage_is_refused_with_the_bounds() {
    assert!(refusal("presnap snapshot create vol0").contains("<NAME>"));
    assert!(refusal("presnap volume create vol0 --store s").contains("--base-bdev"));
    assert!(refusal("presnap policy v --policy best").contains("possible values: off, idle"));
    assert!(refusal("presnap policy v --staging-limit-percent 101").contains("0..=100"));
    assert!(refusal("presnap store create s b --slot-size 64").contains("--slot-size-kib"));
    assert!(refusal("presnap snapshots list").contains("snapshot"));
    assert!(refusal("presnap store unload").contains("<NAME>"));
    assert!(line("presnap store unload --bdev b").is_ok());
    assert!(refusal("presnap").contains("Usage: presnap"));
    assert!(refusal("presnap store list --timeout 0").contains("1..=86400"));
}

#[test]
fn options_of_every_command_are_taken_before_and_after_it() {
    for text in [
        "presnap --socket /run/p.sock --json --timeout 7 store list",
        "presnap store --socket /run/p.sock list --json --timeout 7",
    ] {
        let request = line(text).unwrap();
        assert_eq!(request.socket.to_str(), Some("/run/p.sock"));
        assert_eq!((request.json, request.timeout.map(|t| t.as_secs())), (true, Some(7)));
    }
    let request = line("presnap store list").unwrap();
    assert_eq!(request.socket.to_str(), Some(super::DEFAULT_SOCKET));
    assert_eq!((request.json, request.timeout), (false, None));
}

#[test]
fn serve_reads_all_its_options() {
    let Action::Serve(options) = line("presnap serve").unwrap().action else { panic!() };
    assert_eq!((options.cores.as_str(), options.memory_mib), ("0x1", None));
    assert_eq!((options.log_level, options.config), (LogLevel::Notice, None));
    assert_eq!(options.socket.to_str(), Some(super::DEFAULT_SOCKET));
    let text = "presnap serve -c a.json -m 0,1 -s 512 --hugepage-dir /h \
                --no-pci --catalog-cores 1 --predictor-cores 2 --shm-id 3 --num-trace-entries 1024 --wait-for-rpc --log-level debug \
                --socket /s";
    let Action::Serve(options) = line(text).unwrap().action else { panic!() };
    assert_eq!(options.config.unwrap().to_str(), Some("a.json"));
    assert_eq!((options.cores.as_str(), options.memory_mib), ("[0,1]", Some(512)));
    assert_eq!(options.hugepage_dir.unwrap().to_str(), Some("/h"));
    assert_eq!(options.catalog_cores, Some(CoreList(vec![1])));
    assert_eq!(options.predictor_cores, Some(CoreList(vec![2])));
    assert_eq!((options.shm_id, options.log_level), (Some(3), LogLevel::Debug));
    assert_eq!(options.num_trace_entries, Some(1024));
    assert_eq!(options.socket.to_str(), Some("/s"));
    assert!(options.no_pci && options.wait_for_rpc);
    assert!(refusal("presnap serve --cores 0x0").contains("such as 0x3"));
    assert!(refusal("presnap serve --catalog-cores x").contains("such as 0,2-5"));
    assert!(refusal("presnap serve --num-trace-entries 5").contains("power of two"));
    assert!(refusal("presnap serve --memory-mib 1").contains("64"));
}

#[test]
fn raw_calls_take_any_method() {
    let raw = |text: &str| match line(text).unwrap().action {
        Action::Raw(method, params) => (method, params),
        other => panic!("{other:?}"),
    };
    assert_eq!(raw("presnap rpc bdev_get_bdevs"), ("bdev_get_bdevs".into(), None));
    assert_eq!(raw("presnap rpc x '{\"a\": [1]}'").1, Some(json!({"a": [1]})));
    assert!(refusal("presnap rpc x {a:1}").contains("not JSON"));
    assert!(refusal("presnap rpc x 7").contains("must be a JSON object"));
    assert!(refusal("presnap rpc").contains("--list"));
    assert!(refusal("presnap rpc bdev_get_bdevs --help").contains("no method of presnap"));
    assert!(refusal("presnap rpc --doc --plugin").contains("cannot be used with"));
}

#[test]
fn rpc_help_is_of_the_method_if_there_is_one() {
    let printed = |text: &str| match line(text).unwrap().action {
        Action::Print(text) => text,
        other => panic!("{other:?}"),
    };
    assert!(printed("presnap rpc --help").contains("presnap rpc --list"));
    let help = printed("presnap rpc presnap_get_chunks --help");
    assert!(help.contains("staged_only (boolean; default: false)"), "{help}");
    assert!(help.contains("Result: ChunkPage. "), "{help}");
    assert!(printed("presnap rpc --doc").starts_with("# presnap's JSON-RPC methods"));
    assert!(printed("presnap rpc --plugin").contains("def spdk_rpc_plugin_initialize"));
    assert!(matches!(line("presnap rpc --list").unwrap().action, Action::ListMethods));
}

#[test]
fn report_reads_its_options() {
    let Action::Report(args) = line("presnap report").unwrap().action else { panic!() };
    assert!(args.traces.is_empty() && args.threads.is_none() && !args.quick);
    assert_eq!(args.out.to_str(), Some("prediction-report"));
    let text =
        "presnap report a b --quick --threads 3 --workloads 0 --out o --model m --learned-from c,d";
    let Action::Report(args) = line(text).unwrap().action else { panic!() };
    assert_eq!((args.traces.len(), args.threads, args.workloads), (2, Some(3), Some(0)));
    assert_eq!(args.learned_from.unwrap(), ["c", "d"]);
    assert!(refusal("presnap report --model m").contains("--learned-from"));
    assert!(refusal("presnap report --threads 0").contains("threads"));
}

#[test]
fn replay_reads_its_options() {
    let Action::Replay(args) = line("presnap replay a.csv").unwrap().action else { panic!() };
    assert_eq!(args.every, 600_000_000);
    assert!(args.policies.is_empty() && args.irregular.is_none() && !args.schedule_known);
    let text = "presnap replay a b --policy idle:15s --policy rate:0.8 --irregular 7 --disk usr.0 \
                --chunk-size-kib 64 --staging-chunks-max 9 --copy-mbytes-per-sec 0.5 --json";
    let request = line(text).unwrap();
    let Action::Replay(args) = request.action else { panic!() };
    assert!(request.json);
    assert_eq!((args.traces.len(), args.irregular), (2, Some(7)));
    assert_eq!((args.chunk_size_kib, args.copy_mbytes_per_sec), (64, Some(500_000)));
    let policies: Vec<String> = args.policies.iter().map(ToString::to_string).collect();
    assert_eq!(policies, ["idle:15s", "rate:0.8"]);
    assert!(refusal("presnap replay").contains("TRACE"));
    assert!(refusal("presnap replay a --policy best").contains("no policy"));
    assert!(refusal("presnap replay a --policy rate:7").contains("no probability"));
    assert!(refusal("presnap replay a --every 10y").contains("no time"));
    assert!(refusal("presnap replay a --every 1m --irregular 3").contains("cannot be used"));
    assert!(refusal("presnap replay a --chunk-size-kib 8").contains("64"));
}
