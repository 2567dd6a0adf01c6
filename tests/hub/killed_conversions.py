"""Forks a conversion of FOLDER, kills it somewhere, and looks at what is left: `killed_conversions.py FOLDER TIMES`.

A script of its own: torch is imported once, and its process has no threads when it forks.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from lodger.hub.conversion import RECORD, pending
from lodger.hub.convert import LOCK, convert

RESULT, PARTIAL = "model.safetensors", ".model.safetensors.partial"
torch.set_num_threads(1)


def killed(folder: Path, seconds: float) -> bool:
    """Whether it was killed before it was done."""
    child = os.fork()
    if child == 0:
        convert(folder, folder, lambda work: None)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def check(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    """What has its final name is whole, and known to be ours."""
    left = {path.name for path in folder.iterdir()}
    assert left <= {"pytorch_model.bin", RESULT, RECORD, LOCK, PARTIAL, f"{RECORD}.new"}, left
    if RESULT in left:
        assert RECORD in left
        found = load_file(folder / RESULT)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def main(folder: Path, times: int) -> None:
    expected = torch.load(folder / "pytorch_model.bin", weights_only=True)
    started = time.monotonic()
    convert(folder, folder, lambda work: None)
    whole = time.monotonic() - started
    chance, interrupted = random.Random(7), 0
    for _ in range(times):
        (folder / RESULT).unlink(missing_ok=True)
        interrupted += killed(folder, chance.random() * whole)
        check(folder, expected)
    convert(folder, folder, lambda work: None)
    check(folder, expected)
    assert pending(folder, folder) == []
    assert {path.name for path in folder.iterdir()} == {"pytorch_model.bin", RESULT, RECORD}
    print(interrupted)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
