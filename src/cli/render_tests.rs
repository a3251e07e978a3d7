use serde_json::json;

use super::*;
use crate::rpc::objects::{Latency, Progress};
use crate::rpc::{METHODS, PolicyName, method};

fn rendered(name: &str, value: &Value) -> String {
    result(method(name).unwrap(), value).unwrap()
}

#[test]
fn every_example_renders_without_loose_ends() {
    for method in METHODS {
        let text = result(method, &method.reply.example()).unwrap();
        assert_eq!(text.is_empty(), method.reply == Reply::True, "{}", method.name);
        assert!(text.is_empty() || text.ends_with('\n'), "{}", method.name);
        for line in text.lines() {
            assert_eq!(line, line.trim_end(), "{}", method.name);
            assert!(line.chars().count() <= 160, "{line}");
        }
    }
}

#[test]
fn other_shapes_are_refused() {
    for method in METHODS {
        for wrong in [json!(null), json!(7), json!({"surprise": 1}), json!([7])] {
            assert!(result(method, &wrong).is_err(), "{} {wrong}", method.name);
        }
    }
}

#[test]
fn a_newer_target_s_fields_are_passed_over() {
    let mut value = Reply::Snapshot.example();
    value["surprise"] = json!(1);
    assert!(rendered("presnap_snapshot_create", &value).contains("vol0@monday"));
}

#[test]
fn a_scrub_names_what_is_damaged() {
    let text = rendered("presnap_store_scrub", &Reply::Scrub.example());
    assert!(text.contains("running: 50% of 20480 slots, 40 s left"), "{text}");
    assert!(text.contains("2.5 GiB in 40 s, at most 64 MiB/s"), "{text}");
    let last: Vec<_> = text.lines().last().expect("lines").split_whitespace().collect();
    let fields = ["4096", "vol0", "monday", "16", "4194304", "256", "KiB", "8192", "512"];
    assert_eq!(last[..fields.len()], fields, "{text}");
    let mut scrub = Scrub::example();
    scrub.damaged = 3;
    assert!(super::scrub(&scrub).ends_with("and 2 more\n"));
    scrub.damaged_slots.clear();
    scrub.state = ScrubState::Failed;
    scrub.reason = Some("no device".into());
    let text = super::scrub(&scrub);
    assert!(text.contains("failed: no device") && !text.contains("SNAPSHOTS"), "{text}");
}

#[test]
fn stores_are_a_table() {
    let text = rendered("presnap_get_stores", &Reply::Stores.example());
    let lines: Vec<_> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(lines[0][..4], ["STORE", "BDEV", "STATE", "SLOT"]);
    assert_eq!(
        lines[1],
        [
            "store0", "Nvme1n1", "loaded", "256", "KiB", "262010", "241020", "500", "3072", "10",
            "17408", "1", "3.9%", "vol0"
        ]
    );
    let mut store = Store::example();
    store.state = StoreState::Failed;
    store.reason = Some("device removed".into());
    store.volumes[0].attached = false;
    let text = stores(&[store]);
    assert!(text.contains("failed: device removed") && text.contains("vol0 (detached)"), "{text}");
    assert_eq!(stores(&[]).lines().count(), 1);
}

#[test]
fn snapshots_show_state_and_progress() {
    let mut snapshot = Snapshot::example();
    let text = snapshots(std::slice::from_ref(&snapshot));
    assert!(text.contains("complete") && text.contains("4.2 GiB"), "{text}");
    snapshot.state = SnapshotState::Completing;
    snapshot.times.complete_us = 0;
    snapshot.progress = Some(Progress { percent: 43, left_ms: None });
    let text = super::snapshot(&snapshot);
    assert!(text.contains("completing 43%") && text.contains("complete not yet"), "{text}");
    snapshot.state = SnapshotState::Failed;
    snapshot.reason = Some("store full".into());
    assert!(super::snapshot(&snapshot).contains("failed: store full"));
    assert!(super::snapshot(&snapshot).contains("crash"));
}

#[test]
fn an_export_says_how_to_connect() {
    let text = rendered("presnap_snapshot_export", &Reply::Export.example());
    let nqn = Export::example().nqn;
    let wanted = format!("nvme connect -t tcp -a 127.0.0.1 -s 4420 -n {nqn}\n");
    assert!(text.contains(&wanted), "{text}");
    assert!(export(&Export { hosts: None, ..Export::example() }).contains("every host"));
}

