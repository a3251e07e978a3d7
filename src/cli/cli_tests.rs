use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Console, execute};
use crate::rpc::objects::{Progress, Scrub, ScrubState, Snapshot, SnapshotState, Volume};
use crate::rpc::schema::Reply;
use crate::rpc::{Errno, METHODS, decode};

type Answer = dyn Fn(&str, &Value) -> Result<Value, (i32, String)> + Send + Sync;

/// A target in a thread: takes any number of connections until the test process ends.
struct Target {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    calls: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Target {
    fn new(answer: Box<Answer>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("target.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let answer: Arc<Answer> = answer.into();
        let log = Arc::clone(&calls);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                thread::spawn(move || talk(stream.unwrap(), &*answer, &log));
            }
        });
        Self { _folder: folder, socket, calls }
    }

    /// Exit status, standard output, standard error.
    fn run(&self, line: &str) -> (u8, String, String) {
        run(&format!("{line} --socket {}", self.socket.display()), false)
    }

    fn calls(&self) -> Vec<(String, Value)> {
        self.calls.lock().unwrap().clone()
    }
}

fn talk(stream: UnixStream, answer: &Answer, log: &Mutex<Vec<(String, Value)>>) {
    let mut writer = stream.try_clone().unwrap();
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let request: Value = serde_json::from_str(&line).unwrap();
        let method = request["method"].as_str().unwrap();
        log.lock().unwrap().push((method.to_owned(), request["params"].clone()));
        let id = &request["id"];
        let reply = match answer(method, &request["params"]) {
            Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
            Err((code, message)) => {
                json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
            }
        };
        if writer.write_all(reply.to_string().as_bytes()).is_err() {
            return;
        }
    }
}

fn run(line: &str, terminal: bool) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = line.split_whitespace().map(OsString::from);
    let mut console =
        Console { out: &mut out, err: &mut err, err_is_terminal: terminal, colours: false };
    let status = execute(args, &mut console);
    (status, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// Checks parameters like the real target and answers with the table's examples.
fn example_target() -> Target {
    Target::new(Box::new(|method, params| {
        let table = crate::rpc::method(method).expect("only presnap's methods are called");
        decode(method, params).map_err(|error| (error.code, error.message))?;
        Ok(table.reply.example())
    }))
}

#[test]
fn every_command_calls_its_method_and_prints_the_result() {
    let target = example_target();
    for method in METHODS {
        for example in method.command.examples {
            let (status, out, err) = target.run(example);
            assert_eq!((status, err.as_str()), (0, ""), "{example}");
            assert_eq!(out.is_empty(), method.reply == Reply::True, "{example}");
            assert_eq!(target.calls().last().unwrap().0, method.name);
            if example.contains("--json") {
                continue;
            }
            let (status, out, _) = target.run(&format!("{example} --json"));
            assert_eq!(status, 0);
            assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), method.reply.example());
        }
    }
}

#[test]
fn refusals_are_one_line_and_status_1() {
    let target = Target::new(Box::new(|_, _| {
        Err((Errno::Busy.code(), "store \"store0\" is in use: delete volume \"vol0\"".into()))
    }));
    let (status, out, err) = target.run("presnap store delete store0");
    assert_eq!((status, out.as_str()), (1, ""));
    assert_eq!(err, "error: store \"store0\" is in use: delete volume \"vol0\" (-EBUSY)\n");
}

#[test]
fn messages_of_a_target_stay_on_their_line() {
    let target = Target::new(Box::new(|_, _| Err((-1, "a\nb\x1b[2J".into()))));
    let (_, _, err) = target.run("presnap store list");
    assert_eq!(err.lines().count(), 1);
    assert!(!err.contains('\x1b'));
}

#[test]
fn bad_parameters_are_wrong_usage_and_never_sent() {
    let target = example_target();
    let (status, _, err) = target.run("presnap snapshot create vol0 a@b");
    assert_eq!(status, 2);
    assert!(err.contains("'@' and '/' are not allowed in names"), "{err}");
    let (status, _, err) = target.run("presnap store create s b --slot-size-kib 100");
    assert_eq!(status, 2);
    assert!(err.contains("power of two"), "{err}");
    assert!(target.calls().is_empty());
}

