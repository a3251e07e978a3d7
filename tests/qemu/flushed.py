#!/usr/bin/env python3
"""What a disk with a volatile cache holds after a power cut at the worst: all up to the last flush, nothing after.

QEMU's block filter `blklogwrites` logs writes and flushes in the order in which they came, in the format of
Linux's dm-log-writes. This replays such a log.

    flushed.py count LOG           prints: entries flushes unflushed, where unflushed is the writes after the last flush
    flushed.py replay LOG IMAGE    writes to IMAGE, which must be as the disk was when the log began, what was flushed

All numbers in a log are little-endian. Block 0: magic, version, entries (64 bits each), size of a block (32 bits).
From block 1 on, entries: block, blocks, flags, length of a remark (64 bits each), filled up to a block; then
the data, but for a discard.
"""

import mmap
import struct
import sys

MAGIC = 0x6A736677736872
BLOCK = 4096  # as run.sh tells QEMU
FLUSH, FUA, DISCARD = 1, 2, 4


def entries(log):
    """Yields (flags, offset, bytes, place of the data in the log)."""
    magic, version, counted, block = struct.unpack_from("<QQQI", log)
    if not magic:
        # Written with the first flush: there was none.
        block = BLOCK
    elif magic != MAGIC or version != 1 or block != BLOCK:
        sys.exit("this is no log of blklogwrites with blocks of 4 KiB")
    place, number = block, 0
    # The count is brought up to date with each flush: what came since stands behind.
    while place + block <= len(log):
        first, blocks, flags, _ = struct.unpack_from("<QQQQ", log, place)
        if not blocks and not flags:
            break
        place += block
        data = 0 if flags & DISCARD else blocks * block
        if place + data > len(log):
            break
        yield flags, first * block, blocks * block, place
        place += data
        number += 1
    if number < counted:
        sys.exit(f"the log says that it has {counted} entries, and has {number}")


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    action, log_path = sys.argv[1:3]
    with open(log_path, "rb") as file:
        log = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    all_entries = list(entries(log))
    flushes = [n for n, entry in enumerate(all_entries) if entry[0] & FLUSH]
    durable = flushes[-1] + 1 if flushes else 0
    lost = [entry for entry in all_entries[durable:] if not entry[0] & FUA]
    if action == "replay":
        with open(sys.argv[3], "r+b") as image:
            for number, (flags, offset, size, place) in enumerate(all_entries):
                if number >= durable and not flags & FUA:
                    continue
                image.seek(offset)
                if flags & DISCARD:
                    image.write(bytes(size))
                elif size:
                    image.write(log[place : place + size])
    print(len(all_entries), len(flushes), len(lost))


main()
