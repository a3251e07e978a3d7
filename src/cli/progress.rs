//! How far a snapshot or a scrub is, on a terminal, while the request that waits for it is in flight: a
//! second connection asks for it, since the first one is busy waiting.

use std::io::Write;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use super::render;
use crate::rpc::Client;
use crate::rpc::objects::{Scrub, ScrubState, Snapshot, SnapshotState};

/// Time between two questions: fast enough for the eye.
const POLL_MS: u64 = 250;
/// How long one question may take.
const POLL_TIMEOUT: Duration = Duration::from_secs(5);
/// Back to the line's begin, and erase it.
const ERASE: &str = "\r\x1b[K";

/// What is asked meanwhile, and the line that an answer makes.
pub struct Question {
    method: &'static str,
    params: Value,
    line: fn(&Value) -> Option<String>,
}

impl Question {
    /// How far that is what a call of `method` waits for; `None`: it waits for nothing.
    pub fn about(method: &str, params: &Value) -> Option<Self> {
        match method {
            "presnap_snapshot_create" if params["wait"] != "consistent" => Some(Self {
                method: "presnap_get_snapshots",
                params: json!({"volume": params["volume"], "name": params["name"]}),
                line: snapshot_line,
            }),
            "presnap_store_scrub" if params["wait"] == true => {
                let mut params = params.clone();
                params["action"] = "status".into();
                params["wait"] = false.into();
                Some(Self { method: "presnap_store_scrub", params, line: scrub_line })
            }
            _ => None,
        }
    }
}

/// Runs `work` and meanwhile writes to `terminal` what the answers to `question` say. Trouble with that
/// is not worth a word: what counts is the answer to `work`.
pub fn during<T>(
    socket: &Path,
    question: &Question,
    terminal: &mut (dyn Write + Send),
    work: impl FnOnce() -> T,
) -> T {
    let (end, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || watch(socket, question, terminal, &ended));
        let result = work();
        drop(end);
        result
    })
}

fn watch(socket: &Path, question: &Question, terminal: &mut dyn Write, ended: &mpsc::Receiver<()>) {
    let mut client = None;
    let mut shown = false;
    while ended.recv_timeout(Duration::from_millis(POLL_MS)) == Err(mpsc::RecvTimeoutError::Timeout)
    {
        if client.is_none() {
            client = Client::connect(socket).ok();
        }
        let Some(connected) = &mut client else { continue };
        match connected.call(question.method, Some(&question.params), Some(POLL_TIMEOUT)) {
            Ok(answer) => {
                if let Some(line) = (question.line)(&answer) {
                    shown = true;
                    let _ = write!(terminal, "{ERASE}{line}").and_then(|()| terminal.flush());
                }
            }
            Err(_) => client = None,
        }
    }
    if shown {
        let _ = write!(terminal, "{ERASE}").and_then(|()| terminal.flush());
    }
}

/// The line for an answer of `presnap_store_scrub`.
fn scrub_line(answer: &Value) -> Option<String> {
    let scrub: Scrub = serde_json::from_value(answer.clone()).ok()?;
    let running = scrub.state == ScrubState::Running;
    running.then(|| {
        let (store, words) = (render::clean(&scrub.store), render::scrub_words(&scrub));
        format!("{store}: {words}, {} found damaged", scrub.found)
    })
}

/// The line for an answer of `presnap_get_snapshots`.
fn snapshot_line(answer: &Value) -> Option<String> {
    let snapshot: Snapshot = serde_json::from_value(answer.get(0)?.clone()).ok()?;
    let progress = snapshot.progress.filter(|_| snapshot.state == SnapshotState::Completing)?;
    let left =
        progress.left_ms.map_or(String::new(), |ms| format!(", {} left", render::duration_ms(ms)));
    Some(format!(
        "{}@{}: {}% of {} chunks{left}",
        render::clean(&snapshot.volume),
        render::clean(&snapshot.name),
        progress.percent,
        snapshot.chunks.required
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::objects::Progress;

    #[test]
    fn a_scrub_has_a_line_while_it_runs() {
        let mut scrub = Scrub::example();
        let line = |scrub: &Scrub| scrub_line(&serde_json::to_value(scrub).unwrap());
        assert_eq!(
            line(&scrub).unwrap(),
            "store0: running: 50% of 20480 slots, 40 s left, 1 found damaged"
        );
        scrub.state = ScrubState::Done;
        assert_eq!(line(&scrub), None);
    }

    #[test]
    fn only_what_waits_is_asked_about() {
        let asks = |method: &str, params: Value| {
            Question::about(method, &params).map(|question| (question.method, question.params))
        };
        let scrub = "presnap_store_scrub";
        let status = json!({"name": "s", "action": "status", "wait": false});
        assert_eq!(asks(scrub, json!({"name": "s", "wait": true})), Some((scrub, status)));
        assert_eq!(asks(scrub, json!({"name": "s"})), None);
        let create = json!({"volume": "v", "name": "a"});
        let get = "presnap_get_snapshots";
        assert_eq!(asks("presnap_snapshot_create", create.clone()), Some((get, create)));
        let consistent = json!({"volume": "v", "name": "a", "wait": "consistent"});
        assert_eq!(asks("presnap_snapshot_create", consistent), None);
        assert_eq!(asks(get, json!({})), None);
    }

    #[test]
    fn the_line_has_percent_and_time_left() {
        let mut snapshot = Snapshot::example();
        assert_eq!(snapshot_line(&json!([snapshot])), None);
        snapshot.state = SnapshotState::Completing;
        snapshot.progress = Some(Progress { percent: 43, left_ms: Some(1_250) });
        let text = snapshot_line(&json!([snapshot])).unwrap();
        assert_eq!(text, "vol0@monday: 43% of 18000 chunks, 1.2 s left");
        snapshot.progress = Some(Progress { percent: 0, left_ms: None });
        assert_eq!(snapshot_line(&json!([snapshot])).unwrap(), "vol0@monday: 0% of 18000 chunks");
        assert_eq!(snapshot_line(&json!([])), None);
        assert_eq!(snapshot_line(&json!([{"name": 1}])), None);
    }
}
