//! How long a foreground command may wait for a snapshot (I6), and what the snapshot then says.

use super::*;
use crate::gate::{Lane, Passage};

/// A volume whose chunks 0 to 2 commands pass uncounted and whose chunk 3 has a valid copy; a command
/// has passed chunk 0 when the cut comes and does not end.
fn hung_at_the_cut() -> (Bench, Lane, Passage) {
    let mut bench = Bench::new(4, 16);
    bench.write(range(3, 0, 1));
    bench.stage(3);
    bench
        .engine
        .set_settings(Settings { policy: PolicyKind::Off, ..bench.engine.settings() }, bench.now);
    bench.write(range(0, 0, 3 * CHUNK_LBAS));
    bench.tick_after(1);
    let lane = bench.gate.lane();
    let hung = lane.enter(range(0, 0, 1)).unwrap();
    assert!(matches!(hung, Passage::Open(_)), "chunk 0 is open");
    assert!(copies(&bench.cut(1)).is_empty(), "no chunk without a copy has drained");
    (bench, lane, hung)
}

#[track_caller]
fn parks(bench: &mut Bench, chunk: u32) -> Vec<Effect> {
    assert!(matches!(bench.gate.enter(range(chunk, 0, 1)), Entry::Parked { .. }));
    bench.parked(chunk)
}

#[test]
fn a_writer_waits_no_longer_than_the_settings_allow() {
    let mut bench = Bench::new(4, 8);
    bench.write(range(0, 0, 1));
    the_copy(&bench.cut(1));
    parks(&mut bench, 0);
    assert!(bench.tick_after(10_000).is_empty());
    let effects = bench.tick_after(1);
    assert!(matches!(effects[0], Effect::WakeAll), "the writer comes first: {effects:?}");
    bench.enter(range(0, 0, 1));
    let ended = bench.catalog_done(CatalogStep::Fail);
    failed_because(&ended, "waited for more than 10 ms for chunk 0");
    failed_because(&ended, "copying it to the store takes longer");
    assert!(bench.engine.is_busy(), "until the copy has ended");
}

/// A command on many chunks waits for one after the other: an unmap of the whole volume, say.
///
/// Fails when its time begins anew with each chunk.
#[test]
fn a_command_on_many_chunks_waits_no_longer_than_one_on_one() {
    let mut bench = Bench::new(8, 8);
    bench.engine.set_limits(Limits { copies_in_flight_max: 1, ..Limits::default() });
    bench.write(range(0, 0, 8 * CHUNK_LBAS));
    let mut job = the_copy(&bench.cut(1));
    let since = bench.now;
    for chunk in 0..8 {
        let all = range(0, 0, 8 * CHUNK_LBAS);
        assert_eq!(bench.gate.enter(all), Entry::Parked { chunk: ChunkIndex(chunk) });
        bench.apply(Event::Parked { chunk: ChunkIndex(chunk), since });
        let effects = bench.tick_after(4_000);
        if bench.now.since(since) > 10_000 {
            let first = effects.first();
            assert!(matches!(first, Some(Effect::WakeAll)), "at {:?}: {effects:?}", bench.now);
            bench.enter(all);
            let ended = bench.catalog_done(CatalogStep::Fail);
            return failed_because(&ended, "waited for more than 10 ms for chunk");
        }
        job = the_copy(&bench.copy_done(&job, written()));
    }
    panic!("the command waited for all of the volume");
}

/// Of commands that passed open chunks it is only known when all of them have left. So one that hangs
/// on the master holds up the writers of all chunks without a copy, for as long as the settings allow and
/// no longer; then the snapshot is given up and says why.
///
/// Fails when the time of a chunk that drains is not looked at, or when what drains counts as copied.
#[test]
fn a_command_that_hangs_at_the_cut_holds_writers_no_longer_than_the_settings_allow() {
    let (mut bench, lane, hung) = hung_at_the_cut();
    for chunk in 0..3 {
        assert!(parks(&mut bench, chunk).is_empty(), "chunk {chunk} cannot be copied yet");
    }
    // A chunk with a copy is not concerned: its writer adopts the copy.
    bench.write(range(3, 0, 1));
    assert!(bench.tick_after(10_000).iter().all(|effect| matches!(effect, Effect::Row(..))));
    let effects = bench.tick_after(1);
    assert!(matches!(effects[0], Effect::WakeAll), "the writers come first: {effects:?}");
    for chunk in 0..3 {
        bench.write(range(chunk, 0, 1));
    }
    let ended = bench.catalog_done(CatalogStep::Fail);
    failed_because(&ended, "waited for more than 10 ms for chunk");
    failed_because(&ended, "the master has not ended commands from before the cut");
    // It ends after all, and the next snapshot has all chunks.
    bench.tick_after(1);
    lane.leave(hung, range(0, 0, 1));
    assert_eq!(copies(&bench.cut(2)).len(), 4);
}

/// While it goes on hanging, writers are not held up again and again: only so many cuts find room for
/// its count, and the next is refused at once.
#[test]
fn snapshots_are_refused_at_once_while_a_command_hangs_over_several_cuts() {
    let (mut bench, lane, hung) = hung_at_the_cut();
    let mut held_up = 0;
    for seq in 2.. {
        parks(&mut bench, 0);
        bench.tick_after(10_001);
        held_up += 1;
        bench.catalog_done(CatalogStep::Fail);
        bench.tick_after(1);
        bench.apply(Event::Create(record(seq)));
        let effects = bench.catalog_done(CatalogStep::Begin);
        if steps(&effects) == [CatalogStep::Fail] {
            break;
        }
    }
    assert!(held_up <= 3, "{held_up} snapshots held writers up");
    bench.enter(range(0, 0, 1));
    bench.gate.leave(range(0, 0, 1));
    let ended = bench.catalog_done(CatalogStep::Fail);
    failed_because(&ended, "the master has not ended commands from before the last snapshots");
    lane.leave(hung, range(0, 0, 1));
    bench.tick_after(1);
    assert_eq!(copies(&bench.cut(9)).len(), 4);
}
