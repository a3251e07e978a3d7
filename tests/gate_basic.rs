//! The gate's rules one by one, on one thread. See `loom_gate.rs` for what threads can do to them
//! and `gate_model.rs` for long random histories.
#![cfg(not(loom))]

use std::sync::Arc;

use presnap::gate::{
    BlockMap, ChunkIndex, ChunkState, CopyEnd, CutRefused, Entry, Epoch, Gate, Geometry, Initial,
    LANES_MAX, LbaRange, OperationNumber, Passage, ReadSource,
};

const CHUNK_LBAS: u64 = 64;

/// 256 KiB chunks of 4 KiB device blocks, so that a map block is a device block.
fn gate(chunks: u64, initial: Initial) -> Gate {
    let geometry = Geometry::new(256 << 10, 4096, chunks * CHUNK_LBAS).expect("in bounds");
    Gate::new(geometry, initial, OperationNumber(100)).expect("small")
}

fn blocks(chunk: u64, first: u64, count: u64) -> LbaRange {
    LbaRange::new(chunk * CHUNK_LBAS + first, count)
}

#[track_caller]
fn entered(gate: &Gate, range: LbaRange) -> (u64, u32) {
    match gate.enter(range) {
        Entry::Entered { operation, epoch } => (operation.0, epoch.0),
        other => panic!("{other:?}"),
    }
}

fn write(gate: &Gate, range: LbaRange) {
    entered(gate, range);
    gate.leave(range);
}

fn stage(gate: &Gate, chunk: ChunkIndex) -> CopyEnd {
    let taken = gate.begin_copy(chunk).expect("chunk can be copied");
    gate.end_copy(chunk, true, taken)
}

fn walk(gate: &Gate, epoch: Epoch) -> Vec<u32> {
    let (mut walk, mut found) = (gate.dirty_walk(epoch), Vec::new());
    while !gate.take_dirty(&mut walk, 1, |chunk| found.push(chunk.0)) {}
    found
}

const C0: ChunkIndex = ChunkIndex(0);
const C1: ChunkIndex = ChunkIndex(1);

#[test]
fn a_command_counts_on_all_its_chunks() {
    let gate = gate(3, Initial::Clean);
    let range = blocks(0, 60, 70);
    assert_eq!(entered(&gate, range), (100, 1));
    for chunk in 0..3 {
        assert_eq!(gate.in_flight(ChunkIndex(chunk)), 1);
        assert!(gate.is_dirty(ChunkIndex(chunk)));
    }
    gate.leave(range);
    assert_eq!(gate.in_flight(C0), 0);
    assert!(gate.view(C0).map.is_empty(), "no copy, no map");
    gate.self_check().unwrap();
}

#[test]
fn a_staged_chunk_learns_its_outdated_blocks() {
    let gate = gate(1, Initial::AllDirty);
    assert_eq!(gate.begin_copy(C0), Some(BlockMap::ALL));
    assert_eq!(gate.begin_copy(C0), None, "one copy at a time");
    write(&gate, blocks(0, 3, 2));
    let outdated = CopyEnd::Outdated { map: BlockMap(0b11000) };
    assert_eq!(gate.end_copy(C0, true, BlockMap::ALL), outdated);
    let taken = gate.begin_copy(C0).unwrap();
    assert_eq!(taken, BlockMap(0b11000));
    assert_eq!(gate.end_copy(C0, false, taken), outdated, "a failed refresh gives the bits back");
    assert_eq!(stage(&gate, C0), CopyEnd::Valid);
    assert!(gate.view(C0).valid());
    entered(&gate, blocks(0, 0, 1));
    assert!(!gate.view(C0).valid());
    gate.leave(blocks(0, 0, 1));
    assert_eq!(gate.block_map(C0), BlockMap(1));
}

