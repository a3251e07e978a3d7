//! presnap's JSON-RPC methods: the one place where their parameters, bounds, results and errors
//! are written down.
//!
//! [`super::decode()`] checks requests against it, the server registers its names, the `presnap`
//! command builds its subcommands from it, and docs/rpc.md and `scripts/presnap_rpc.py` are
//! generated from it.

use super::error::Errno;
use super::schema::{
    Command, ErrorCase, Method, Param, Reply, TRADDR_BYTES_MAX, TRSVCID_BYTES_MAX, Text,
};

/// Least and greatest chunk and slot size in KiB (docs/architecture.md: 64 KiB to 4 MiB).
pub const CHUNK_KIB: (u64, u64) = (64, 4096);
/// Chunk objects in one answer at most: about 10 MB of JSON.
pub const CHUNK_COUNT_MAX: u64 = 65_536;
/// Hosts that one export may list.
pub const HOSTS_MAX: usize = 64;
/// Longest time that a parameter may ask for: a day, in milliseconds.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Greatest copy limit in MiB/s. No link or device that SPDK drives comes near it.
const COPY_MIB_PER_S_MAX: u64 = 1_000_000;

const VOLUME: Param = Param::text("volume", Text::Name, "Name of the volume.");
const SNAPSHOT: Param = Param::text("name", Text::Name, "Name of the snapshot.");
const POLICY: Param = Param::choice(
    "policy",
    &["off", "idle", "deadline", "rate", "likely", "lstm"],
    "When staged copies are made ahead of a snapshot: `off`, never; `idle`, once a dirty chunk was \
     not written for `idle_ms`; `deadline`, as late before the next snapshot as copying takes; the \
     others, once a predictor gives a chunk a score of `threshold`: `rate` and `lstm` score \
     how likely a copy made now is to be of use, `likely` how likely the chunk is to be written.",
);
/// What a volume does unless it is told otherwise: what leaves least to copy at a cut, also when nobody
/// knows when that comes (docs/prediction.md has the measurements).
const POLICY_DEFAULT: &str = "\"idle\"";
const THRESHOLD: Param = Param::share(
    "threshold",
    "Score from which on policies `deadline`, `rate`, `likely` and `lstm` stage a chunk; 0: 0.5, or \
     with `rate` and `lstm` 0.1, which then is moved by itself, down when a snapshot takes longer than \
     `snapshot_target_ms`, up when too much is copied in vain or the staging limit is reached.",
);
const WINDOW: Param = Param::integer(
    "window_ms",
    "ms",
    (0, DAY_MS),
    "Time from one snapshot to the next, where it is always the same; 0: a predictor learns from \
     past snapshots when to expect the next.",
);
const IDLE_MS: Param = Param::integer(
    "idle_ms",
    "ms",
    (1, DAY_MS),
    "How long a chunk must rest before policy `idle` stages it.",
);
const STAGING_LIMIT: Param = Param::integer(
    "staging_limit_percent",
    "% of the store's slots",
    (0, 100),
    "How much of the store staged copies of this volume may take. The next snapshot of the volume \
     adopts them; snapshots of other volumes do not get that space.",
);
const SNAPSHOT_TARGET: Param = Param::integer(
    "snapshot_target_ms",
    "ms",
    (0, DAY_MS),
    "Aim for the time from a create request to a complete snapshot, for which the threshold of \
     policies `rate` and `lstm` is lowered; 0: no aim.",
);
const COPY_LIMIT: Param = Param::integer(
    "copy_mbytes_per_sec",
    "MiB/s",
    (0, COPY_MIB_PER_S_MAX),
    "Limit for staging and for copying after the cut; 0: none. Copies that a foreground write \
     waits for are not held back.",
);