#[test]
fn no_target_is_status_2() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    for command in ["store list", "volume list", "rpc bdev_get_bdevs", "snapshot create v s"] {
        let (status, out, err) =
            run(&format!("presnap {command} --socket {}", socket.display()), true);
        assert_eq!((status, out.as_str()), (2, ""), "{command}");
        assert!(
            err.contains("error: cannot connect to ") && err.contains("presnap serve"),
            "{err}"
        );
    }
}

#[test]
fn help_and_version_are_status_0_and_wrong_usage_2() {
    let (status, out, err) = run("presnap --help", false);
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(out.contains("Exit status"));
    assert_eq!(run("presnap --version", false).0, 0);
    assert_eq!(run("presnap rpc --help", false).0, 0);
    let (status, out, err) = run("presnap store frobnicate", false);
    assert_eq!((status, out.as_str()), (2, ""));
    assert!(err.starts_with("error: ") && !err.contains('\x1b'), "{err}");
    assert_eq!(run("presnap", false).0, 2);
}

#[cfg(not(feature = "spdk"))]
#[test]
fn serve_without_spdk_says_so() {
    let (status, _, err) = run("presnap serve", false);
    assert_eq!(status, 1);
    assert!(err.contains("built without SPDK"), "{err}");
}

#[test]
fn raw_calls_print_json() {
    let target = Target::new(Box::new(|method, params| Ok(json!({"m": method, "p": params}))));
    let (status, out, _) = target.run("presnap rpc bdev_get_iostat {\"name\":\"vol0\"}");
    assert_eq!(status, 0);
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value, json!({"m": "bdev_get_iostat", "p": {"name": "vol0"}}));
}

#[test]
fn save_config_is_put_together_as_rpc_py_does_it() {
    let target = Target::new(Box::new(|method, params| match method {
        "framework_get_subsystems" => Ok(json!([
            {"subsystem": "bdev", "depends_on": []},
            {"subsystem": "nvmf", "depends_on": ["bdev"]},
            {"subsystem": "accel", "depends_on": []},
        ])),
        "framework_get_config" if params["name"] == "accel" => Ok(json!(null)),
        "framework_get_config" => {
            Ok(json!([{"method": format!("{}_set", params["name"].as_str().unwrap())}]))
        }
        _ => Err((crate::rpc::METHOD_NOT_FOUND_CODE, "Method not found".into())),
    }));
    let (status, out, err) = target.run("presnap rpc save_config");
    assert_eq!((status, err.as_str()), (0, ""));
    let wanted = json!({"subsystems": [
        {"subsystem": "bdev", "config": [{"method": "bdev_set"}]},
        {"subsystem": "nvmf", "config": [{"method": "nvmf_set"}]},
        {"subsystem": "accel", "config": null},
    ]});
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), wanted);
}

#[test]
fn a_target_may_die_of_spdk_kill_instance_before_it_answers() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("dying.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            BufReader::new(stream.unwrap()).read_line(&mut String::new()).unwrap();
        }
    });
    let socket = socket.display();
    let kill = "presnap rpc spdk_kill_instance {\"sig_name\":\"SIGTERM\"}";
    let (status, out, err) = run(&format!("{kill} --socket {socket}"), false);
    assert_eq!((status, out.as_str(), err.as_str()), (0, "true\n", ""));
    assert_eq!(run(&format!("presnap rpc bdev_get_bdevs --socket {socket}"), false).0, 1);
}

#[test]
fn other_spdk_targets_are_recognised() {
    let target = Target::new(Box::new(|_, _| {
        Err((crate::rpc::METHOD_NOT_FOUND_CODE, "Method not found".into()))
    }));
    let (status, _, err) = target.run("presnap store list");
    assert_eq!(status, 1);
    assert!(err.contains("does not know presnap_get_stores: it is another SPDK target"), "{err}");
}

