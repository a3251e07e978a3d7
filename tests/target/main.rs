//! The real target, as users run it: `presnap serve` as a child process, driven over JSON-RPC and
//! NVMe/TCP. `harness` starts and stops things, `agent` is the initiator.
//!
//! Needs root, 4 GiB of memory that can become hugepages (the harness reserves and gives back what
//! it uses), and what `scripts/setup.sh` builds. Tests run one at a time, in whatever way they are
//! started: each holds a lock while it runs.
//!
//! Which test fails when an invariant (I1 to I8 of the design) is broken. Those marked * were
//! seen to fail with the rule broken on purpose, as said there.
//!
//! | | test | broken on purpose |
//! | --- | --- | --- |
//! | I1 | `cut::a_completing_snapshot_reads...` * | a pending chunk's writes are not parked |
//! | | `cut::commands_that_span_chunks...` * | only the first chunk of a command has to be open; or to be not pending |
//! | | `zcopy::a_snapshot_has_an_open...` * | a zero copy does not enter the gate, or leaves at its start |
//! | I2 | `cut::snapshots_under_nvme_tcp_load...` * | `Gate::end_copy` forgets the block map |
//! | I3 | `cut::a_completing_snapshot_reads...` * | a pending chunk's writes are not parked |
//! | I4 | `lifecycle::the_other_snapshots_stay...` * | a delete frees the slots that it hands over |
//! | | `scrub::a_damaged_slot...` * | the read path does not ask what is damaged |
//! | I5 | `kill::kills_cost_at_most...` * | an interrupted snapshot is complete after the start |
//! | I6 | `faults::a_failing_store...` * | parked commands are aborted when the snapshot fails |
//! | I7 | `kill::kills_cost_at_most...` * | every start takes the last stop for a clean one |
//! | | `turns::a_clean_stop...`, `a_volume_that_is_detached...` * | a deletion, or a clean stop, takes no turn |
//! | | `turns::a_deletion_waits_for_an_attach` * | an attach takes no turn |
//! | | `turns::an_attach_keeps...` * | attaches of one name at a time |
//! | I8 | `lifecycle::the_other_snapshots_stay...` * | a delete frees no slots |
//! | | `turns::a_volume_that_cannot_be_registered...` * | the slots of its staged copies stay taken |
//! | | `restart::an_interrupted_snapshot...` * | its rows stay in the catalog |
#![cfg(feature = "spdk")]

mod agent;
mod config;
mod control;
mod cut;
mod deadlines;
mod export;
mod faults;
mod fused;
mod harness;
mod harness_works;
mod history;
mod hostile;
mod initiator;
mod kill;
mod layers;
mod lifecycle;
mod perf;
mod prediction;
mod removal;
mod restart;
mod scrub;
mod turns;
mod watchdog;
mod zcopy;