const NO_VOLUME: ErrorCase = ErrorCase {
    errno: Errno::NoEnt,
    when: "there is no such volume",
    remedy: "see `presnap volume list`",
};
const NO_SNAPSHOT: ErrorCase = ErrorCase {
    errno: Errno::NoEnt,
    when: "there is no such snapshot",
    remedy: "see `presnap snapshot list`",
};
const NO_STORE: ErrorCase = ErrorCase {
    errno: Errno::NoEnt,
    when: "there is no such store",
    remedy: "see `presnap store list`; load it with presnap_store_load",
};
const NO_BDEV: ErrorCase = ErrorCase {
    errno: Errno::NoDev,
    when: "there is no such bdev",
    remedy: "create it first, or see bdev_get_bdevs for the names",
};
const CLAIMED: ErrorCase = ErrorCase {
    errno: Errno::Busy,
    when: "the bdev is claimed by something else",
    remedy: "delete what uses it, or name another bdev",
};
const STORE_GONE: ErrorCase = ErrorCase {
    errno: Errno::NoDev,
    when: "the store's device is gone, or the store has failed",
    remedy: "the message has the steps: bring the device back, load the store again, and create its \
             volumes again",
};
const DEVICE_ERROR: ErrorCase = ErrorCase {
    errno: Errno::Io,
    when: "the device answered with an error",
    remedy: "see the log of the target for the command and the status",
};
const STORE_IN_USE: ErrorCase = ErrorCase {
    errno: Errno::Busy,
    when: "a volume uses the store, or one of its snapshots is exported",
    remedy: "delete the volume's bdev (`presnap volume delete`, keeps data) or the export first",
};

const STORE_NAME: Param = Param::text("name", Text::Name, "Name of the store.");
const STORE_BDEV: Param = Param::text("bdev", Text::Bdev, "The bdev that the store is on.");

