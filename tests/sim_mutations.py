#!/usr/bin/env python3
"""Breaks the rules that I1 to I8 of the design rest on, one at a time, in engine, store and gate, and
shows that the simulator or a named test notices.

    python3 tests/sim_mutations.py [name-part ...]
    python3 tests/sim_mutations.py unchanged    # just the tests, without the rest of the house

Copies these rooms and the simulator into a small crate of its own (in CARGO_TARGET_DIR or a temporary
folder), so that a round compiles in seconds. Exit status 1 if a mutation survives.
"""

import sys

import mutations

# Histories that a broken rule may take to be noticed: as many as tests/simulator.rs runs.
HISTORIES = 10_000

# (name, file, text, replacement, tests of which at least one must fail)
MUTATIONS = [
    ("I1: pending chunks do not park their writers", "gate/foreground.rs",
     "if !adoptable {", "if false {", "sim"),
    ("I1, I3: preserving does not wait for the commands in flight", "gate/keeper.rs",
     "|| (pending && !seen.is_drained())", "", "sim",
     "if !seen.is_drained() || (!seen.has", "if (!seen.has"),
    ("I1: what passed open chunks counts as drained at once", "gate/keeper.rs",
     "(!seen.has(COPY | DRAINED) && !self.lanes.has_drained())", "false", "sim",
     "!self.lanes.has_drained()\n                } else {", "false\n                } else {"),
    ("I1: the walk forgets a chunk that is not copied at once", "engine/snapshot.rs",
     "            if snapshot.pending.get(&chunk) != Some(&Pending::Queued) {\n",
     "            if purpose == Purpose::Complete && snapshot.queue.len() > 2 {\n"
     "                snapshot.pending.remove(&chunk);\n            }\n"
     "            if snapshot.pending.get(&chunk) != Some(&Pending::Queued) {\n", "sim"),
    ("I1: the dirty chunks of a snapshot that was given up are forgotten", "engine/snapshot.rs",
     "gate.carry_over(walk, limits.walk_words_per_tick)",
     "gate.take_dirty(walk, limits.walk_words_per_tick, |_| ())", "sim"),
    ("I1: what the walk of a given-up snapshot had brought up is forgotten", "engine/snapshot.rs",
     'assert!(gate.mark_dirty(chunk), "chunk {chunk:?} is pending after the cut was ended");',
     "let _ = chunk;", "sim"),
    ("I1: a chunk adopted ahead of the walk is not noted", "engine/snapshot.rs",
     "                snapshot.brought_up.push(chunk);\n                snapshot.candidates.insert(",
     "                snapshot.candidates.insert(", "engine::"),
    ("I2: a leaving command does not say what it changed", "gate/foreground.rs",
     "fetch_or(blocks.0, Ordering::AcqRel)", "fetch_or(0 & blocks.0, Ordering::AcqRel)", "sim"),
    ("I2: outdated copies are adopted", "gate/keeper.rs",
     "!seen.has(STAGING) && self.block_map(chunk).is_empty();", "!seen.has(STAGING);", "sim",
     "if missing.is_empty() { ChunkState", "if true { ChunkState"),
    ("I2: writers adopt outdated copies", "gate/foreground.rs",
     "&& self.map(chunk).load(Ordering::Acquire) == 0;", ";", "sim"),
    ("I2: copies are adopted with commands in flight", "gate/keeper.rs",
     "|| !seen.is_drained() || !right", "|| !right", "sim",
     "if !seen.is_drained() || (!seen.has", "if (!seen.has"),
    ("I2: a copy that failed counts as staged", "engine/copying.rs",
     "self.gate.end_copy(job.chunk, result.is_ok(), job.taken)",
     "self.gate.end_copy(job.chunk, true, job.taken)", "sim engine::",
     "                let _ = self.gate.drop_staged(chunk);\n"
     "                slots.release(job.slot);\n                Err(Some(reason))",
     "                let _ = reason;\n"
     "                Ok(finished(job, Copied::Written { block_crcs: Box::new([0; 64]) }, slots))"),
    ("I2: a refresh keeps the checksums of the blocks that it replaced", "engine/copying.rs",
     "if job.taken.0 >> block & 1 == 1 {", "if job.full && job.taken.0 >> block & 1 == 1 {", "sim"),
    ("I2: 'unchanged' is trusted after what it was compared with is gone", "engine/copying.rs",
     "Ok(Copied::Unchanged) if job.stale =>", "Ok(Copied::Unchanged) if false =>", "engine::"),
    ("I2: 'unchanged' copies stay when what they were compared with is deleted", "engine/machine.rs",
     "if self.staged.get(&chunk).is_some_and(|s| s.content == Content::Unchanged) {", "if false {",
     "engine::"),
    ("I3: a writer is woken and let in when its chunk's copy begins", "gate/foreground.rs",
     "                && !seen.has(STAGING)\n", "", "sim",
     "let adoptable = seen.is_drained()\n                && seen.has(STAGED)",
     "let adoptable = seen.has(STAGING) || seen.is_drained()\n                && seen.has(STAGED)"),
    ("I4: the slots of a complete snapshot are freed", "engine/snapshot.rs",
     "                let record = snapshot.record.clone();\n                self.snapshot = None;",
     "                for slot in snapshot.slots_taken.drain(..) {\n                    slots.release(slot);\n"
     "                }\n                let record = snapshot.record.clone();\n"
     "                self.snapshot = None;", "sim"),
    ("I4: a deletion hands nothing over", "store/catalog/requests.rs",
     "let heir = heir.filter(|_| was_complete);", "let heir = heir.filter(|_| false);", "sim store::"),
    ("I4: a deletion frees the slots that it hands over", "store/catalog/requests.rs",
     "        outcome.handed_over += 1;",
     "        outcome.freed.extend(slot_ref.slot());\n        outcome.handed_over += 1;", "sim store::"),
    ("I4: what a completing snapshot builds on may be deleted", "engine/chain.rs",
     "Some(completing) if newest =>", "Some(completing) if newest && false =>", "engine::",),
    ("I4: a complete snapshot may be failed", "store/catalog/requests.rs",
     "if stored.state == SnapshotState::Complete || record.state != SnapshotState::Failed {",
     "if record.state != SnapshotState::Failed {", "store::"),
    ("I4: a staged copy that is damaged stays", "engine/machine.rs",
     "if !stops && self.staged.get(&chunk).is_some_and(is_there) {", "if false {", "sim engine::",
     "let is_there = |staged: &Staged| staged.content == Content::Slot(slot);",
     "let _ = (stops, slot);"),
    ("I4: the next snapshot takes a damaged slot over", "store/catalog/damaged_slots.rs",
     "if is_newest && clean {", "if false && clean {", "store::"),
    ("I4: a slot is damaged until the next load only", "store/mod.rs",
     "marks.get(&slot).filter(|mark| mark.crc32c == crc32c)",
     "marks.get(&slot).filter(|mark| mark.crc32c != crc32c)", "store::"),
    ("I4: a slot that is freed stays damaged in the catalog", "store/catalog/damaged_slots.rs",
     "    for slot in slots {\n        table", "    for slot in slots.into_iter().take(0) {\n        table",
     "store::"),
    ("I4: a slot that is freed stays damaged in memory", "store/slots.rs",
     "        self.damaged.remove(slot);\n", "", "store::"),
    ("I5: a snapshot that was interrupted stays as it is", "store/catalog/mod.rs",
     "        catalog.fail_interrupted()?;\n", "", "sim store::"),
    ("I5: a snapshot is complete before its slots are durable", "engine/snapshot.rs",
     "            snapshot.flushing = true;\n            self.gate.finish_cut();\n"
     "            self.effects.push_back(Effect::FlushStore);",
     "            self.gate.finish_cut();\n            self.flush_done(now, Ok(()), slots);", "sim"),
    ("I5: a flush that failed is taken for one that did not", "engine/snapshot.rs",
     "if let Err(reason) = result {\n            return self.fail(format!(\"flushing",
     "if let (Err(reason), true) = (result, false) {\n            return self.fail(format!(\"flushing",
     "sim"),
    ("I5: transactions are not durable", "store/catalog/mod.rs",
     "Durability::Immediate)\n            .map_err", "Durability::None)\n            .map_err",
     "sim store::"),
    ("I5: the catalog goes on after an outcome that nobody knows", "store/catalog/mod.rs",
     "                            self.lose();\n                            error",
     "                            error", "sim store::"),
    ("I5: a commit that happened is reported as failed", "store/catalog/mod.rs",
     "Ok(found) if found == number => return Ok(value),",
     "Ok(found) if found == number && false => return Ok(value),", "sim store::"),
    ("I5: the rows of a failed snapshot stay", "store/catalog/requests.rs",
     "            free_rows(tx, &mut rows, record.volume, record.seq, OPERATION)?;\n"
     "            Ok(CatalogReply::Done)", "            let _ = &mut rows;\n            Ok(CatalogReply::Done)",
     "sim store::"),
    ("I5: readers of a failed snapshot go on", "engine/snapshot.rs",
     "Phase::Begin | Phase::Fail | Phase::Redirty => return None,",
     "Phase::Begin => return None,\n            Phase::Fail | Phase::Redirty => return Some(ReadSource::Rows),",
     "engine::"),
    ("I6: a writer waits however long it takes", "engine/snapshot.rs",
     "now.since(**since) > parked_us_max", "now.since(**since) > u64::MAX - 1", "sim engine::"),
    ("I6: nobody looks how long a writer waits for a chunk that drains", "engine/snapshot.rs",
     "let (chunk, _) = waiting.find(|(_, since)| now.since(**since) > parked_us_max)?;",
     "let (chunk, _) = waiting.find(|(chunk, since)| now.since(**since) > parked_us_max\n"
     "            && snapshot.pending.get(chunk) != Some(&Pending::Draining))?;", "engine::tests::deadline"),
    ("I6: writers are not woken when the snapshot is given up", "engine/snapshot.rs",
     "        self.effects.push_back(Effect::WakeAll);\n", "", "sim"),
    ("I6: a writer is not woken when its chunk is settled", "engine/snapshot.rs",
     "        if waited {\n            self.effects.push_back(Effect::Wake(chunk));\n        }",
     "        let _ = waited;", "sim"),
    ("I6: a writer that parks when the snapshot is over is not woken", "engine/snapshot.rs",
     "        let Some(snapshot) = active else {\n            self.effects.push_back(Effect::Wake(chunk));",
     "        let Some(snapshot) = active else {", "sim"),
    ("I6: writers stay parked when the snapshot is given up", "engine/snapshot.rs",
     "    fn give_up(&mut self, why: Trouble) {\n        self.gate.finish_cut();",
     "    fn give_up(&mut self, why: Trouble) {", "sim"),
    ("I6: a full store leaves the snapshot as it is", "engine/snapshot.rs",
     "return self.fail(Trouble { cause: Cause::NoSpace, reason: reason.to_owned() });",
     "return drop(reason.to_owned());", "sim engine::"),
    ("I6: a copy that failed leaves the snapshot as it is", "engine/snapshot.rs",
     'self.fail(format!("copying chunk {} failed: {reason}", chunk.0).into());', "drop(reason);", "sim"),
    ("I6: a lost store leaves the snapshot as it is", "engine/machine.rs",
     "        self.fail(reason.into());\n        self.drop_all", "        self.drop_all",
     "sim engine::"),
    ("I7: a volume in use is not marked as such", "store/catalog/requests.rs",
     "            row.record.clean = false;\n            put_volume(&mut volumes, &row, OPERATION)?;\n"
     "            let mut dirty",
     "            put_volume(&mut volumes, &row, OPERATION)?;\n            let mut dirty", "sim store::"),
    ("I7: what a clean stop saved outlives the start", "store/catalog/requests.rs",
     "            remove_saved(&mut dirty, &mut staged, volume, OPERATION)?;\n"
     "            Ok(CatalogReply::Done)",
     "            let _ = (&mut dirty, &mut staged);\n            Ok(CatalogReply::Done)", "sim store::"),
    ("I7: staged copies are saved before they are durable", "engine/machine.rs",
     "                self.prepare_stop();",
     "                self.prepare_stop();\n"
     "                if self.effects.pop_back_if(|last| matches!(last, Effect::FlushStore)).is_some() {\n"
     "                    self.flushed_to_stop(true, slots);\n                }",
     "sim engine::"),
    ("I7: staged copies are saved although they are not durable", "engine/stop.rs",
     "        if !durable {", "        if !durable && false {", "engine::"),
    ("I7: the dirty chunks are not saved", "engine/stop.rs",
     "dirty_words: self.dirty_words(),", "dirty_words: Vec::new(),", "sim engine::"),
    ("I7: an outdated copy is saved as valid", "engine/stop.rs",
     "block_map: self.gate.block_map(chunk).0,", "block_map: 0,", "sim"),
    ("I7: a saved copy comes back as valid", "engine/machine.rs",
     "if record.block_map != 0 {", "if false {", "sim"),
    ("I7: a volume is closed while a snapshot's chunks are nowhere", "store/catalog/requests.rs",
     "                .find(|snapshot| snapshot.state == SnapshotState::Completing)\n            {\n"
     "                return Err(Error::Busy {",
     "                .find(|snapshot| snapshot.state == SnapshotState::Completing && false)\n"
     "            {\n                return Err(Error::Busy {", "store::"),
    ("I7: a deletion forgets that a detached volume's chunks are dirty", "store/catalog/requests.rs",
     "if volume_row(&volumes, volume, OPERATION)?.record.clean {",
     "if volume_row(&volumes, volume, OPERATION)?.record.clean && false {", "sim store::"),
    ("I7: a clean stop does not wait for deletions", "replay/sim/starts.rs",
     "node.parked.is_empty() && node.deleting.is_empty();", "node.parked.is_empty();", "sim"),
    ("I7: a deletion does not wait for a clean stop", "replay/sim/operator.rs",
     "if self.node().stop_sent {", "if false {", "sim"),
    ("I7: a deletion does not wait for an attach", "replay/sim/starts.rs",
     "            Some(Detached { loaded: Some(_), .. }) => {\n                self.mark(",
     "            Some(Detached { loaded: Some(_), .. }) if false => {\n                self.mark(",
     "sim"),
    ("a scrub reads as fast as it can", "store/scrub.rs",
     "Duration::from_micros(from_us.saturating_sub(now_us))", "Duration::ZERO", "store::"),
    ("a scrub looks at a slot as often as it meets it", "store/scrub.rs",
     "            *word &= !bit;\n", "", "store::"),
    ("I8: a damaged copy that a clean stop is saving is freed", "engine/machine.rs",
     "let stops = self.stop != StopPhase::No;", "let stops = false;", "engine::"),
    ("I8: the slots of a failed snapshot leak", "engine/snapshot.rs",
     "            slots.release(slot);\n        }\n        self.failed();",
     "            let _ = (slot, &slots);\n        }\n        self.failed();", "sim engine::"),
    ("I8: the slot of a copy that came too late leaks", "engine/copying.rs",
     "                let _ = self.gate.drop_staged(chunk);\n                release(staged.content, slots);\n"
     "            }\n        } else {",
     "                let _ = (self.gate.drop_staged(chunk), staged);\n            }\n        } else {",
     "sim engine::"),
    ("I8: slots of a failure that could not be recorded are freed", "engine/snapshot.rs",
     "        self.stranded.extend(taken);", "        taken.into_iter().for_each(|slot| slots.release(slot));",
     "sim engine::"),
    ("I8: what is reserved is not given back", "engine/space.rs",
     "            slots.unreserve(std::mem::take(&mut self.reserved));", "            let _ = &slots;",
     "sim engine::"),
    ("I8: a deletion frees slots that another row has", "store/catalog/requests.rs",
     "            outcome.freed.extend(slot_ref.slot());\n            continue;", "            continue;",
     "sim store::"),
    ("I8: two owners of a slot are loaded", "store/mod.rs",
     "            && !allocator.try_take(slot)\n        {\n            return Err(two_owners(slot.0));\n"
     "        }\n        view.insert",
     "            && !allocator.try_take(slot)\n            && false\n        {\n"
     "            return Err(two_owners(slot.0));\n        }\n        view.insert", "store::"),
    ("I8: a copy that a sleeping writer may adopt is kept", "engine/snapshot.rs",
     "        let _ = self.gate.mark_dirty(chunk);\n        let keep", "        let keep", "engine::"),
]


