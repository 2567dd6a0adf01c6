"""One JSON for a machine: what ran there, when, from which commit, beside the hardware line."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import hardware

LIBRARIES = ("torch", "triton", "transformers")

Document = dict[str, Any]


def begin(commit: str | None) -> Document:
    """A document without parts. `commit`: of a copy whose own git does not know it."""
    now = datetime.now(timezone.utc)
    return {
        "date": now.date().isoformat(),
        "hardware": hardware.describe() | {"cards": hardware.cards()},
        "software": {name: _version(name) for name in LIBRARIES},
        "commit": commit or _commit() or "not known",
        "parts": {},
    }


def merge(before: Document | None, now: Document) -> Document:
    """`now` with the parts of `before` that were not run again, each with its own commit and date.

    Raises:
        SystemExit: they are of different cards.
    """
    stamp = {"date": now["date"], "commit": now["commit"]}
    stamped = {name: stamp | part for name, part in now["parts"].items()}
    if before is None:
        return now | {"parts": stamped}
    theirs, ours = (_cards(document) for document in (before, now))
    if theirs != ours:
        raise SystemExit(f"Error: the file is of {theirs}, and this machine has {ours}.\nhint: Name another file.")
    return now | {"parts": before["parts"] | stamped}


def read(file: Path) -> Document | None:
    return json.loads(file.read_text()) if file.exists() else None


def write(file: Path, document: Document) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1) + "\n")


def line(document: Document) -> str:
    """Hardware, libraries and commit, for a person."""
    versions = ", ".join(f"{name} {version}" for name, version in document["software"].items() if version)
    cards = "; ".join(hardware.card_line(card) for card in document["hardware"]["cards"])
    host = f"{document['hardware']['cores']} cores of {document['hardware']['cpu']}"
    return f"{document['date']}, {cards}, {host}, {versions}, commit {document['commit']}"


def _cards(document: Document) -> str:
    return ", ".join(f"{card['name']} (driver {card['driver_version']})" for card in document["hardware"]["cards"])


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Short, with `+` when files differ from it; None where this is no git checkout."""
    try:
        said = [
            subprocess.run(["git", *words], capture_output=True, text=True, timeout=20, check=True).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0] + "+" * bool(said[1])