#[test]
fn volumes_are_found_among_bdevs() {
    let volume = serde_json::to_value(Volume::example()).unwrap();
    let target = Target::new(Box::new(move |method, params| {
        assert_eq!(method, "bdev_get_bdevs");
        let all = json!([
            {"name": "Nvme0n1", "driver_specific": {"nvme": {}}},
            {"name": "vol0", "driver_specific": {"presnap": volume}},
            {"name": "vol0@monday", "driver_specific": {"presnap_snapshot": {}}},
            {"name": "Malloc0"},
        ]);
        match params["name"].as_str() {
            None => Ok(all),
            Some("vol0") => Ok(json!([all[1]])),
            Some("Malloc0") => Ok(json!([all[3]])),
            Some(_) => Err((Errno::NoDev.code(), "No such device".into())),
        }
    }));
    let (status, out, _) = target.run("presnap volume list");
    assert_eq!((status, out.lines().count()), (0, 2));
    assert!(out.contains("vol0") && out.contains("Nvme0n1"), "{out}");
    let (status, out, _) = target.run("presnap volume list vol0 --json");
    assert_eq!(status, 0);
    let list: Vec<Volume> = serde_json::from_str(&out).unwrap();
    assert_eq!(list, [Volume::example()]);
    let (status, _, err) = target.run("presnap volume list Malloc0");
    assert_eq!(status, 1);
    assert!(err.contains("\"Malloc0\" is no volume"), "{err}");
    let (status, _, err) = target.run("presnap volume list nothing");
    assert_eq!(status, 1);
    assert!(err.contains("no volume \"nothing\""), "{err}");
}

#[test]
fn a_failed_snapshot_is_status_1_and_shown() {
    let target = Target::new(Box::new(|_, _| {
        let mut snapshot = Snapshot::example();
        snapshot.state = SnapshotState::Failed;
        snapshot.reason = Some("store full".into());
        Ok(serde_json::to_value(snapshot).unwrap())
    }));
    let (status, out, err) = target.run("presnap snapshot create vol0 monday");
    assert_eq!(status, 1);
    assert!(out.contains("vol0@monday"), "{out}");
    assert_eq!(err, "error: the snapshot failed: store full\n");
}

#[test]
fn strange_results_are_errors_and_json_shows_them() {
    let target = Target::new(Box::new(|_, _| Ok(json!({"from": "the future"}))));
    let (status, _, err) = target.run("presnap stats");
    assert_eq!(status, 1);
    assert!(err.contains("--json prints it as it is"), "{err}");
    let (status, out, _) = target.run("presnap stats --json");
    assert_eq!(status, 0);
    assert!(out.contains("the future"));
}

#[test]
fn the_user_s_timeout_holds_for_slow_commands_too() {
    let (given_up, no_answer_before) = mpsc::channel::<()>();
    let no_answer_before = Mutex::new(no_answer_before);
    let target = Target::new(Box::new(move |_, _| {
        let _ = no_answer_before.lock().unwrap().recv();
        Ok(json!(true))
    }));
    let (status, _, err) = target.run("presnap snapshot delete vol0 monday --timeout 1");
    drop(given_up);
    assert_eq!(status, 1);
    assert!(err.contains("no answer within 1 s"), "{err}");
}

/// A target whose create takes a while, as seen through a second connection.
fn slow_create() -> Target {
    Target::new(Box::new(|method, params| {
        let mut snapshot = Snapshot::example();
        if method == "presnap_snapshot_create" {
            thread::sleep(Duration::from_millis(900));
            return Ok(serde_json::to_value(snapshot).unwrap());
        }
        assert_eq!(params, &json!({"volume": "vol0", "name": "monday"}));
        snapshot.state = SnapshotState::Completing;
        snapshot.progress = Some(Progress { percent: 43, left_ms: Some(500) });
        Ok(json!([snapshot]))
    }))
}

fn create(socket: &Path, options: &str, terminal: bool) -> (u8, String, String) {
    let socket = socket.display();
    run(&format!("presnap snapshot create vol0 monday {options} --socket {socket}"), terminal)
}

#[test]
fn progress_is_shown_on_a_terminal_and_erased() {
    let target = slow_create();
    let (status, out, err) = create(&target.socket, "", true);
    assert_eq!(status, 0);
    assert!(err.contains("\r\x1b[Kvol0@monday: 43% of 18000 chunks, 500 ms left"), "{err:?}");
    assert!(err.ends_with("\r\x1b[K"), "{err:?}");
    assert!(out.contains("complete"));
    assert!(target.calls().iter().any(|(method, _)| method == "presnap_get_snapshots"));
}

#[test]
fn progress_is_not_shown_elsewhere() {
    let target = slow_create();
    for (options, terminal) in [("", false), ("--json", true), ("--wait consistent", true)] {
        let (status, _, err) = create(&target.socket, options, terminal);
        assert_eq!((status, err.as_str()), (0, ""), "{options}");
    }
    assert!(target.calls().iter().all(|(method, _)| method == "presnap_snapshot_create"));
}

