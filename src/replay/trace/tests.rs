use std::io::Write;

use super::*;

fn file(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

fn records(content: &[u8], disk: Option<&str>) -> Result<Vec<TraceRecord>, TraceError> {
    let file = file(content);
    Trace::open(file.path(), disk)?.collect()
}

fn record(time_us: u64, kind: TraceKind, offset_bytes: u64, length_bytes: u64) -> TraceRecord {
    TraceRecord { time_us, kind, offset_bytes, length_bytes }
}

const PROJECT: &str =
    "time_us,op,offset_bytes,length_bytes\n0,R,512,1024\n\n7,W,4096,512\r\n7,U,0,65536\n";

#[test]
fn the_projects_format_packed_and_not() {
    let expected = [
        record(0, TraceKind::Read, 512, 1024),
        record(7, TraceKind::Write, 4096, 512),
        record(7, TraceKind::Unmap, 0, 65536),
    ];
    assert_eq!(records(PROJECT.as_bytes(), None).unwrap(), expected);
    let packed = zstd::bulk::compress(PROJECT.as_bytes(), 3).unwrap();
    assert_eq!(records(&packed, None).unwrap(), expected);
    let survey = Survey::of(Trace::open(file(&packed).path(), None).unwrap()).unwrap();
    let expected = Survey {
        reads: 1,
        modifications: 2,
        modified_bytes: 66048,
        span_us: 7,
        end_bytes: 65536,
        late: 0,
    };
    assert_eq!(survey, expected);
}

#[test]
fn msr_cambridge() {
    let trace = "128166372003061629,usr,0,Read,7014609920,24576,41286\n\
                 128166372016382155,usr,0,Write,1317441536,8192,1963\n\
                 128166372016382155,usr,1,Write,512,512,1963\n\
                 128166372016382095,usr,0,Write,1024,512,1963\n";
    let expected = [
        record(0, TraceKind::Read, 7_014_609_920, 24576),
        record(1_332_053, TraceKind::Write, 1_317_441_536, 8192),
        // A little late: as of the one before.
        record(1_332_053, TraceKind::Write, 1024, 512),
    ];
    assert_eq!(records(trace.as_bytes(), None).unwrap(), expected, "the first disk");
    assert_eq!(records(trace.as_bytes(), Some("usr.0")).unwrap(), expected);
    let other = records(trace.as_bytes(), Some("usr.1")).unwrap();
    assert_eq!(other, [record(0, TraceKind::Write, 512, 512)]);
    assert!(records(trace.as_bytes(), Some("usr.2")).unwrap().is_empty());
}

#[test]
fn fio_with_and_without_times() {
    let v2 = "fio version 2 iolog\n/dev/a add\n/dev/a open\n/dev/a write 4096 512\n\
              /dev/a wait 1500 0\n/dev/a read 0 512\n/dev/a sync 0 0\n/dev/a wait 500\n\
              /dev/a trim 8192 4096\n/dev/b write 0 512\n/dev/a close\n";
    let expected = [
        record(0, TraceKind::Write, 4096, 512),
        record(1500, TraceKind::Read, 0, 512),
        record(2000, TraceKind::Unmap, 8192, 4096),
    ];
    assert_eq!(records(v2.as_bytes(), None).unwrap(), expected);
    let v3 = "fio version 3 iolog\n1 a add\n2 a open\n100 a write 4096 512\n1600 a read 0 512\n\
              1600 a datasync 0 0\n2100 a trim 8192 4096\n2200 a write 0 0\n2300 a close\n";
    assert_eq!(records(v3.as_bytes(), None).unwrap(), expected);
}

#[test]
fn errors_name_file_line_problem_and_remedy() {
    let header = "time_us,op,offset_bytes,length_bytes\n";
    for (content, words) in [
        (String::new(), "line 1: it is empty"),
        ("hello\n".to_owned(), "begins with \"hello\""),
        (format!("{header}1,W,0\n"), "line 2: it has 3 fields, not 4"),
        (format!("{header}0,R,0,512\n1,X,0,512\n"), "line 3: op is \"X\""),
        (format!("{header}0,R,0,99999999999999999999\n"), "line 2: length_bytes is"),
        (format!("{header}0,R,18446744073709551615,512\n"), "on no device"),
        (format!("{header}90000000,R,0,512\n90000000,R,0,512\n0,R,0,512\n"), ""),
        (format!("{header}0,R,0,512\n90000000,R,0,512\n1,R,0,512\n"), "line 4: time goes back"),
        ("fio version 2 iolog\na bend 1 2\n".to_owned(), "line 2: \"bend\" is no action"),
        ("fio version 3 iolog\n7 a write 1\n".to_owned(), "line 2: it ends before its length"),
        ("1,h,0,Flush,0,512,9\n".to_owned(), "line 1: type is \"Flush\""),
        (format!("{header}{}\n", "1".repeat(9000)), "line 2: the line has"),
    ] {
        let file = file(content.as_bytes());
        let result =
            Trace::open(file.path(), None).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        if words.is_empty() {
            assert!(result.is_ok(), "{content}");
            continue;
        }
        let error = result.expect_err(&content).to_string();
        assert!(error.contains(words), "{error}");
        assert!(error.starts_with(&file.path().display().to_string()), "{error}");
        assert!(error.contains("; "), "no remedy: {error}");
    }
    let gzip = file(&[0x1f, 0x8b, 8, 0]);
    assert!(Trace::open(gzip.path(), None).unwrap_err().to_string().contains("gunzip"));
    let text = [header.as_bytes(), b"\xff\xfe\n"].concat();
    assert!(records(&text, None).unwrap_err().to_string().contains("not text"));
    let packed = zstd::bulk::compress(PROJECT.repeat(1000).as_bytes(), 3).unwrap();
    let torn = records(&packed[..packed.len() / 2], None).unwrap_err().to_string();
    assert!(torn.contains("complete") || torn.contains("line"), "{torn}");
    assert!(Trace::open(Path::new("/no/such/trace"), None).is_err());
}

#[test]
fn an_error_ends_the_trace() {
    let file = file(b"time_us,op,offset_bytes,length_bytes\n0,X,0,1\n0,R,0,1\n");
    let mut trace = Trace::open(file.path(), None).unwrap();
    assert!(trace.next().unwrap().is_err());
    assert!(trace.next().is_none());
}

#[test]
fn the_real_traces_are_what_their_manifest_says() {
    let Some(folder) = crate::replay::traces_folder() else {
        eprintln!("skipped: no traces here; set PRESNAP_TRACES to their folder");
        return;
    };
    for (name, reads, writes, seconds) in [
        ("cloudphysics_vm_2h", 46_974, 66_898, 7200),
        ("winpc_a_3h15m", 36_705, 50_455, 11_700),
        ("rocksdb_ycsba_optane_25s", 1, 64_188, 24),
    ] {
        let path = folder.join(format!("{name}.csv.zst"));
        let survey = Survey::of(Trace::open(&path, None).unwrap()).unwrap();
        assert_eq!((survey.reads, survey.modifications), (reads, writes), "{name}");
        assert!((survey.span_us / 1_000_000).abs_diff(seconds) <= 40, "{name}: {survey:?}");
        assert_eq!(survey.late, 0, "{name}");
    }
}
