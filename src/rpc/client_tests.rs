use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Client, ClientError, FOREIGN_ANSWERS_MAX, Frames};

/// A target that takes one connection, reads one request line and lets `answer` do the rest.
fn with_target<T>(
    answer: impl FnOnce(Value, &mut UnixStream) + Send,
    ask: impl FnOnce(&mut Client) -> T,
) -> T {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("target.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // Outlives the target, which would fail to write to a connection that is gone.
    let mut client = Client::connect(&socket).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            answer(serde_json::from_str(&line).unwrap(), &mut stream);
        });
        ask(&mut client)
    })
}

fn ask_with_reply(reply: &'static [u8]) -> Result<Value, ClientError> {
    with_target(
        |_, stream| stream.write_all(reply).unwrap(),
        |client| client.call("some_method", None, Some(Duration::from_secs(10))),
    )
}

#[test]
fn requests_carry_method_params_and_id() {
    let result = with_target(
        |request, stream| {
            assert_eq!(request["jsonrpc"], "2.0");
            assert_eq!(request["method"], "bdev_get_bdevs");
            assert_eq!(request["params"], json!({"name": "vol0"}));
            let answer = json!({"jsonrpc": "2.0", "id": request["id"], "result": ["yes"]});
            stream.write_all(answer.to_string().as_bytes()).unwrap();
        },
        |client| client.call("bdev_get_bdevs", Some(&json!({"name": "vol0"})), None),
    );
    assert_eq!(result.unwrap(), json!(["yes"]));
}

#[test]
fn absent_params_are_not_sent_as_null() {
    with_target(
        |request, stream| {
            assert!(request.get("params").is_none());
            stream.write_all(br#"{"id": 1, "result": true}"#).unwrap();
        },
        |client| client.call("spdk_get_version", None, None).unwrap(),
    );
}

#[test]
fn answers_come_in_pieces_of_one_byte() {
    let result = with_target(
        |_, stream| {
            let text = "\n {\"id\":1,\"result\":{\"text\":\"} \\\" { \\\\\",\"more\":[{}]}}\n";
            for byte in text.bytes() {
                stream.write_all(&[byte]).unwrap();
                stream.flush().unwrap();
            }
        },
        |client| client.call("m", None, Some(Duration::from_secs(10))),
    );
    assert_eq!(result.unwrap()["text"], "} \" { \\");
}

#[test]
fn large_answers_come_whole() {
    let result = with_target(
        |_, stream| {
            let list: Vec<Value> =
                (0..200_000).map(|n| json!({"chunk_id": n, "valid": true})).collect();
            stream.write_all(json!({"id": 1, "result": list}).to_string().as_bytes()).unwrap();
        },
        |client| client.call("m", None, Some(Duration::from_secs(30))),
    );
    assert_eq!(result.unwrap().as_array().unwrap().len(), 200_000);
}

#[test]
fn several_calls_share_a_connection_and_answers_that_arrive_together_stay_apart() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("target.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            lines.next().unwrap().unwrap();
            // The answer to the second request comes before it is asked, which a client must
            // stand; a late answer to an earlier request is passed over.
            let all = r#"{"id":1,"result":"a"}{"id":1,"result":"late"}{"id":2,"result":"b"}"#;
            (&stream).write_all(all.as_bytes()).unwrap();
            lines.next().unwrap().unwrap();
        });
        let mut client = Client::connect(&socket).unwrap();
        let timeout = Some(Duration::from_secs(10));
        assert_eq!(client.call("m", None, timeout).unwrap(), "a");
        assert_eq!(client.call("m", None, timeout).unwrap(), "b");
    });
}

#[test]
fn error_objects_are_refusals() {
    let error = ask_with_reply(
        br#"{"jsonrpc":"2.0","id":1,"error":{"code":-17,"message":"store \"a\" exists"}}"#,
    )
    .unwrap_err();
    assert!(matches!(&error, ClientError::Refused(error) if error.code == -17));
    assert_eq!(error.to_string(), "store \"a\" exists (-EEXIST)");
}

#[test]
fn parse_errors_of_the_target_have_a_null_id() {
    let reply = br#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}"#;
    let error = ask_with_reply(reply).unwrap_err();
    assert_eq!(error.to_string(), "Parse error (-32700)");
}