#[test]
fn a_cut_adopts_drains_preserves_and_parks() {
    let gate = gate(5, Initial::Clean);
    for chunk in 0..4 {
        write(&gate, blocks(chunk, 0, 1));
    }
    assert_eq!(stage(&gate, C0), CopyEnd::Valid);
    assert_eq!(stage(&gate, C1), CopyEnd::Valid);
    write(&gate, blocks(1, 7, 1));
    entered(&gate, blocks(2, 0, 1));
    let cut = gate.cut().unwrap();
    assert_eq!((cut.old_epoch, cut.new_epoch), (Epoch(1), Epoch(2)));
    assert_eq!(cut.operation, OperationNumber(106));
    assert_eq!(gate.cut(), Err(CutRefused::Completing));
    assert_eq!(walk(&gate, cut.old_epoch), [0, 1, 2, 3]);
    let state = |chunk| gate.classify(ChunkIndex(chunk), cut.old_epoch);
    assert_eq!(state(0), ChunkState::Adoptable);
    assert_eq!(state(1), ChunkState::Pending { missing: BlockMap(1 << 7) });
    assert_eq!(state(2), ChunkState::Draining);
    assert_eq!(state(3), ChunkState::Pending { missing: BlockMap::ALL });
    assert_eq!(state(4), ChunkState::NotRequired);

    assert_eq!(gate.read_source(ChunkIndex(2), cut.old_epoch), ReadSource::Draining);
    assert_eq!(gate.begin_copy(ChunkIndex(2)), None, "in flight at the cut");
    gate.leave(blocks(2, 0, 1));
    assert_eq!(state(2), ChunkState::Pending { missing: BlockMap::ALL });
    assert_eq!(gate.read_source(ChunkIndex(2), cut.old_epoch), ReadSource::Master);

    // None or all: chunk 0 would adopt, chunk 1 is pending.
    assert_eq!(gate.enter(blocks(0, 63, 2)), Entry::Parked { chunk: C1 });
    assert_eq!(gate.in_flight(C0), 0);
    assert_eq!(state(0), ChunkState::Adopted);
    assert!(gate.try_adopt(C0), "the writer was quicker");
    write(&gate, blocks(4, 0, 1));
    assert_eq!(state(4), ChunkState::Resolved);

    assert!(!gate.mark_dirty(C1), "pending");
    assert!(!gate.resolve(C1), "outdated");
    assert_eq!(stage(&gate, C1), CopyEnd::Valid);
    assert!(gate.still_pending(C1, cut.old_epoch));
    assert!(gate.resolve(C1));
    assert!(!gate.still_pending(C1, cut.old_epoch));
    assert!(!gate.is_dirty(C1));
    for chunk in [2, 3].map(ChunkIndex) {
        assert_eq!(stage(&gate, chunk), CopyEnd::Valid);
        assert!(gate.try_adopt(chunk));
    }
    gate.finish_cut();
    assert_eq!(entered(&gate, blocks(0, 63, 2)).1, 2);
    gate.leave(blocks(0, 63, 2));
    gate.self_check().unwrap();
    let second = gate.cut().unwrap();
    assert_eq!(walk(&gate, second.old_epoch), [0, 1, 4]);
}

#[test]
fn a_given_up_snapshot_leaves_its_chunks_dirty_and_staged() {
    let gate = gate(200, Initial::AllDirty);
    assert_eq!(stage(&gate, ChunkIndex(150)), CopyEnd::Valid);
    let cut = gate.cut().unwrap();
    let (mut walk_one, mut taken) = (gate.dirty_walk(cut.old_epoch), Vec::new());
    assert!(!gate.take_dirty(&mut walk_one, 1, |chunk| taken.push(chunk)));
    assert_eq!(taken.len(), 64);
    assert_eq!(stage(&gate, C0), CopyEnd::Valid);
    assert!(gate.resolve(C0));
    gate.finish_cut();
    assert_eq!(gate.cut(), Err(CutRefused::WalkUnfinished));
    while !gate.carry_over(&mut walk_one, 1) {}
    for chunk in taken {
        assert!(gate.mark_dirty(chunk));
    }
    gate.self_check().unwrap();
    write(&gate, blocks(150, 9, 1));
    assert_eq!(gate.block_map(ChunkIndex(150)), BlockMap(1 << 9), "still staged");
    let second = gate.cut().unwrap();
    assert_eq!(walk(&gate, second.old_epoch).len(), 200);
    let missing = BlockMap(1 << 9);
    assert_eq!(gate.classify(ChunkIndex(150), second.old_epoch), ChunkState::Pending { missing });
}