def command(test):
    """cargo's arguments to build and to run `test`, and the compiler's flags."""
    if test == "sim":
        options = ["--histories", str(HISTORIES), "--violations", "1"]
        cargo = ["--quiet", "--release", "--bin", "presnap-sim"]
        return ["build", *cargo], ["run", *cargo, "--", *options], ""
    cargo = ["test", "--quiet", "--release"]
    cargo += ["--test", "engine_threads"] if test == "threads" else ["--lib"]
    return [*cargo, "--no-run"], cargo if test == "threads" else [*cargo, test], ""


BENCH = mutations.Bench(
    name="sim-mutations",
    rooms="//! Gate, engine, store and the simulator alone.\n"
          "pub mod engine;\npub mod gate;\npub mod store;\n"
          "pub mod replay {\n    mod random;\n    pub mod sim;\n}\n",
    sources=["src/gate", "src/engine", "src/store", "src/replay/random.rs", "src/replay/sim",
             "src/bin/presnap-sim.rs", "tests/engine_threads.rs", "docs/on-disk-format.md"],
    dependencies=["bytemuck", "clap", "crc32c", "crossbeam", "redb", "rustix", "serde", "serde_json",
                  "thiserror", "tracing", "uuid", "zstd"],
    command=command,
    tests=["sim", "engine::", "store::", "threads"],
    timeout_s=900,
    opt_level=0,
)

if __name__ == "__main__":
    sys.exit(mutations.main(BENCH, MUTATIONS, __doc__))
