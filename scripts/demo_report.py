#!/usr/bin/env python3
"""The parts of scripts/demo.sh that a shell is not made for.

    demo_report.py writes < STATS       commands that have modified the volume
    demo_report.py nqn EXPORT           where a snapshot is exported
    demo_report.py journal IMAGE FILLED does the image hold the journal up to exactly one entry?
    demo_report.py table FOLDER         what happened, from the files that the demo left there
"""

import json
import pathlib
import struct
import sys

MIB = 1 << 20
BLOCK = 4096
# The load's journal, as scripts/demo.sh lays it out.
JOURNAL_AT, JOURNAL_BLOCKS = 32 * MIB, 16 * MIB // BLOCK
# fio's verify_header: magic, type, length, seed, offset, seconds, nanoseconds, thread, number, crc.
HEADER = struct.Struct("<HHIQQIIHHI")
NUMBER = 8


def journal(image, filled):
    """Entry n stands at n modulo the journal's length, so one n explains all blocks or it is torn."""
    image, filled = (pathlib.Path(name).read_bytes() for name in (image, filled))
    blocks = range(JOURNAL_AT, JOURNAL_AT + JOURNAL_BLOCKS * BLOCK, BLOCK)
    written = {}
    for place, at in enumerate(blocks):
        if image[at:at + BLOCK] != filled[at:at + BLOCK]:
            written[place] = HEADER.unpack_from(image, at)[NUMBER]
    if not written:
        return "no entry of the journal is in it"
    # fio counts from 1 or from 0, whichever its version does: the first place tells.
    first = next(iter(written.values())) % JOURNAL_BLOCKS - next(iter(written))
    newest = max(written.values())
    for place in range(JOURNAL_BLOCKS):
        # The newest entry not after `newest` that belongs here; none in the first round.
        age = (newest - first - place) % JOURNAL_BLOCKS
        expected = newest - age if newest - age >= first else None
        if written.get(place) != expected:
            return f"place {place} of the journal has entry {written.get(place)}, not {expected}"
    print(f"journal whole up to entry {newest}")
    return None


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] if values else None


def row(widths, cells):
    print("   " + "  ".join(str(cell).rjust(width) for cell, width in zip(cells, widths)))


def table(folder):
    folder = pathlib.Path(folder)
    titles = ["snapshot", "required", "adopted", "copied", "preserved", "zero", "cut us",
              "readable us", "complete ms", "MiB"]
    widths = [max(len(title), 8) for title in titles]
    row(widths, titles)
    for name in ["first", "second", "third", "rest"]:
        snapshot = json.loads((folder / f"{name}.json").read_text())
        chunks, times = snapshot["chunks"], snapshot["times"]
        row(widths, [name] + [chunks[key] for key in titles[1:6]] +
            [times["cut_us"], times["consistent_us"], round(times["complete_us"] / 1000, 1),
             snapshot["bytes_used"] // MIB])
    print("\n   required: chunks of 256 KiB modified since the snapshot before. Of these, adopted: a right\n"
          "   copy was in the store already; copied: after the cut; preserved: because a write waited.\n")

    windows = [line.split() for line in (folder / "windows").read_text().splitlines()]
    windows = [(int(asked), int(answered)) for _, asked, answered in windows]
    kinds = {"before the first snapshot": [], "while a snapshot completes": [], "between and after": []}
    for log in sorted(folder.glob("load_lat.*.log")):
        for line in log.read_text().splitlines():
            at_ms, latency_ns = (int(word) for word in line.split(",")[:2])
            if at_ms < windows[0][0]:
                kind = "before the first snapshot"
            elif any(asked <= at_ms <= answered for asked, answered in windows):
                kind = "while a snapshot completes"
            else:
                kind = "between and after"
            kinds[kind].append(latency_ns / 1000)
    widths = [26, 8, 8, 8, 8]
    row(widths, ["writes", "number", "p50 us", "p99 us", "max us"])
    for kind, values in kinds.items():
        figures = [percentile(values, share) for share in (0.5, 0.99, 1)]
        row(widths, [kind, len(values)] + ["-" if f is None else round(f) for f in figures])
    print("\n   Measured at fio, on a machine whose cores the target and fio have to themselves or not:\n"
          "   a demonstration, not a benchmark.")


def main():
    match sys.argv[1:]:
        case ["writes"]:
            stats = json.load(sys.stdin)
            print(sum(volume["commands"]["write"] for volume in stats["volumes"]))
        case ["nqn", file]:
            print(json.loads(pathlib.Path(file).read_text())["nqn"])
        case ["journal", image, filled]:
            if problem := journal(image, filled):
                print(problem)
                return 1
        case ["table", folder]:
            table(folder)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
