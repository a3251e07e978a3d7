//! How far a snapshot is, on a terminal, while its create request is in flight: a second
//! connection asks for it, since the first one is busy waiting.

use std::io::Write;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use super::render;
use crate::rpc::Client;
use crate::rpc::objects::{Snapshot, SnapshotState};

/// Time between two questions: fast enough for the eye.
const POLL_MS: u64 = 250;
/// How long one question may take.
const POLL_TIMEOUT: Duration = Duration::from_secs(5);
/// Back to the line's begin, and erase it.
const ERASE: &str = "\r\x1b[K";

/// Runs `work` and meanwhile writes to `terminal` how far the snapshot is that `params` asks for.
/// Trouble with that is not worth a word: what counts is the answer to `work`.
pub fn during<T>(
    socket: &Path,
    params: &Value,
    terminal: &mut (dyn Write + Send),
    work: impl FnOnce() -> T,
) -> T {
    let query = json!({"volume": params["volume"], "name": params["name"]});
    let (end, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || watch(socket, &query, terminal, &ended));
        let result = work();
        drop(end);
        result
    })
}

fn watch(socket: &Path, query: &Value, terminal: &mut dyn Write, ended: &mpsc::Receiver<()>) {
    let mut client = None;
    let mut shown = false;
    while ended.recv_timeout(Duration::from_millis(POLL_MS)) == Err(mpsc::RecvTimeoutError::Timeout)
    {
        if client.is_none() {
            client = Client::connect(socket).ok();
        }
        let Some(connected) = &mut client else { continue };
        match connected.call("presnap_get_snapshots", Some(query), Some(POLL_TIMEOUT)) {
            Ok(answer) => {
                if let Some(line) = line(&answer) {
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

/// The line for an answer of `presnap_get_snapshots`.
fn line(answer: &Value) -> Option<String> {
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
    fn the_line_has_percent_and_time_left() {
        let mut snapshot = Snapshot::example();
        assert_eq!(line(&json!([snapshot])), None);
        snapshot.state = SnapshotState::Completing;
        snapshot.progress = Some(Progress { percent: 43, left_ms: Some(1_250) });
        let text = line(&json!([snapshot])).unwrap();
        assert_eq!(text, "vol0@monday: 43% of 18000 chunks, 1.2 s left");
        snapshot.progress = Some(Progress { percent: 0, left_ms: None });
        assert_eq!(line(&json!([snapshot])).unwrap(), "vol0@monday: 0% of 18000 chunks");
        assert_eq!(line(&json!([])), None);
        assert_eq!(line(&json!([{"name": 1}])), None);
    }
}