#[test]
fn a_full_count_refuses_and_changes_nothing() {
    let gate = gate(2, Initial::Clean);
    let one = blocks(1, 0, 1);
    for _ in 0..65535 {
        entered(&gate, one);
    }
    assert_eq!(gate.enter(blocks(0, 63, 2)), Entry::Saturated { chunk: C1 });
    assert_eq!(gate.in_flight(C0), 0);
    gate.leave(one);
    entered(&gate, blocks(0, 63, 2));
}

#[test]
fn restored_dirty_chunks_are_peeked_and_walked() {
    let gate = gate(1000, Initial::Clean);
    for chunk in [3, 700, 999] {
        assert!(gate.mark_dirty(ChunkIndex(chunk)));
    }
    let (mut walk_one, mut peeked) = (gate.dirty_walk(gate.epoch()), Vec::new());
    while !gate.peek_dirty(&mut walk_one, 3, |chunk| peeked.push(chunk.0)) {}
    assert_eq!(peeked, [3, 700, 999]);
    let cut = gate.cut().unwrap();
    assert_eq!(walk(&gate, cut.old_epoch), [3, 700, 999]);
}

#[test]
fn epochs_outlive_the_clocks_seven_bits() {
    let gate = gate(1, Initial::Clean);
    for epoch in 1..1000 {
        assert_eq!(entered(&gate, blocks(0, 0, 1)).1, epoch);
        gate.leave(blocks(0, 0, 1));
        let cut = gate.cut().unwrap();
        assert_eq!(cut.old_epoch, Epoch(epoch));
        assert_eq!(walk(&gate, cut.old_epoch), [0]);
        assert_eq!(stage(&gate, C0), CopyEnd::Valid);
        assert!(gate.try_adopt(C0));
        gate.finish_cut();
    }
}

/// Resident memory of this process in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or("VmRSS: 0 kB");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[test]
fn a_huge_volume_costs_address_space_only() {
    let geometry = Geometry::new(256 << 10, 512, 1 << 35).unwrap();
    let gate = Gate::new(geometry, Initial::AllDirty, OperationNumber(0)).unwrap();
    let last = LbaRange::new((1 << 35) - 1, 1);
    write(&gate, last);
    assert!(gate.is_dirty(ChunkIndex((1 << 26) - 1)));
    let resident = resident_kib();
    assert!(resident < 200 << 10, "{resident} KiB");
}

/// The counts of a turn are not used again while its commands are in flight, else under load neither
/// would ever be over (I6).
#[test]
fn a_hung_command_that_passed_stops_the_fourth_cut() {
    let gate = Arc::new(gate(4, Initial::AllDirty));
    gate.open_all();
    let lane = gate.lane();
    let range = LbaRange::new(0, 1);
    let hung = lane.enter(range).expect("open");
    let cut = || {
        let cut = gate.cut()?;
        gate.finish_cut();
        let mut walk = gate.dirty_walk(cut.old_epoch);
        while !gate.carry_over(&mut walk, 64) {}
        Ok(cut)
    };
    for _ in 0..3 {
        assert!(cut().expect("there is room for its turn").contains(hung));
    }
    assert_eq!(cut(), Err(CutRefused::Draining));
    lane.leave(hung, range);
    assert!(cut().expect("all have left").contains(hung));
}

/// Channels beyond the lanes have their commands counted on the chunks; lanes are given back.
#[test]
fn without_a_lane_commands_are_counted() {
    let gate = Arc::new(gate(4, Initial::AllDirty));
    gate.open_all();
    let range = LbaRange::new(0, 1);
    let mut lanes: Vec<_> = (0..LANES_MAX).map(|_| gate.lane()).collect();
    let late = gate.lane();
    let passage = late.enter(range).expect("nothing is pending");
    assert!(matches!(passage, Passage::Counted(_)));
    assert_eq!(gate.in_flight(ChunkIndex(0)), 1);
    late.leave(passage, range);
    lanes.pop();
    lanes.push(gate.lane());
    let passage = lanes[LANES_MAX - 1].enter(range).expect("nothing is pending");
    assert!(matches!(passage, Passage::Open(_)));
    lanes[LANES_MAX - 1].leave(passage, range);
}
