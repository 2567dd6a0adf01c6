"""Everything that is measured on a GPU, in one call and within 8 minutes.

    python -m bench.gpu [PART...] [--out FILE]

Without PART all of them run, one after the other, each in a process of its own. The raw numbers of all are one JSON
(default: bench/results/gpu/DATE-CARD.json), where parts that were not run again keep what they had; the table comes
from that file. Without PART, `--show` prints the table of a file, and `--add` puts another file's parts into it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bench import hardware
from bench.gpu import document, reading, sheet
from bench.gpu.part import need_gpu
from bench.gpu.parts import PARTS, ROOT, SHARED, STOPPED, Child

WHOLE_S = 480  # of one call
RAM = Path("/dev/shm")


def options() -> argparse.Namespace:
    about = "\n".join(f"  {name:12} {one.about} (at most {one.limit_s} s)" for name, one in PARTS.items())
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m bench.gpu", description=f"{__doc__}\n{about}", formatter_class=shape)
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    parser.add_argument("--out", type=Path, help="the JSON")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json for the parts that read text")
    parser.add_argument("--within", type=int, default=WHOLE_S, metavar="SECONDS", help=f"of a whole run ({WHOLE_S})")
    parser.add_argument("--commit", help="of a copy of the sources whose git does not know it")
    parser.add_argument("--add", type=Path, metavar="FILE", help="put the parts of another run on this card into --out")
    parser.add_argument("--show", action="store_true", help="only print the table of --out")
    given = parser.parse_args()
    if unknown := [name for name in given.parts if name not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    given.parts = given.parts or ([] if given.show or given.add else list(PARTS))
    if (given.show or given.add) and not (given.out and given.out.exists()):
        parser.error("--show and --add need --out with a file that is there")
    return given


def measure(given: argparse.Namespace) -> Path:
    """Run the parts and write the file after each: whatever ends this process, what was measured stays."""
    now, end = document.begin(given.commit), time.monotonic() + given.within
    out: Path = given.out or ROOT / "bench" / "results" / "gpu" / f"{now['date']}-{hardware.kind(now['hardware'])}.json"
    before = document.read(out)
    document.merge(before, now)  # of another card: say so before minutes are spent
    with tempfile.TemporaryDirectory(dir=RAM if RAM.exists() else None) as folders:
        os.environ[SHARED] = folders
        _each(given, end, out, now, before)
    return out


def _each(
    given: argparse.Namespace, end: float, out: Path, now: document.Document, before: document.Document | None
) -> None:
    names: list[str] = given.parts
    child = begun(names[0], given)
    for name, following in zip(names, [*names[1:], None], strict=True):
        running, child = child, begun(following, given) if following else None
        assert running is not None
        left = min(PARTS[name].limit_s, int(end - time.monotonic()))
        if left < 1:
            print(f"== {name}: left out, {given.within} s are over", flush=True)
            running.close()
            continue
        print(f"== {name}: {PARTS[name].about} (at most {left} s)", flush=True)
        now["parts"][name] = running.run(left)
        print(f"== {name}: {now['parts'][name]['state']} after {now['parts'][name]['seconds']} s", flush=True)
        document.write(out, document.merge(before, now))
        if now["parts"][name]["state"] == "stopped":
            break
    if child is not None:
        child.close()


def begun(name: str, given: argparse.Namespace) -> Child:
    """A part that waits for its turn. What all need is imported then, while another one measures."""
    part = PARTS[name]
    if part.reads_text and given.tokenizer:
        part = replace(part, arguments=(*part.arguments, "--tokenizer", str(given.tokenizer)))
    return Child(part)


def show(found: document.Document) -> None:
    print(f"\n{sheet.text(reading.rows(found['parts']))}\n\n{document.line(found)}")
    for name, one in found["parts"].items():
        if one["state"] != "ok":
            print(f"{name}: {one['state']} after {one['seconds']} s: {(one['said'] or ['it said nothing'])[-1]}")


def main() -> None:
    given = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # so that the part ends, and is kept
    out = given.out
    if given.add:
        document.write(out, document.merge(document.read(out), json.loads(given.add.read_text())))
    if given.parts:
        need_gpu()
        out = measure(given)
    found = document.read(out)
    if not found:
        raise SystemExit("Error: nothing was measured.")
    show(found)
    good = {name for name, one in found["parts"].items() if one["state"] == "ok"}
    raise SystemExit(not good.issuperset(given.parts or found["parts"]))


if __name__ == "__main__":
    main()