/// Who runs a scrub from a script learns of damage by the exit status.
#[test]
fn a_scrub_that_ends_badly_has_a_bad_status() {
    for (state, damaged, words) in [
        (ScrubState::Done, 0, ""),
        (ScrubState::Running, 1, ""),
        (ScrubState::Done, 2, "error: 2 slots are damaged"),
        (ScrubState::Failed, 0, "error: the scrub failed: no device"),
    ] {
        let reason = (state == ScrubState::Failed).then(|| "no device".to_owned());
        let scrub = Scrub { state, reason, damaged, ..Scrub::example() };
        let target = Target::new(Box::new(move |_, _| Ok(serde_json::to_value(&scrub).unwrap())));
        let (status, out, err) = target.run("presnap store scrub store0 --wait");
        assert_eq!((status == 0, err.is_empty()), (words.is_empty(), words.is_empty()), "{err}");
        assert!(err.starts_with(words) && out.contains("damaged now"), "{out} {err}");
    }
}

#[test]
fn replay_prints_a_row_per_policy_and_needs_no_target() {
    let mut trace = tempfile::NamedTempFile::new().unwrap();
    writeln!(trace, "time_us,op,offset_bytes,length_bytes").unwrap();
    for second in 0..130 {
        writeln!(trace, "{},W,{},4096", second * 1_000_000, second % 7 * (1 << 20)).unwrap();
    }
    let path = trace.path().display();
    let line = format!("presnap replay {path} --every 1m --policy off --policy idle:2s");
    let (status, out, err) = run(&line, true);
    assert_eq!(status, 0, "{err}");
    assert!(err.contains("% of") || err.contains("s left"), "{err:?}");
    assert!(err.ends_with("\r\u{1b}[K"), "the progress is erased: {err:?}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 4, "{out}");
    assert!(lines[0].contains("130 modifications, 2 snapshots (every 60 s)"), "{out}");
    assert!(lines[2].starts_with("off ") && lines[2].contains("0.0%"), "{out}");
    assert!(lines[3].starts_with("idle 2 s ") && lines[3].contains("14 "), "{out}");
    let (status, out, err) = run(&format!("{line} --json"), false);
    assert_eq!((status, err.as_str()), (0, ""));
    let reports: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(reports[0]["required"], 14);
    assert_eq!(reports[0]["adopted_share"], 0.0);
    assert_eq!(reports[1]["snapshots"].as_array().unwrap().len(), 2);
    let (status, _, err) = run("presnap replay /no/such/trace", false);
    assert_eq!(status, 1);
    assert!(err.starts_with("error: /no/such/trace: "), "{err}");
}

/// Fails when a page is left out, or asked for twice.
#[test]
fn a_picture_is_made_of_all_pages_and_written_where_it_is_asked_for() {
    let target = Target::new(Box::new(|_, params| {
        let (start, count) = (params["start"].as_u64().unwrap(), params["count"].as_u64().unwrap());
        let mut page = Reply::Chunks.example();
        let chunk = page["chunks"][0].take();
        let end = (start + count).min(10_000);
        let chunks = (start..end).map(|id| {
            let mut chunk = chunk.clone();
            chunk["chunk_id"] = id.into();
            chunk
        });
        page["chunks"] = chunks.collect();
        page["total"] = 10_000.into();
        page["next"] = if end < 10_000 { end.into() } else { Value::Null };
        Ok(page)
    }));
    let (status, out, err) = target.run("presnap chunks vol0 --heatmap --start 100");
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(out.starts_with("vol0: 2.4 GiB from 25 MiB on; a cell is 2 MiB\n"), "{out}");
    let asked: Vec<_> = target.calls().iter().map(|call| call.1["start"].clone()).collect();
    assert_eq!(asked, [100, 4196, 8292]);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vol0.svg");
    let line = format!("presnap chunks vol0 --count 10 --heatmap-file {}", file.display());
    assert_eq!(target.run(&line), (0, String::new(), String::new()));
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("<svg "));

    let (status, _, err) = target.run("presnap chunks vol0 --heatmap-file vol0.png");
    assert!(status == 2 && err.contains("ends in .svg"), "{err}");
    let (status, _, err) = target.run("presnap chunks vol0 --heatmap --json");
    assert!(status == 2 && err.contains("no JSON"), "{err}");
}
