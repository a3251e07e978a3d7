"""presnap's methods for SPDK's scripts/rpc.py.

Generated from src/rpc/table.rs by `presnap rpc --plugin`: change that, not this.

    PYTHONPATH=scripts "$SPDK_DIR"/scripts/rpc.py --plugin presnap_rpc \\
        presnap_snapshot_create vol0 monday

Works with rpc.py of SPDK 20.07 up to current ones and needs nothing but Python's own library. The
target is the judge of values: this file only says which parameters there are.
"""

import json

# (method, summary, [(parameter, type, positional, required, values, help)])
METHODS = [
    ('presnap_store_create', 'Formats a bdev as a store and loads it.', [
        ('name', 'str', True, True, None,
         'Name of the new store. (name)'),
        ('bdev', 'str', True, True, None,
         'The bdev to format. (bdev name)'),
        ('slot_size_kib', 'int', False, False, None,
         'Bytes per slot. (power of two, 64 to 4096, KiB; default: 256)'),
        ('force', 'flag', False, False, None,
         'Overwrite what the bdev holds. It is lost. (boolean; default: false)'),
    ]),
    ('presnap_store_load', 'Loads a store that is on a bdev.', [
        ('bdev', 'str', True, False, None,
         'The bdev that the store is on. (bdev name; one of bdev, name required)'),
        ('name', 'str', False, False, None,
         'Name of the store. (name; one of bdev, name required)'),
    ]),
    ('presnap_store_unload', 'Stops using a store and leaves it as it is.', [
        ('name', 'str', True, False, None,
         'Name of the store. (name; one of name, bdev required)'),
        ('bdev', 'str', False, False, None,
         'The bdev that the store is on. (bdev name; one of name, bdev required)'),
    ]),
    ('presnap_store_delete', 'Deletes a store with all its snapshots.', [
        ('name', 'str', True, False, None,
         'Name of the store. (name; one of name, bdev required)'),
        ('bdev', 'str', False, False, None,
         'The bdev that the store is on. (bdev name; one of name, bdev required)'),
    ]),
    ('presnap_get_stores', 'Lists loaded stores.', [
        ('name', 'str', True, False, None,
         'Name of the store. (name; default: every store)'),
        ('bdev', 'str', False, False, None,
         'The bdev that the store is on. (bdev name; default: every bdev)'),
    ]),
    ('presnap_store_scrub', 'Reads a store\'s copies and compares them with their checksums.', [
        ('name', 'str', True, False, None,
         'Name of the store. (name; one of name, bdev required)'),
        ('bdev', 'str', False, False, None,
         'The bdev that the store is on. (bdev name; one of name, bdev required)'),
        ('action', 'str', False, False, ['start', 'stop', 'status'],
         'start a scrub, stop the one under way, or only ask for its status. ("start" or "stop" or "status"; default: "start")'),
        ('mbytes_per_sec', 'int', False, False, None,
         'Limit for reading, of a scrub that is started; 0: none. (number, 0 to 1000000, MiB/s; default: 64)'),
        ('wait', 'flag', False, False, None,
         'Answer when the scrub has ended. (boolean; default: false)'),
    ]),
    ('bdev_presnap_create', 'Creates a volume: a bdev on top of a master, with snapshots in a store.', [
        ('name', 'str', True, True, None,
         'Name of the volume bdev. (name)'),
        ('base_bdev', 'str', False, True, None,
         'The master. (bdev name)'),
        ('store', 'str', False, True, None,
         'Name of the store. (name)'),
        ('chunk_size_kib', 'int', False, False, None,
         'Bytes per chunk; must equal the store\'s slot size. (power of two, 64 to 4096, KiB; default: the store\'s slot size)'),
        ('policy', 'str', False, False, ['off', 'idle', 'deadline', 'rate', 'likely', 'lstm'],
         'When staged copies are made ahead of a snapshot: off, never; idle, once a dirty chunk was not written for idle_ms; deadline, as late before the next snapshot as copying takes; the others, once a predictor gives a chunk a score of threshold: rate and lstm score how likely a copy made now is to be of use, likely how likely the chunk is to be written. ("off" or "idle" or "deadline" or "rate" or "likely" or "lstm"; default: "idle")'),
        ('idle_ms', 'int', False, False, None,
         'How long a chunk must rest before policy idle stages it. (number, 1 to 86400000, ms; default: 1000)'),
        ('threshold', 'float', False, False, None,
         'Score from which on policies deadline, rate, likely and lstm stage a chunk; 0: 0.5, or with rate and lstm 0.1, which then is moved by itself, down when a snapshot takes longer than snapshot_target_ms, up when too much is copied in vain or the staging limit is reached. (number, 0 to 1; default: 0.0)'),
        ('window_ms', 'int', False, False, None,
         'Time from one snapshot to the next, where it is always the same; 0: a predictor learns from past snapshots when to expect the next. (number, 0 to 86400000, ms; default: 0)'),
        ('staging_limit_percent', 'int', False, False, None,
         'How much of the store staged copies of this volume may take. The next snapshot of the volume adopts them; snapshots of other volumes do not get that space. (number, 0 to 100, %% of the store\'s slots; default: 50)'),
        ('snapshot_target_ms', 'int', False, False, None,
         'Aim for the time from a create request to a complete snapshot, for which the threshold of policies rate and lstm is lowered; 0: no aim. (number, 0 to 86400000, ms; default: 0)'),
        ('copy_mbytes_per_sec', 'int', False, False, None,
         'Limit for staging and for copying after the cut; 0: none. Copies that a foreground write waits for are not held back. (number, 0 to 1000000, MiB/s; default: 0)'),
    ]),
    ('bdev_presnap_delete', 'Deletes a volume bdev and leaves master, store and snapshots as they are.', [
        ('name', 'str', True, True, None,
         'Name of the volume. (name)'),
    ]),
    ('presnap_snapshot_create', 'Takes a snapshot of a volume.', [
        ('volume', 'str', True, True, None,
         'Name of the volume. (name)'),
        ('name', 'str', True, True, None,
         'Name of the new snapshot, unique in its volume. (name)'),
        ('uuid', 'str', False, False, None,
         'UUID of the snapshot, and of its exported namespace. (UUID; default: a random one)'),
        ('wait', 'str', False, False, ['consistent', 'complete'],
         'Answer when the snapshot is readable (consistent) or when it needs nothing of the master any more (complete). ("consistent" or "complete"; default: "complete")'),
        ('timeout_ms', 'int', False, False, None,
         'Deadline for what is awaited; 0: none. (number, 0 to 86400000, ms; default: 0)'),
    ]),
    ('presnap_get_snapshots', 'Lists snapshots.', [
        ('volume', 'str', True, False, None,
         'Name of the volume. (name; default: every volume)'),
        ('name', 'str', True, False, None,
         'Name of the snapshot. (name; default: every name)'),
    ]),
    ('presnap_snapshot_delete', 'Deletes a snapshot.', [
        ('volume', 'str', True, True, None,
         'Name of the volume. (name)'),
        ('name', 'str', True, True, None,
         'Name of the snapshot. (name)'),
    ]),
    ('presnap_snapshot_export', 'Exports a snapshot as a read-only NVMe-oF namespace.', [
        ('volume', 'str', True, True, None,
         'Name of the volume. (name)'),
        ('name', 'str', True, True, None,
         'Name of the snapshot. (name)'),
        ('nqn', 'str', False, False, None,
         'NQN of the subsystem. (NQN; default: nqn.2016-06.io.spdk:presnap:<volume>:<snapshot>:<uuid>)'),
        ('trtype', 'str', False, False, None,
         'Transport type, such as TCP or RDMA. (string; default: "TCP")'),
        ('traddr', 'str', False, False, None,
         'Address to listen on. (string; default: "127.0.0.1")'),
        ('trsvcid', 'str', False, False, None,
         'Port to listen on. (string; default: "4420")'),
        ('hosts', 'list', False, False, None,
         'NQNs of the hosts that may connect. (list of 1 to 64 NQNs; default: none but with allow_any_host)'),
        ('allow_any_host', 'flag', False, False, None,
         'Let every host connect that reaches the address, instead of hosts. (boolean; default: false)'),
    ]),
    ('presnap_snapshot_unexport', 'Removes the export of a snapshot.', [
        ('volume', 'str', True, True, None,
         'Name of the volume. (name)'),
        ('name', 'str', True, True, None,
         'Name of the snapshot. (name)'),
    ]),
    ('presnap_get_stats', 'Counters and latencies of volumes.', [
        ('volume', 'str', True, False, None,
         'Name of the volume. (name; default: every volume)'),
        ('reset', 'flag', False, False, None,
         'Start counting anew after this reply. (boolean; default: false)'),
    ]),
    ('presnap_get_chunks', 'What is known of a volume\'s chunks.', [
        ('volume', 'str', True, True, None,
         'Name of the volume. (name)'),
        ('start', 'int', False, False, None,
         'First chunk looked at. (number, 0 to 1099511627776, chunks; default: 0)'),
        ('count', 'int', False, False, None,
         'Chunks answered at most. (number, 1 to 65536, chunks; default: 1024)'),
        ('staged_only', 'flag', False, False, None,
         'Leave out chunks without a staged copy. (boolean; default: false)'),
    ]),
    ('presnap_set_policy', 'Changes or shows how a volume stages and copies.', [
        ('volume', 'str', True, True, None,
         'Name of the volume. (name)'),
        ('policy', 'str', False, False, ['off', 'idle', 'deadline', 'rate', 'likely', 'lstm'],
         'When staged copies are made ahead of a snapshot: off, never; idle, once a dirty chunk was not written for idle_ms; deadline, as late before the next snapshot as copying takes; the others, once a predictor gives a chunk a score of threshold: rate and lstm score how likely a copy made now is to be of use, likely how likely the chunk is to be written. ("off" or "idle" or "deadline" or "rate" or "likely" or "lstm"; default: unchanged)'),
        ('idle_ms', 'int', False, False, None,
         'How long a chunk must rest before policy idle stages it. (number, 1 to 86400000, ms; default: unchanged)'),
        ('threshold', 'float', False, False, None,
         'Score from which on policies deadline, rate, likely and lstm stage a chunk; 0: 0.5, or with rate and lstm 0.1, which then is moved by itself, down when a snapshot takes longer than snapshot_target_ms, up when too much is copied in vain or the staging limit is reached. (number, 0 to 1; default: unchanged)'),
        ('window_ms', 'int', False, False, None,
         'Time from one snapshot to the next, where it is always the same; 0: a predictor learns from past snapshots when to expect the next. (number, 0 to 86400000, ms; default: unchanged)'),
        ('staging_limit_percent', 'int', False, False, None,
         'How much of the store staged copies of this volume may take. The next snapshot of the volume adopts them; snapshots of other volumes do not get that space. (number, 0 to 100, %% of the store\'s slots; default: unchanged)'),
        ('snapshot_target_ms', 'int', False, False, None,
         'Aim for the time from a create request to a complete snapshot, for which the threshold of policies rate and lstm is lowered; 0: no aim. (number, 0 to 86400000, ms; default: unchanged)'),
        ('copy_mbytes_per_sec', 'int', False, False, None,
         'Limit for staging and for copying after the cut; 0: none. Copies that a foreground write waits for are not held back. (number, 0 to 1000000, MiB/s; default: unchanged)'),
    ]),
]


def _list(text):
    return [entry for entry in text.split(',') if entry]


_TYPES = {'int': int, 'float': float, 'str': str, 'list': _list}


def _add_parameter(parser, name, kind, positional, required, values, text):
    options = {'help': text}
    if values is not None:
        options['choices'] = values
    option = '--' + name.replace('_', '-')
    if kind == 'flag':
        parser.add_argument(option, dest=name, action='store_const', const=True, **options)
        return
    options['type'] = _TYPES[kind]
    if positional:
        parser.add_argument(name, nargs=None if required else '?', **options)
    else:
        parser.add_argument(option, dest=name, required=required, **options)


def _caller(method, names):
    def call(args):
        params = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
        result = args.client.call(method, params)
        if result is not None:  # a dry run has no result
            print(json.dumps(result, indent=2))
    return call


def spdk_rpc_plugin_initialize(subparsers):
    """Adds a subcommand per method; called by rpc.py."""
    for method, summary, parameters in METHODS:
        parser = subparsers.add_parser(method, help=summary, description=summary)
        for parameter in parameters:
            _add_parameter(parser, *parameter)
        parser.set_defaults(func=_caller(method, [parameter[0] for parameter in parameters]))
