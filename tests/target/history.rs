//! What may be concluded from a history of self-describing writes and the bytes of a bdev.

use std::path::Path;

use crate::agent::{BLOCK_BYTES, LogEntry, read_log};

/// For each 4 KiB block the number of the write that it holds; 0 for zeros.
///
/// # Panics
/// When a block is torn, or holds what was written elsewhere.
pub fn numbers(bytes: &[u8]) -> Vec<u64> {
    let long = |pair: &[u8]| u64::from_le_bytes(pair[..8].try_into().expect("8 bytes"));
    let blocks = bytes.chunks_exact(BLOCK_BYTES).enumerate().map(|(index, block)| {
        let number = long(block);
        let place = if number == 0 { 0 } else { index as u64 };
        for (at, pair) in block.chunks_exact(16).enumerate() {
            assert!(
                (long(pair), long(&pair[8..])) == (number, place),
                "block {index} is torn: (write, block) is ({number}, {place}) at its start and \
                 ({}, {}) at byte {}",
                long(pair),
                long(&pair[8..]),
                at * 16
            );
        }
        number
    });
    blocks.collect()
}

/// All writes of one volume, in order of their numbers.
pub fn history<'a>(logs: impl IntoIterator<Item = &'a Path>) -> Vec<LogEntry> {
    let mut entries: Vec<LogEntry> = logs.into_iter().flat_map(read_log).collect();
    entries.sort_by_key(|entry| entry.number);
    for (index, entry) in entries.iter().enumerate() {
        assert_eq!(entry.number, index as u64 + 1, "the logs have a gap");
    }
    entries
}

/// The commands that a write becomes on its way: an initiator cuts it at the boundary that the
/// namespace announces, the chunk size.
fn commands(entry: &LogEntry, boundary: u32) -> impl Iterator<Item = LogEntry> {
    let (entry, end) = (*entry, entry.block + entry.count);
    std::iter::successors(Some(entry.block), move |block| Some((block / boundary + 1) * boundary))
        .take_while(move |&block| block < end)
        .map(move |block| {
            let count = end.min((block / boundary + 1) * boundary) - block;
            LogEntry { block, count, ..entry }
        })
}

fn blocks(entry: &LogEntry) -> std::ops::Range<usize> {
    entry.block as usize..(entry.block + entry.count) as usize
}

/// I1: `numbers` (of a snapshot) is what one instant between `requested_ns` and `replied_ns` left.
/// Writes are whole, or whole between multiples of `boundary` blocks if they came as several commands.
///
/// # Errors
/// What contradicts that.
pub fn check_cut(
    numbers: &[u64],
    history: &[LogEntry],
    requested_ns: u64,
    replied_ns: u64,
    boundary: Option<u32>,
) -> Result<(), String> {
    for (block, &number) in numbers.iter().enumerate() {
        if number != 0 {
            let entry = history.get(number as usize - 1);
            if !entry.is_some_and(|entry| blocks(entry).contains(&block)) {
                return Err(format!("block {block} holds write {number}, which never was there"));
            }
        }
    }
    // Writes of one block never overlap in time, so what comes after a write contains it.
    let (mut last_in, mut first_out) = ((0, 0), (u64::MAX, 0));
    let boundary = boundary.unwrap_or(u32::MAX / 2);
    for entry in history.iter().flat_map(|entry| commands(entry, boundary)) {
        let number = entry.number;
        let count = numbers[blocks(&entry)].iter().filter(|&&held| held >= number).count();
        if count == 0 {
            if entry.acknowledged_ns != 0 && entry.acknowledged_ns < requested_ns {
                return Err(format!("lacks {entry:?}, acknowledged before {requested_ns}"));
            }
            if entry.acknowledged_ns != 0 {
                first_out = first_out.min((entry.acknowledged_ns, number));
            }
        } else if count < entry.count as usize {
            return Err(format!("has {count} of the {} blocks of {entry:?}", entry.count));
        } else {
            if entry.submitted_ns > replied_ns {
                return Err(format!("contains {entry:?}, submitted after {replied_ns}"));
            }
            last_in = last_in.max((entry.submitted_ns, number));
        }
    }
    if last_in.0 > first_out.0 {
        return Err(format!(
            "contains write {} but not write {}, which was acknowledged before it was submitted",
            last_in.1, first_out.1
        ));
    }
    Ok(())
}

/// After a crash: every block holds its last acknowledged write, or one submitted after that.
pub fn check_survivors(numbers: &[u64], history: &[LogEntry]) {
    let mut least = vec![0; numbers.len()];
    for entry in history.iter().filter(|entry| entry.acknowledged_ns != 0) {
        least[blocks(entry)].fill(entry.number);
    }
    for (block, (&number, &least)) in numbers.iter().zip(&least).enumerate() {
        assert!(number >= least, "block {block} holds write {number}, not {least}");
        if number != 0 {
            let entry = &history[number as usize - 1];
            assert!(blocks(entry).contains(&block), "block {block} holds {entry:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITES: [(u32, u32, u64, u64); 4] =
        [(0, 4, 1, 2), (0, 2, 10, 20), (2, 1, 15, 25), (0, 1, 30, 40)];

    fn cut(numbers: [u64; 4], requested_ns: u64, replied_ns: u64) -> Result<(), String> {
        let mut history = Vec::new();
        for (index, (block, count, submitted_ns, acknowledged_ns)) in WRITES.iter().enumerate() {
            let number = index as u64 + 1;
            let (block, count) = (*block, *count);
            let (submitted_ns, acknowledged_ns) = (*submitted_ns, *acknowledged_ns);
            history.push(LogEntry { number, block, count, submitted_ns, acknowledged_ns });
        }
        check_cut(&numbers, &history, requested_ns, replied_ns, None)
    }

    #[test]
    fn a_cut_may_have_what_was_in_flight_or_not() {
        for numbers in [[1, 1, 1, 1], [2, 2, 1, 1], [1, 1, 3, 1], [2, 2, 3, 1]] {
            cut(numbers, 16, 18).unwrap();
        }
        cut([4, 2, 3, 1], 16, 35).unwrap();
    }

    #[test]
    fn no_cut_breaks_the_rules() {
        let is = |result: Result<(), String>, what: &str| {
            assert!(result.as_ref().is_err_and(|error| error.contains(what)), "{result:?}");
        };
        is(cut([1, 1, 3, 1], 22, 24), "lacks");
        is(cut([4, 2, 3, 1], 16, 18), "submitted after");
        is(cut([2, 1, 1, 1], 16, 18), "has 1 of the 2 blocks");
        is(cut([4, 2, 1, 1], 16, 35), "acknowledged before it was submitted");
        is(cut([1, 1, 1, 2], 16, 35), "never was there");
    }

    #[test]
    fn a_write_is_cut_at_the_boundary() {
        let entry =
            LogEntry { number: 1, block: 15, count: 20, submitted_ns: 0, acknowledged_ns: 0 };
        let cut = |boundary| -> Vec<(u32, u32)> {
            commands(&entry, boundary).map(|entry| (entry.block, entry.count)).collect()
        };
        assert_eq!(cut(16), [(15, 1), (16, 16), (32, 3)]);
        assert_eq!(cut(u32::MAX / 2), [(15, 20)]);
    }
}
