#!/usr/bin/env python3
"""Breaks the gate's rules on purpose, one at a time, and shows that a test notices each.

    python3 tests/gate_mutations.py [name-part ...]
    python3 tests/gate_mutations.py unchanged    # just the tests, without the rest of the house
    python3 tests/gate_mutations.py --make DIR   # just the small crate

Copies the gate and its tests into a small crate of its own (in CARGO_TARGET_DIR or a temporary
folder), so that a round compiles in seconds. Exit status 1 if a mutation survives.
"""

import sys

import mutations

# (name, file, text, replacement, tests of which at least one must fail)
MUTATIONS = [
    ("rule 1: no check of the epoch when drawing the number", "gate/clock.rs",
     "same.then_some(", "(same | true).then_some(", "loom:one_side"),
    ("rule 1: the number is drawn without release", "gate/clock.rs",
     "self.clock.fetch_add(ONE, Ordering::AcqRel)", "self.clock.fetch_add(ONE, Ordering::Acquire)",
     "loom:walk_finds"),
    ("rule 1: a refused command keeps the counts of the chunks it passed", "gate/foreground.rs",
     "self.back_out(chunks.start..index);", "", "basic model"),
    ("rule 2: resolving forgets the counts of commands that back out", "gate/keeper.rs",
     "seen.at(now.epoch).without(DIRTY | COPY)",
     "seen.at(now.epoch).without(DIRTY | COPY | 0xffff_0000)", "loom:one_side"),
    ("rule 3: no bits on leaving", "gate/foreground.rs",
     "fetch_or(blocks.0, Ordering::AcqRel)", "fetch_or(0 & blocks.0, Ordering::AcqRel)",
     "loom:never_stale basic model"),
    ("rule 3: bits after the count", "gate/foreground.rs",
     """                if seen.has(COPY) {
                    // Rule 3: the bits before the count, and again if a copy began meanwhile.
                    self.map_blocks(chunk, range);
                }
                match word.replace(seen, Word(seen.0 - ONE)) {
                    Ok(()) => break,""",
     """                match word.replace(seen, Word(seen.0 - ONE)) {
                    Ok(()) => {
                        if seen.has(COPY) {
                            self.map_blocks(chunk, range);
                        }
                        break;
                    }""",
     "loom:never_stale"),
    ("rule 3: bits only if a copy shows at the first look", "gate/foreground.rs",
     """                match word.replace(seen, Word(seen.0 - ONE)) {
                    Ok(()) => break,
                    Err(found) => seen = found,
                }
            }
        }
    }

    /// Not""",
     """                seen = word.load();
                word.count_down();
                break;
            }
        }
    }

    /// Not""",
     "loom:never_stale"),
    ("rule 3: the map is taken before STAGING is set", "gate/keeper.rs",
     """        let mut seen = word.load();
        let staged = loop {""",
     """        let mut seen = word.load();
        let taken = BlockMap(self.map(chunk).swap(0, Ordering::AcqRel));
        let staged = loop {""",
     "loom:never_stale loom:refresh",
     "        let taken = BlockMap(self.map(chunk).swap(0, Ordering::AcqRel));\n"
     "        Some(if", "        Some(if"),
    ("rule 4: the walk adopts with commands in flight", "gate/keeper.rs",
     "|| !seen.is_drained() || !right", "|| !right",
     "loom:never_stale loom:adoption", "if !seen.is_drained() ||", "if"),
    ("rule 4: the walk adopts with mapped blocks", "gate/keeper.rs",
     "!seen.has(STAGING) && self.block_map(chunk).is_empty();", "!seen.has(STAGING);", "basic model"),
    ("rule 4: a writer adopts with commands in flight", "gate/foreground.rs",
     "let adoptable = seen.is_drained()\n                && seen", "let adoptable = seen",
     "loom:adoption model"),
    ("rule 4: a writer adopts with mapped blocks", "gate/foreground.rs",
     "&& self.map(chunk).load(Ordering::Acquire) == 0;", ";", "basic model loom:adoption"),
    ("rule 4: a writer adopts a slot that is being written", "gate/foreground.rs",
     "                && !seen.has(STAGING)\n", "", "basic model loom:failed_refresh"),
    ("rule 4: pending chunks do not park", "gate/foreground.rs",
     "if !adoptable {", "if false {", "loom:one_side basic model"),
    ("rule 4: preserving does not wait for the commands in flight", "gate/keeper.rs",
     "|| (pending && !seen.is_drained())", "", "loom:one_side basic model",
     "if !seen.is_drained() ||", "if"),
    ("rule 4: a failed refresh leaves a pending chunk staged", "gate/keeper.rs",
     "} else if seen.is_pending(now) {", "} else if false {", "loom:failed_refresh"),
    ("rule 4: a failed refresh does not give its blocks back", "gate/keeper.rs",
     "self.map(chunk).fetch_or(taken.0, Ordering::AcqRel);", "", "basic model"),
    ("rule 5: the index bit is set after the word", "gate/foreground.rs",
     "        self.index.set(now.epoch, chunk); // Rule 5: before the word.\n", "", "loom:walk_finds",
     "Ok(()) => return Ok(()),",
     "Ok(()) => { if next != seen { self.index.set(now.epoch, chunk); } return Ok(()) }"),
    ("no index bit on adoption", "gate/foreground.rs",
     "        self.index.set(now.epoch, chunk); // Rule 5: before the word.\n",
     "        if !seen.is_pending(now) { self.index.set(now.epoch, chunk); }\n",
     "loom:adoption model"),
    ("no index bit when an older dirty chunk is staged", "gate/keeper.rs",
     """                self.index.set(now.epoch, chunk);
                next = next""", "                next = next", "loom:is_walked"),
    ("a reader does not check after the read", "gate/foreground.rs",
     "        word.epoch() <= old_epoch && word.has(DIRTY)\n", "        word.0 == word.0\n",
     "loom:no_newer basic"),
    ("a reader's check does not order the data before it", "gate/foreground.rs",
     "        fence(Ordering::Acquire);\n", "", "loom:no_newer"),
    ("a reader does not wait for the commands in flight", "gate/foreground.rs",
     "} else if word.is_drained() && (word", "} else if (word", "loom:in_flight basic"),
    ("lanes: a reader does not wait for those that passed", "gate/foreground.rs",
     "|| self.lanes.has_drained()", "|| true", "loom:lanes_a_snapshot_reader"),
    ("a given-up snapshot's index is not carried over", "gate/keeper.rs",
     "self.index.add(now.epoch, position, word.swap(0, Ordering::AcqRel));",
     "word.swap(0, Ordering::AcqRel);", "loom:given_up basic model"),
    ("a writer let in after giving up forgets the running copy", "gate/foreground.rs",
     "            next = next.without(STAGED).with(ADOPTED);\n        }\n        self",
     "            next = next.without(STAGED).with(ADOPTED);\n        }\n        if seen.epoch() < now.epoch {\n"
     "            next = next.without(STAGING);\n        }\n        self",
     "loom:given_up basic model"),
    ("a chunk that is dirty again after giving up stays in its older epoch", "gate/keeper.rs",
     "let next = if seen.epoch() < now.epoch { seen.at(now.epoch) } else { seen };", "let next = seen;",
     "loom:sleeper"),
    ("giving up does not let writers in", "gate/clock.rs",
     "self.clock.fetch_and(!ACTIVE, Ordering::AcqRel);", "", "loom:given_up basic"),
    ("a full count overflows into the epoch", "gate/word.rs",
     "self.0 & COUNT_MASK == COUNT_MASK", "self.0 == 1 << 63", "basic"),
    ("a drained chunk stays in its older epoch", "gate/word.rs",
     "self.at(Epoch(now.epoch.0 - 1)).with(DRAINED)", "self.with(DRAINED)",
     "loom:late_adoption loom:one_side"),
    ("a late count makes a drained chunk look busy", "gate/word.rs",
     "self.is_idle() || self.has(DRAINED)", "self.is_idle()", "loom:one_side"),
    ("drained is forever", "gate/word.rs",
     "EPOCH_MASK | ADOPTED | DRAINED", "EPOCH_MASK | ADOPTED", "model loom:given_up"),
    ("what was adopted looks so for later snapshots", "gate/word.rs",
     "EPOCH_MASK | ADOPTED | DRAINED", "EPOCH_MASK | DRAINED", "model"),
    ("a chunk that is copied and busy counts as settled for readers", "gate/keeper.rs",
     "if !seen.is_drained() ||", "if !seen.is_drained() && !seen.has(STAGING) ||", "model"),
    ("the walk skips the last word", "gate/index.rs",
     "let end = words.len().min(", "let end = (words.len() - 1).max(start).min(", "model"),
    ("the epoch is read without the clock's bits", "gate/clock.rs",
     "return Now { epoch: Epoch(epoch + ahead),", "return Now { epoch: Epoch(epoch),",
     "loom:one_side"),
    ("lanes: no look at the turn after the count", "gate/lane.rs",
     "let holds = lanes.phase.now.load(Ordering::Acquire) == phase;", "let holds = true;",
     "loom:lanes"),
    ("lanes: no barrier between count and look", "gate/lane.rs", "        light_barrier();\n", "",
     "loom:lanes"),
    ("lanes: no barrier when a turn ends", "gate/lane.rs", "            heavy_barrier();\n", "",
     "loom:lanes"),
    ("lanes: a cut moves the clock before it ends the turn", "gate/keeper.rs",
     "        let old_turn = self.lanes.cut(new_epoch);\n"
     "        let operation = self.clock.cut(old_epoch);\n",
     "        let operation = self.clock.cut(old_epoch);\n"
     "        let old_turn = self.lanes.cut(new_epoch);\n", "loom:lanes_the_order"),
    ("lanes: a copy begins although commands passed", "gate/keeper.rs", "if unseen {", "if false {",
     "loom:lanes model"),
    ("lanes: chunks that were open count as drained at once", "gate/keeper.rs",
     "(!seen.has(COPY | DRAINED) && !self.lanes.has_drained())", "false", "loom:lanes model"),
    ("lanes: chunks stay open in the new epoch", "gate/lane.rs",
     "self.open(old_epoch).clear(position, u64::MAX);", "", "model"),
    ("lanes: staging does not wait for a given-up cut's commands", "gate/lane.rs",
     "self.lanes.is_over(Turn(closed.max(cut)))", "self.lanes.is_over(Turn(closed.max(cut & 0)))",
     "loom:lanes_what"),
    ("lanes: a group stays open without one of its chunks", "gate/lane.rs",
     "        self.groups[position / 64].fetch_and(!(1 << (position % 64)), Ordering::Release);\n", "",
     "model"),
    ("lanes: chunks with a copy are opened", "gate/lane.rs",
     "word.has(DIRTY) && !word.has(COPY)", "word.has(DIRTY)", "model"),
    ("lanes: counts of a turn are used again while commands are in flight", "gate/lane.rs",
     "self.is_over(Turn((turn.0 + 1).saturating_sub(TURNS as u64)))", "turn.0 > 0", "basic"),
]


def command(test):
    """cargo's arguments to build and to run `test`, and the compiler's flags."""
    loom = test.startswith("loom:")
    cargo = ["test", "--quiet", "--release", "--test", "loom_gate" if loom else f"gate_{test}"]
    only = [test.removeprefix("loom:")] if loom else []
    return [*cargo, "--no-run"], [*cargo, *only], "--cfg loom" if loom else ""


BENCH = mutations.Bench(
    name="gate-mutations",
    rooms="//! The gate alone.\npub mod gate;\n",
    sources=["src/gate", "tests/loom_gate.rs", "tests/gate_basic.rs", "tests/gate_model.rs"],
    dependencies=["bytemuck", "rustix", "thiserror"],
    command=command,
    tests=["basic", "model", "loom:"],
    timeout_s=100,
)

if __name__ == "__main__":
    sys.exit(mutations.main(BENCH, MUTATIONS, __doc__))
