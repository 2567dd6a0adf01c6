"""Weights on their way into RAM before anybody needs them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from threading import Thread

import psutil

_SHARE = 2  # of the RAM that is available: what others have in the page cache is theirs


def read_ahead(folder: Path) -> Thread | None:
    """Ask the system to read a folder's weights while the process that will load them starts. Returns at once.

    Nothing happens where they are more than half of the RAM that is available, or where the system is not asked so.
    """
    files = sorted(folder.glob("*.safetensors"))
    size = 0
    with suppress(OSError):
        size = sum(file.stat().st_size for file in files)
    if not size or size > psutil.virtual_memory().available // _SHARE or not hasattr(os, "posix_fadvise"):
        return None
    thread = Thread(target=_ask, args=(files,), name="read ahead", daemon=True)
    thread.start()
    return thread


def _ask(files: list[Path]) -> None:
    for path in files:
        with suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