#[test]
fn volumes_are_a_table() {
    let mut volume = Volume::example();
    volume.state = VolumeState::NoStore;
    volume.policy.policy = PolicyName::Off;
    let text = volumes(&[Volume::example(), volume]);
    assert!(
        text.contains("idle 1 s") && text.contains("32 GiB") && text.contains("3.2%"),
        "{text}"
    );
    assert!(text.contains("no store") && text.contains("off"), "{text}");
}

#[test]
fn stats_have_a_block_per_volume() {
    let mut stats = Stats::example();
    stats.volumes.push(stats.volumes[0].clone());
    stats.volumes[1].volume = "vol1".into();
    stats.volumes[1].preserve =
        Latency { count: 0, mean_us: 0, p50_us: 0, p90_us: 0, p99_us: 0, p999_us: 0, max_us: 0 };
    stats.volumes[1].staging.off_reason = Some("3 copies\nfailed".into());
    let text = super::stats(&stats);
    assert!(text.contains("\n\nvolume      vol1\n"), "{text}");
    assert_eq!(text.matches("off: ").count(), 1, "{text}");
    assert!(
        text.contains("\nstaging     off: 3 copies") && text.contains("failed; 3072 slots"),
        "{text}"
    );
    assert!(text.contains("\npreserve    -\n"), "{text}");
    assert!(text.contains("p99 212 us"), "{text}");
    let reactor =
        "core 0 stood still 1 times by itself, up to 14 ms; had no CPU 2 times, up to 37 ms";
    assert!(text.ends_with(&format!("\n\nreactor  {reactor}\n")), "{text}");
    stats.reactors[0].stalls = 0;
    assert!(!super::stats(&stats).contains("reactor"), "all is well");
    assert_eq!(super::stats(&Stats { volumes: vec![], reactors: vec![] }), "");
}

#[test]
fn chunks_say_how_to_go_on() {
    let text = rendered("presnap_get_chunks", &Reply::Chunks.example());
    assert!(text.ends_with("go on with: presnap chunks vol0 --start 2\n"), "{text}");
    assert!(text.contains("outdated") && text.contains("212 ms ago"), "{text}");
    let mut page = ChunkPage::example();
    page.next = None;
    page.chunks[0].staging_location = None;
    let text = chunks(&page);
    assert!(text.contains("zero") && !text.contains("go on"), "{text}");
}

#[test]
fn what_a_target_says_cannot_move_the_cursor() {
    let mut snapshot = Snapshot::example();
    snapshot.reason = Some("\x1b[2Jgone\nnext".into());
    snapshot.state = SnapshotState::Failed;
    assert!(!super::snapshot(&snapshot).contains('\x1b'));
    assert_eq!(clean("a\tb\u{9b}c"), "a\u{fffd}b\u{fffd}c");
}

#[test]
fn sizes_and_times_have_fitting_units() {
    for (count, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (256 << 10, "256 KiB"),
        ((1 << 20) - 1, "1023.9 KiB"),
        (16 << 40, "16 TiB"),
        (u64::MAX, "15.9 EiB"),
    ] {
        assert_eq!(bytes(count), text);
    }
    for (us, text) in [
        (0, "0 us"),
        (999, "999 us"),
        (1_000, "1 ms"),
        (2_480, "2.4 ms"),
        (59_999_999, "59.9 s"),
        (90_000_000, "1.5 min"),
        (7_200_000_000, "2 h"),
        (259_200_000_000, "3 days"),
    ] {
        assert_eq!(duration_us(us), text);
    }
    assert_eq!(duration_ms(u64::MAX), duration_us(u64::MAX));
    assert_eq!(bytes_per_s(1 << 20, 500), "2 MiB/s");
    assert_eq!(bytes_per_s(u64::MAX, 1), "15.9 EiB/s");
    assert_eq!(bytes_per_s(7, 0), "0 B/s");
    assert_eq!(percent(0, 0), "0%");
    assert_eq!(percent(1, 100_000), "<0.1%");
    assert_eq!(percent(5, 4), "125.0%");
}