#[test]
fn garbage_is_called_that() {
    for (reply, what) in [
        (&b"SSH-2.0-OpenSSH\r\n"[..], "answers begin with"),
        (b"[1,2]", "answers begin with"),
        (b"}", "answers begin with"),
        (b"{\"id\": 1, oops}", "key must be a string"),
        (b"{\"id\": 1, \"result\": \"\xff\"}", "invalid unicode"),
        (b"{\"id\": 1}", "without a result"),
        (b"{\"id\": 1, \"error\": \"no\"}", "bad error object"),
    ] {
        let error = ask_with_reply(reply).unwrap_err();
        assert!(matches!(error, ClientError::Garbage { .. }), "{error}");
        let text = error.to_string();
        assert!(text.starts_with("some_method: ") && text.contains(what), "{text}");
    }
}

#[test]
fn foreign_answers_are_not_waited_through_for_ever() {
    let error = with_target(
        |_, stream| {
            for _ in 0..FOREIGN_ANSWERS_MAX {
                stream.write_all(br#"{"id": 77, "result": 1}"#).unwrap();
            }
        },
        |client| client.call("m", None, Some(Duration::from_secs(10))),
    )
    .unwrap_err();
    assert!(error.to_string().contains("requests that were not made"), "{error}");
}

#[test]
fn a_closed_connection_is_told_before_and_amid_an_answer() {
    for reply in [&b""[..], b"{\"id\": 1, \"resu"] {
        let error = ask_with_reply(reply).unwrap_err();
        assert!(matches!(error, ClientError::Closed { .. }), "{error}");
        assert!(error.to_string().contains("some_method"), "{error}");
    }
}

#[test]
fn silence_ends_at_the_deadline_even_if_bytes_trickle() {
    let started = Instant::now();
    let error = with_target(
        |_, stream| {
            // Each byte would restart a timeout per read; the deadline is for the whole answer.
            while stream.write_all(b" ").is_ok() && started.elapsed() < Duration::from_secs(20) {
                thread::sleep(Duration::from_millis(20));
            }
        },
        |client| {
            let error = client.call("slow", None, Some(Duration::from_millis(200))).unwrap_err();
            client.stream.shutdown(std::net::Shutdown::Both).unwrap();
            error
        },
    );
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    assert!(error.to_string().contains("slow: no answer within 0.2 s"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_target_that_does_not_read_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("target.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let mut client = Client::connect(&socket).unwrap();
    let large = json!("x".repeat(8 << 20));
    let error = client.call("m", Some(&large), Some(Duration::from_millis(100))).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
}

#[test]
fn connect_errors_name_the_socket_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.sock");
    let text = Client::connect(&missing).unwrap_err().to_string();
    assert!(text.contains("missing.sock") && text.contains("presnap serve"), "{text}");
    // What a killed target leaves behind.
    let stale = folder.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    let text = Client::connect(&stale).unwrap_err().to_string();
    assert!(text.contains("no target listens there any more"), "{text}");
    let long = folder.path().join("x".repeat(200));
    let text = Client::connect(&long).unwrap_err().to_string();
    assert!(text.contains("--socket"), "{text}");
}

#[test]
fn frames_do_not_depend_on_how_the_stream_is_cut() {
    let stream = b"\0{\"a\":\"\\\"}{\"}\n{\"b\":{\"c\":[1,{}]}} {}";
    let whole = [&b"{\"a\":\"\\\"}{\"}"[..], b"{\"b\":{\"c\":[1,{}]}}", b"{}"];
    for size in 1..=stream.len() {
        let mut frames = Frames::default();
        let mut found = Vec::new();
        for piece in stream.chunks(size) {
            frames.push(piece);
            while let Some(frame) = frames.next_frame().unwrap() {
                found.push(frame);
            }
        }
        assert_eq!(found, whole, "in pieces of {size}");
    }
}

#[test]
fn endless_answers_are_refused() {
    let mut frames = Frames::default();
    frames.push(b"{\"a\":\"");
    let piece = vec![b'x'; 1 << 20];
    let refused = (0..=64).find_map(|_| {
        frames.push(&piece);
        frames.next_frame().err()
    });
    assert!(refused.unwrap().contains("more than"));
}

#[test]
fn a_target_may_close_without_reading() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("target.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut client = Client::connect(&socket).unwrap();
    let (stream, _) = listener.accept().unwrap();
    drop(stream);
    let error = client.call("m", None, Some(Duration::from_secs(10))).unwrap_err();
    assert!(matches!(error, ClientError::Closed { .. }), "{error}");
}
