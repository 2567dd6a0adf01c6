"""What every part's command line has in common: its help, the card it needs, and `--out FILE` for its raw numbers."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from lodger import interpreter


def options(description: str | None, parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """The command line of a part, on a machine that can run it, in an interpreter that runs as a worker's does.
    `parser`: for a part with options of its own."""
    parser = parser or argparse.ArgumentParser()
    parser.description, parser.formatter_class = description, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, help="where the raw numbers go, as JSON")
    given = parser.parse_args()
    need_gpu()
    interpreter.settle()
    return given


def need_gpu() -> None:
    """Raises: SystemExit with what is missing and what to do about it."""
    try:
        subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        raise SystemExit(
            "Error: bench.gpu needs an NVIDIA GPU, and nvidia-smi finds none here.\n"
            "hint: Run it on a machine with one. `make bench` measures a server on this machine's CPU."
        ) from None


def write(given: argparse.Namespace, raw: dict[str, Any]) -> None:
    if given.out:
        given.out.write_text(json.dumps(raw, indent=1))