/// Every method, in the order of the documentation.
pub const METHODS: &[Method] = &[
    Method {
        name: "presnap_store_create",
        summary: "Formats a bdev as a store and loads it.",
        details: "Writes superblocks and an empty catalog. Refuses a bdev that holds a store, a \
                  filesystem or a partition table, unless `force` is given. The slot size is fixed \
                  from then on and is the chunk size of every volume that uses the store.",
        params: &[
            Param::text("name", Text::Name, "Name of the new store.").required(),
            Param::text("bdev", Text::Bdev, "The bdev to format.").required(),
            Param::power_of_two("slot_size_kib", "KiB", CHUNK_KIB, "Bytes per slot.").or("256"),
            Param::flag("force", "Overwrite what the bdev holds. It is lost."),
        ],
        one_of: &[],
        example: r#"{"name": "store0", "bdev": "Nvme1n1"}"#,
        reply: Reply::Store,
        reply_doc: "The new store.",
        errors: &[
            NO_BDEV,
            CLAIMED,
            ErrorCase {
                errno: Errno::Exist,
                when: "a loaded store has this name",
                remedy: "choose another name, or delete that store",
            },
            ErrorCase {
                errno: Errno::Perm,
                when: "the bdev holds a store, a filesystem or a partition table",
                remedy: "check that it is the right bdev; `force` overwrites what is there",
            },
            ErrorCase {
                errno: Errno::NoSpc,
                when: "the bdev is too small for superblocks, catalog and one slot",
                remedy: "use a larger bdev or a smaller slot_size_kib",
            },
            ErrorCase {
                errno: Errno::Inval,
                when: "the bdev has metadata (DIF), is zoned, or has blocks that do not fit",
                remedy: "use a bdev with blocks of 512 to 4096 bytes and without metadata",
            },
            DEVICE_ERROR,
        ],
        command: Command {
            path: &["store", "create"],
            positional: &["name", "bdev"],
            examples: &[
                "presnap store create store0 Nvme1n1",
                "presnap store create store0 Nvme1n1 --slot-size-kib 128 --force",
            ],
        },
        slow: true,
    },
    Method {
        name: "presnap_store_load",
        summary: "Loads a store that is on a bdev.",
        details: "Stores are also loaded by themselves when their bdev appears; loading a loaded \
                  store again changes nothing. With both parameters, the store on the bdev must \
                  have that name; by name alone, it must be loaded already. Never formats \
                  anything.\n\n\
                  A store has `failed` when its device is there, but failed its catalog: what the \
                  device holds is then not known for certain. Its volumes serve on as without a \
                  store, and complete snapshots stay readable. When nothing uses it any more, this \
                  method loads it anew.\n\n\
                  In a configuration that is loaded at start, the method may stand before the one \
                  that brings the bdev: the store is loaded when the bdev is there, and the answer \
                  is an empty list.",
        params: &[STORE_BDEV, STORE_NAME],
        one_of: &["bdev", "name"],
        example: r#"{"bdev": "Nvme1n1"}"#,
        reply: Reply::Stores,
        reply_doc: "A list of one: the store; empty while a configuration waits for the bdev.",
        errors: &[
            NO_BDEV,
            CLAIMED,
            ErrorCase {
                errno: Errno::Busy,
                when: "the store has failed, and a volume or an export uses it",
                remedy: "the message has the steps: end the exports and delete the volumes (data and \
                         snapshots stay), load the store, create the volumes again",
            },
            ErrorCase {
                errno: Errno::NoEnt,
                when: "the bdev holds no store, or one with another name",
                remedy: "check bdev and name; presnap_store_create formats a new store",
            },
            ErrorCase {
                errno: Errno::Exist,
                when: "another loaded store has the same name",
                remedy: "unload that one first",
            },
            ErrorCase {
                errno: Errno::BadMsg,
                when: "both superblocks or the catalog are damaged",
                remedy: "restore the device from its mirror; data of this store cannot be trusted",
            },
            ErrorCase {
                errno: Errno::NotSup,
                when: "the store was written by a newer presnap",
                remedy: "use that version or a later one",
            },
            DEVICE_ERROR,
        ],
        command: Command {
            path: &["store", "load"],
            positional: &["bdev"],
            examples: &["presnap store load Nvme1n1", "presnap store load Nvme1n1 --name store0"],
        },
        slow: true,
    },
    Method {
        name: "presnap_store_unload",
        summary: "Stops using a store and leaves it as it is.",
        details: "Its bdev can then be taken out or opened by another host.",
        params: &[STORE_NAME, STORE_BDEV],
        one_of: &["name", "bdev"],
        example: r#"{"name": "store0"}"#,
        reply: Reply::Stores,
        reply_doc: "A list of one: the store as it was left, with state `unloaded`.",
        errors: &[NO_STORE, STORE_IN_USE],
        command: Command {
            path: &["store", "unload"],
            positional: &["name"],
            examples: &["presnap store unload store0", "presnap store unload --bdev Nvme1n1"],
        },
        slow: true,
    },
    Method {
        name: "presnap_store_delete",
        summary: "Deletes a store with all its snapshots.",
        details: "The superblocks are overwritten: the snapshots cannot be brought back. Volumes' \
                  masters are not touched.",
        params: &[STORE_NAME, STORE_BDEV],
        one_of: &["name", "bdev"],
        example: r#"{"name": "store0"}"#,
        reply: Reply::Stores,
        reply_doc: "A list of one: the store as it was, with state `deleted`.",
        errors: &[NO_STORE, STORE_IN_USE, DEVICE_ERROR],
        command: Command {
            path: &["store", "delete"],
            positional: &["name"],
            examples: &["presnap store delete store0"],
        },
        slow: true,
    },
    Method {
        name: "presnap_get_stores",
        summary: "Lists loaded stores.",
        details: "",
        params: &[STORE_NAME.or_else("every store"), STORE_BDEV.or_else("every bdev")],
        one_of: &[],
        example: "{}",
        reply: Reply::Stores,
        reply_doc: "The stores, by name.",
        errors: &[NO_STORE],
        command: Command {
            path: &["store", "list"],
            positional: &["name"],
            examples: &["presnap store list", "presnap store list store0 --json"],
        },
        slow: false,
    },
    Method {
        name: "presnap_store_scrub",
        summary: "Reads a store's copies and compares them with their checksums.",
        details: "Reads every slot that a snapshot owns, and staged copies, in the background and no faster \
                  than allowed. A slot that does not hold what its checksum says, at a second look \
                  either, is damaged: reads of snapshots that need it end with a media error instead \
                  of wrong data, and the log names them once. If the volume is attached and its \
                  newest snapshot has that very chunk, unchanged since, the slot is written again \
                  from the master. Otherwise it stays damaged, also over restarts, until the \
                  snapshots that have it are deleted, or a later scrub finds it in order. The next \
                  snapshot does not take it over. A staged copy that is damaged is dropped.\n\n\
                  A scrub ends with its store: when that is unloaded, loses its device, or the target \
                  stops. The next one begins anew.",
        params: &[
            STORE_NAME,
            STORE_BDEV,
            Param::choice(
                "action",
                &["start", "stop", "status"],
                "`start` a scrub, `stop` the one under way, or only ask for its `status`.",
            )
            .or("\"start\""),
            Param::integer(
                "mbytes_per_sec",
                "MiB/s",
                (0, COPY_MIB_PER_S_MAX),
                "Limit for reading, of a scrub that is started; 0: none.",
            )
            .or("64"),
            Param::flag("wait", "Answer when the scrub has ended."),
        ],
        one_of: &["name", "bdev"],
        example: r#"{"name": "store0"}"#,
        reply: Reply::Scrub,
        reply_doc: "The scrub, and what is damaged.",
        errors: &[
            NO_STORE,
            STORE_GONE,
            ErrorCase {
                errno: Errno::Busy,
                when: "the store is being scrubbed already; the message says how far that is",
                remedy: "wait for it, or stop it first",
            },
            ErrorCase {
                errno: Errno::NoMem,
                when: "there is no memory to read to",
                remedy: "give the target more hugepages",
            },
        ],
        command: Command {
            path: &["store", "scrub"],
            positional: &["name"],
            examples: &[
                "presnap store scrub store0 --wait",
                "presnap store scrub store0 --mbytes-per-sec 200",
                "presnap store scrub store0 --action status --json",
            ],
        },
        slow: true,
    },
    Method {
        name: "bdev_presnap_create",
        summary: "Creates a volume: a bdev on top of a master, with snapshots in a store.",
        details: "From then on the volume is the only way to write to the master. A volume that \
                  the store already knows under this name comes back with its snapshots; the \
                  master must then be the same. Master and store must have the same block size.\n\n\
                  In a configuration that is loaded at start, the method may stand before those \
                  that bring master and store: the volume is created when both are there, as with \
                  SPDK's other virtual bdevs. Methods of the configuration that name the volume, \
                  such as `nvmf_subsystem_add_ns`, do not wait for it: for those, put this \
                  method behind the ones that bring master and store.",
        params: &[
            Param::text("name", Text::Name, "Name of the volume bdev.").required(),
            Param::text("base_bdev", Text::Bdev, "The master.").required(),
            Param::text("store", Text::Name, "Name of the store.").required(),
            Param::power_of_two(
                "chunk_size_kib",
                "KiB",
                CHUNK_KIB,
                "Bytes per chunk; must equal the store's slot size.",
            )
            .or_else("the store's slot size"),
            POLICY.or(POLICY_DEFAULT),
            IDLE_MS.or("1000"),
            THRESHOLD.or("0.0"),
            WINDOW.or("0"),
            STAGING_LIMIT.or("50"),
            SNAPSHOT_TARGET.or("0"),
            COPY_LIMIT.or("0"),
        ],
        one_of: &[],
        example: r#"{"name": "vol0", "base_bdev": "Nvme0n1", "store": "store0"}"#,
        reply: Reply::BdevName,
        reply_doc: "The volume's name.",
        errors: &[
            NO_STORE,
            STORE_GONE,
            NO_BDEV,
            CLAIMED,
            ErrorCase {
                errno: Errno::Exist,
                when: "a bdev has this name, or another loaded store knows a volume of this name",
                remedy: "choose another name, delete that bdev, or name or unload that store",
            },
            ErrorCase {
                errno: Errno::Stale,
                when: "the store knows the volume with another master",
                remedy: "name the master it was created on, or choose a new volume name",
            },
            ErrorCase {
                errno: Errno::Inval,
                when: "the chunk size is not the store's slot size; or the master has another block \
                       size than the store, has metadata (DIF), is zoned, holds the store, or is a \
                       snapshot",
                remedy: "leave chunk_size_kib out, or use another store or master",
            },
            ErrorCase {
                errno: Errno::NoMem,
                when: "there is no memory for the chunk words",
                remedy: "give the target more memory or choose a larger chunk size",
            },
        ],
        command: Command {
            path: &["volume", "create"],
            positional: &["name"],
            examples: &[
                "presnap volume create vol0 --base-bdev Nvme0n1 --store store0",
                "presnap volume create vol0 --base-bdev Nvme0n1 --store store0 --policy off",
            ],
        },
        slow: true,
    },
    Method {
        name: "bdev_presnap_delete",
        summary: "Deletes a volume bdev and leaves master, store and snapshots as they are.",
        details: "A clean stop: dirty chunks and staged copies are saved, and a later \
                  bdev_presnap_create with the same name goes on from there. Complete snapshots \
                  stay readable and exported; one that is not complete is failed. The store \
                  forgets a volume that has no snapshots: also one whose bdev is gone already, when \
                  it is deleted once more after its last snapshot.",
        params: &[Param::text("name", Text::Name, "Name of the volume.").required()],
        one_of: &[],
        example: r#"{"name": "vol0"}"#,
        reply: Reply::True,
        reply_doc: "Done.",
        errors: &[NO_VOLUME],
        command: Command {
            path: &["volume", "delete"],
            positional: &["name"],
            examples: &["presnap volume delete vol0"],
        },
        slow: true,
    },
    Method {
        name: "presnap_snapshot_create",
        summary: "Takes a snapshot of a volume.",
        details: "The snapshot contains every write acknowledged before the request arrived, none \
                  submitted after the reply, and each write in flight at the cut entirely or not \
                  at all. It is crash-consistent: like the disk of a machine that lost power. For \
                  more, flush or freeze the application before the request.\n\n\
                  Repeating a request with the same `uuid`, `volume` and `name` makes no second \
                  snapshot: it waits for the first and answers with it; one that failed is taken \
                  anew. So choose a UUID, and repeat after a lost connection.\n\n\
                  `timeout_ms` is a deadline for what is awaited. When it passes first, the \
                  snapshot is given up, nothing of it stays behind, and the answer is \
                  `-ETIMEDOUT`; that of a repeated request only ends its own wait, and the snapshot \
                  goes on. Foreground commands go on in every case.",
        params: &[
            VOLUME.required(),
            Param::text("name", Text::Name, "Name of the new snapshot, unique in its volume.")
                .required(),
            Param::text("uuid", Text::Uuid, "UUID of the snapshot, and of its exported namespace.")
                .or_else("a random one"),
            Param::choice(
                "wait",
                &["consistent", "complete"],
                "Answer when the snapshot is readable (`consistent`) or when it needs nothing of \
                 the master any more (`complete`).",
            )
            .or("\"complete\""),
            Param::integer(
                "timeout_ms",
                "ms",
                (0, DAY_MS),
                "Deadline for what is awaited; 0: none.",
            )
            .or("0"),
        ],
        one_of: &[],
        example: r#"{"volume": "vol0", "name": "monday",
 "uuid": "6f9619ff-8b86-4d01-b42d-00cf4fc964ff", "wait": "complete", "timeout_ms": 60000}"#,
        reply: Reply::Snapshot,
        reply_doc: "The snapshot.",
        errors: &[
            NO_VOLUME,
            ErrorCase {
                errno: Errno::Exist,
                when: "the volume has another snapshot with this name, or the UUID is taken",
                remedy: "choose another name, or delete that snapshot",
            },
            ErrorCase {
                errno: Errno::Busy,
                when: "another snapshot of the volume is completing; the message has its progress",
                remedy: "wait for it, then repeat",
            },
            ErrorCase {
                errno: Errno::NoSpc,
                when: "the free slots are fewer than the dirty chunks without a copy, those that are \
                       all zeros included; checked before anything is done",
                remedy: "wait for other snapshots on the store that are completing, delete \
                         snapshots, or use a larger store",
            },
            ErrorCase {
                errno: Errno::Io,
                when: "the snapshot failed; the message has the reason",
                remedy: "see the log of the target; delete the failed snapshot or repeat with its \
                         uuid",
            },
            ErrorCase {
                errno: Errno::TimedOut,
                when: "the deadline passed",
                remedy: "repeat with a longer timeout_ms, or wait for `consistent` only",
            },
            STORE_GONE,
        ],
        command: Command {
            path: &["snapshot", "create"],
            positional: &["volume", "name"],
            examples: &[
                "presnap snapshot create vol0 monday",
                "presnap snapshot create vol0 monday --wait consistent",
                "presnap snapshot create vol0 monday \
                 --uuid 6f9619ff-8b86-4d01-b42d-00cf4fc964ff --timeout-ms 60000",
            ],
        },
        slow: true,
    },
    Method {
        name: "presnap_get_snapshots",
        summary: "Lists snapshots.",
        details: "",
        params: &[VOLUME.or_else("every volume"), SNAPSHOT.or_else("every name")],
        one_of: &[],
        example: r#"{"volume": "vol0"}"#,
        reply: Reply::Snapshots,
        reply_doc: "The snapshots, by volume, oldest first. Empty if none matches.",
        errors: &[NO_VOLUME],
        command: Command {
            path: &["snapshot", "list"],
            positional: &["volume", "name"],
            examples: &[
                "presnap snapshot list",
                "presnap snapshot list vol0",
                "presnap snapshot list vol0 monday --json",
            ],
        },
        slow: false,
    },
    Method {
        name: "presnap_snapshot_delete",
        summary: "Deletes a snapshot.",
        details: "What the next snapshot still needs is handed to it; the rest is freed. No data \
                  moves. Deleting a completing snapshot gives it up.",
        params: &[VOLUME.required(), SNAPSHOT.required()],
        one_of: &[],
        example: r#"{"volume": "vol0", "name": "monday"}"#,
        reply: Reply::True,
        reply_doc: "Done, and durable.",
        errors: &[
            NO_VOLUME,
            NO_SNAPSHOT,
            ErrorCase {
                errno: Errno::Busy,
                when: "the snapshot is exported, or a completing one builds on it",
                remedy: "remove the export with presnap_snapshot_unexport, or wait for that one",
            },
            STORE_GONE,
            DEVICE_ERROR,
        ],
        command: Command {
            path: &["snapshot", "delete"],
            positional: &["volume", "name"],
            examples: &["presnap snapshot delete vol0 monday"],
        },
        slow: true,
    },
    Method {
        name: "presnap_snapshot_export",
        summary: "Exports a snapshot as a read-only NVMe-oF namespace.",
        details: "Makes an NVMe-oF subsystem with one namespace, `<volume>@<snapshot>`, whose \
                  write-protect attribute is set and whose UUID and NGUID are the snapshot's UUID, so \
                  that they are the same after a restart. A transport that is missing is created \
                  with SPDK's default options. Works from the cut on. Who may connect has to be \
                  said: `hosts` or `allow_any_host`. Repeating a request changes nothing; to change \
                  an export, unexport it first. When the snapshot's bdev goes, because it failed or \
                  its store was removed, the subsystem goes with it and hosts are disconnected.",
        params: &[
            VOLUME.required(),
            SNAPSHOT.required(),
            Param::text("nqn", Text::Nqn, "NQN of the subsystem.")
                .or_else("`nqn.2016-06.io.spdk:presnap:<volume>:<snapshot>:<uuid>`"),
            Param::text("trtype", Text::Transport, "Transport type, such as TCP or RDMA.")
                .or("\"TCP\""),
            Param::text("traddr", Text::Word(TRADDR_BYTES_MAX), "Address to listen on.")
                .or("\"127.0.0.1\""),
            Param::text("trsvcid", Text::Word(TRSVCID_BYTES_MAX), "Port to listen on.")
                .or("\"4420\""),
            Param::list("hosts", Text::Nqn, HOSTS_MAX, "NQNs of the hosts that may connect.")
                .or_else("none but with `allow_any_host`"),
            Param::flag(
                "allow_any_host",
                "Let every host connect that reaches the address, instead of `hosts`.",
            ),
        ],
        one_of: &[],
        example: r#"{"volume": "vol0", "name": "monday",
 "hosts": ["nqn.2014-08.org.nvmexpress:uuid:9f2a1c1e-7d1b-4f0e-9d0e-2f8f2d8a6c11"]}"#,
        reply: Reply::Export,
        reply_doc: "Where to connect.",
        errors: &[
            NO_VOLUME,
            NO_SNAPSHOT,
            ErrorCase {
                errno: Errno::Exist,
                when: "the snapshot is exported in another way, or a subsystem has this NQN",
                remedy: "see `presnap snapshot list --json`; unexport it, or choose another nqn",
            },
            ErrorCase {
                errno: Errno::Inval,
                when: "the snapshot has failed, the target cannot listen on the address, or neither \
                       or both of `hosts` and `allow_any_host` are given",
                remedy: "export another snapshot; check trtype, traddr and trsvcid; name the hosts",
            },
            ErrorCase {
                errno: Errno::NotSup,
                when: "SPDK was built without the transport",
                remedy: "use TCP, or an SPDK that has it",
            },
            ErrorCase {
                errno: Errno::Busy,
                when: "the snapshot is not readable yet, or another request is just ending its export",
                remedy: "wait until its create request has made it consistent; try again",
            },
            ErrorCase {
                errno: Errno::TimedOut,
                when: "it was not there within 10 s, because a reactor does not answer",
                remedy: "see the log and `presnap stats`; nothing of it stays, ask again",
            },
            STORE_GONE,
        ],
        command: Command {
            path: &["snapshot", "export"],
            positional: &["volume", "name"],
            examples: &[
                "presnap snapshot export vol0 monday --allow-any-host",
                "presnap snapshot export vol0 monday --traddr 192.0.2.10 --trsvcid 4421 \
                 --hosts nqn.2014-08.org.nvmexpress:uuid:9f2a1c1e-7d1b-4f0e-9d0e-2f8f2d8a6c11",
            ],
        },
        slow: true,
    },
    Method {
        name: "presnap_snapshot_unexport",
        summary: "Removes the export of a snapshot.",
        details: "Hosts that are connected are disconnected. The snapshot stays. A subsystem to which \
                  other namespaces were added stays with those.",
        params: &[VOLUME.required(), SNAPSHOT.required()],
        one_of: &[],
        example: r#"{"volume": "vol0", "name": "monday"}"#,
        reply: Reply::True,
        reply_doc: "Done.",
        errors: &[
            NO_VOLUME,
            ErrorCase {
                errno: Errno::NoEnt,
                when: "there is no such snapshot, or it is not exported",
                remedy: "see `presnap snapshot list`",
            },
            ErrorCase {
                errno: Errno::Busy,
                when: "another request is just making or ending the export",
                remedy: "try again",
            },
            ErrorCase {
                errno: Errno::TimedOut,
                when: "it has not ended within 10 s, because a host's command or a reactor does not come back",
                remedy: "wait: it ends when they do; see the log and `presnap snapshot list`",
            },
        ],
        command: Command {
            path: &["snapshot", "unexport"],
            positional: &["volume", "name"],
            examples: &["presnap snapshot unexport vol0 monday"],
        },
        slow: true,
    },
    Method {
        name: "presnap_get_stats",
        summary: "Counters and latencies of volumes.",
        details: "Counts run from the creation of the volume, or from the last reset; those of reactors \
                  from the start, or from the last reset of every volume.",
        params: &[
            VOLUME.or_else("every volume"),
            Param::flag("reset", "Start counting anew after this reply."),
        ],
        one_of: &[],
        example: r#"{"volume": "vol0"}"#,
        reply: Reply::Stats,
        reply_doc: "One entry per volume, and one per reactor.",
        errors: &[NO_VOLUME],
        command: Command {
            path: &["stats"],
            positional: &["volume"],
            examples: &["presnap stats", "presnap stats vol0 --reset --json"],
        },
        slow: false,
    },
    Method {
        name: "presnap_get_chunks",
        summary: "What is known of a volume's chunks.",
        details: "Read one page, then go on with `start` set to `next`. Beyond the end of the \
                  volume the page is empty.",
        params: &[
            VOLUME.required(),
            Param::integer("start", "chunks", (0, 1 << 40), "First chunk looked at.").or("0"),
            Param::integer("count", "chunks", (1, CHUNK_COUNT_MAX), "Chunks answered at most.")
                .or("1024"),
            Param::flag("staged_only", "Leave out chunks without a staged copy."),
        ],
        one_of: &[],
        example: r#"{"volume": "vol0", "start": 0, "count": 2}"#,
        reply: Reply::Chunks,
        reply_doc: "A page of chunks.",
        errors: &[NO_VOLUME],
        command: Command {
            path: &["chunks"],
            positional: &["volume"],
            examples: &["presnap chunks vol0", "presnap chunks vol0 --start 4096 --staged-only"],
        },
        slow: false,
    },
    Method {
        name: "presnap_set_policy",
        summary: "Changes or shows how a volume stages and copies.",
        details: "What is absent stays as it is, so without any but `volume` nothing changes. \
                  Takes effect at once and is kept by save_config.",
        params: &[
            VOLUME.required(),
            POLICY.or_else("unchanged"),
            IDLE_MS.or_else("unchanged"),
            THRESHOLD.or_else("unchanged"),
            WINDOW.or_else("unchanged"),
            STAGING_LIMIT.or_else("unchanged"),
            SNAPSHOT_TARGET.or_else("unchanged"),
            COPY_LIMIT.or_else("unchanged"),
        ],
        one_of: &[],
        example: r#"{"volume": "vol0", "policy": "idle", "idle_ms": 500}"#,
        reply: Reply::Policy,
        reply_doc: "The policy in force.",
        errors: &[NO_VOLUME],
        command: Command {
            path: &["policy"],
            positional: &["volume"],
            examples: &[
                "presnap policy vol0",
                "presnap policy vol0 --policy idle --idle-ms 500",
                "presnap policy vol0 --policy rate --threshold 0.8",
            ],
        },
        slow: false,
    },
];

/// The method called `name`.
pub fn method(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name == name)
}
