//! A JSON-RPC 2.0 client over a Unix socket, as SPDK's targets speak it: one object after the
//! other, with nothing between them that could be relied on, in pieces of any size.
//!
//! One call at a time per connection; blocking, for the thread that calls.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::RpcError;

/// Longest answer taken. A full page of chunks has about 10 MB.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Answers with a foreign id that are passed over, at most.
const FOREIGN_ANSWERS_MAX: usize = 16;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("cannot connect to {}: {}", socket.display(), connect_remedy(source))]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The target refused the call.
    #[error("{0}")]
    Refused(RpcError),
    /// No answer in time. What was asked for may still happen.
    #[error("{method}: no answer within {} s; it may still happen (--timeout waits longer)",
        timeout.as_secs_f64())]
    TimedOut {
        /// The method.
        method: String,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The connection ended. What was asked for may have happened.
    #[error("{method}: the target closed the connection before it answered; see its log")]
    Closed {
        /// The method.
        method: String,
    },
    /// What came is no JSON-RPC answer.
    #[error("{method}: {} does not speak JSON-RPC: {problem}", socket.display())]
    Garbage {
        /// The method.
        method: String,
        /// The socket.
        socket: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Reading or writing failed.
    #[error("{method}: {}: {source}", socket.display())]
    Io {
        /// The method.
        method: String,
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn connect_remedy(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket; start a target with `presnap serve`, \
                                    or name its socket with --socket"
            .into(),
        io::ErrorKind::ConnectionRefused => "no target listens there any more; start one with \
                                             `presnap serve`, or name its socket with --socket"
            .into(),
        io::ErrorKind::PermissionDenied => {
            "permission denied; run this as the user that runs the target, usually root".into()
        }
        _ => format!("{error}; name the target's socket with --socket"),
    }
}

/// A connection to a target.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    socket: PathBuf,
    frames: Frames,
    next_id: u64,
}

impl Client {
    /// Connects to the target that listens on `socket`.
    ///
    /// # Errors
    ///
    /// [`ClientError::Connect`].
    pub fn connect(socket: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(socket)
            .map_err(|source| ClientError::Connect { socket: socket.into(), source })?;
        Ok(Self { stream, socket: socket.into(), frames: Frames::default(), next_id: 1 })
    }

    /// Calls a method and waits for its result, for `timeout` at most (none: for ever).
    ///
    /// # Errors
    ///
    /// Every kind but [`ClientError::Connect`]. After any but [`ClientError::Refused`] the
    /// connection is of no more use.
    pub fn call(
        &mut self,
        method: &str,
        params: Option<&Value>,
        timeout: Option<Duration>,
    ) -> Result<Value, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({"jsonrpc": "2.0", "id": id, "method": method});
        if let Some(params) = params {
            request["params"] = params.clone();
        }
        let deadline = timeout.map(|timeout| (Instant::now() + timeout, timeout));
        self.send(method, &request, deadline)?;
        for _ in 0..FOREIGN_ANSWERS_MAX {
            let answer = self.receive(method, deadline)?;
            // An error with a null id is about a request that could not be read: ours.
            let ours = answer["id"] == json!(id)
                || (answer["id"].is_null() && answer.get("error").is_some());
            if !ours {
                continue;
            }
            if let Some(error) = answer.get("error") {
                return Err(match serde_json::from_value::<RpcError>(error.clone()) {
                    Ok(mut error) => {
                        // Some of SPDK's own end with a line feed.
                        error.message.truncate(error.message.trim_end().len());
                        ClientError::Refused(error)
                    }
                    Err(problem) => self.garbage(method, format!("bad error object: {problem}")),
                });
            }
            return match answer.get("result") {
                Some(result) => Ok(result.clone()),
                None => Err(self.garbage(method, "an answer without a result".into())),
            };
        }
        Err(self.garbage(method, "only answers to requests that were not made".into()))
    }

    fn send(
        &mut self,
        method: &str,
        request: &Value,
        deadline: Option<(Instant, Duration)>,
    ) -> Result<(), ClientError> {
        let mut bytes = request.to_string().into_bytes();
        bytes.push(b'\n');
        self.arm(method, deadline, UnixStream::set_write_timeout)?;
        self.stream.write_all(&bytes).map_err(|source| self.failed(method, source, deadline))
    }

    fn receive(
        &mut self,
        method: &str,
        deadline: Option<(Instant, Duration)>,
    ) -> Result<Value, ClientError> {
        let mut piece = vec![0; 64 << 10];
        loop {
            match self.frames.next_frame() {
                Ok(None) => {}
                Ok(Some(frame)) => {
                    let answer = serde_json::from_slice::<Value>(&frame);
                    return answer.map_err(|error| self.garbage(method, error.to_string()));
                }
                Err(problem) => return Err(self.garbage(method, problem)),
            }
            self.arm(method, deadline, UnixStream::set_read_timeout)?;
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(ClientError::Closed { method: method.into() }),
                Ok(count) => self.frames.push(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed(method, source, deadline)),
            }
        }
    }

    /// Gives the next operation of the socket what is left of the time.
    fn arm(
        &self,
        method: &str,
        deadline: Option<(Instant, Duration)>,
        set: fn(&UnixStream, Option<Duration>) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let left = match deadline {
            None => None,
            Some((deadline, timeout)) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(ClientError::TimedOut { method: method.into(), timeout });
                }
                Some(left)
            }
        };
        set(&self.stream, left).map_err(|source| self.failed(method, source, deadline))
    }

    fn failed(
        &self,
        method: &str,
        source: io::Error,
        deadline: Option<(Instant, Duration)>,
    ) -> ClientError {
        match (source.kind(), deadline) {
            (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some((_, timeout))) => {
                ClientError::TimedOut { method: method.into(), timeout }
            }
            (io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset, _) => {
                ClientError::Closed { method: method.into() }
            }
            _ => ClientError::Io { method: method.into(), socket: self.socket.clone(), source },
        }
    }

    fn garbage(&self, method: &str, problem: String) -> ClientError {
        ClientError::Garbage { method: method.into(), socket: self.socket.clone(), problem }
    }
}

/// Cuts a stream of bytes into JSON objects. Each byte is looked at once, however the stream is
/// cut into pieces.
#[derive(Debug, Default)]
struct Frames {
    bytes: Vec<u8>,
    scanned: usize,
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Frames {
    fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
    }

    /// The next whole object; `None`: more bytes are needed.
    fn next_frame(&mut self) -> Result<Option<Vec<u8>>, String> {
        while let Some(&byte) = self.bytes.get(self.scanned) {
            self.scanned += 1;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'{' => self.depth += 1,
                b'}' if self.depth == 1 => {
                    let rest = self.bytes.split_off(self.scanned);
                    let frame = std::mem::replace(&mut self.bytes, rest);
                    self.scanned = 0;
                    self.depth = 0;
                    return Ok(Some(frame));
                }
                b'}' if self.depth > 1 => self.depth -= 1,
                b'"' if self.depth > 0 => self.in_string = true,
                b' ' | b'\t' | b'\r' | b'\n' | b'\0' if self.depth == 0 => {
                    self.bytes.drain(..self.scanned);
                    self.scanned = 0;
                }
                _ if self.depth == 0 => {
                    return Err(format!("answers begin with '{{', not with byte {byte:#04x}"));
                }
                _ => {}
            }
        }
        if self.bytes.len() > ANSWER_BYTES_MAX {
            return Err(format!("an answer of more than {ANSWER_BYTES_MAX} bytes"));
        }
        Ok(None)
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
