//! Bytes that somebody else wrote: stores, requests, traces, models. The entry points of the fuzz targets, on inputs
//! from `fuzz/corpus` and on changes of them that a seed decides. To look further: scripts/fuzz.sh.

#[path = "../fuzz/src/entries.rs"]
mod entries;

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as usize % bound
    }

    /// One of the changes that fuzzers make.
    fn change(&mut self, input: &mut Vec<u8>) {
        if input.is_empty() {
            return input.push(self.below(256) as u8);
        }
        let at = self.below(input.len());
        match self.below(6) {
            0 => input[at] ^= 1 << self.below(8),
            1 => input[at] = self.below(256) as u8,
            2 => input.insert(at, self.below(256) as u8),
            3 => drop(input.remove(at)),
            4 => input.truncate(at),
            _ => {
                let end = at + self.below(input.len() - at) + 1;
                let part = input[at..end.min(at + 64)].to_vec();
                let to = self.below(input.len());
                input.splice(to..to, part);
            }
        }
    }
}

fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut inputs: Vec<_> = fs::read_dir(&folder)
        .expect("a corpus")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.display().to_string(), fs::read(&path).expect("an input")))
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    inputs
}

/// Every input of the corpus, and `changed` changes of them.
fn run(name: &str, entry: fn(&[u8]), changed: u32) {
    let run = |input: &[u8], what: &str| {
        let ended = panic::catch_unwind(AssertUnwindSafe(|| entry(input)));
        assert!(ended.is_ok(), "{name}: {what}: {input:x?}");
    };
    let corpus = corpus(name);
    for (path, input) in &corpus {
        run(input, path);
    }
    let mut random = Random(0x5eed_0001);
    for number in 0..changed {
        let mut input = corpus[random.below(corpus.len())].1.clone();
        for _ in 0..=random.below(4) {
            random.change(&mut input);
        }
        run(&input, &format!("change {number}"));
    }
}

#[test]
fn a_changed_store_is_loaded_or_refused() {
    run("store", entries::store, 300);
}

#[test]
fn a_changed_catalog_is_loaded_or_refused() {
    run("catalog", entries::catalog, 300);
}

#[test]
fn any_parameters_are_taken_or_refused() {
    run("rpc", entries::rpc, 20_000);
}

#[test]
fn any_trace_is_read_or_refused() {
    run("trace", entries::trace, 5_000);
}

#[test]
fn any_model_is_taken_or_refused() {
    run("model", entries::model, 20_000);
}
