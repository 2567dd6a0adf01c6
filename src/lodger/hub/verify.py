"""Whether files on disk are what a listing says, by their hashes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from lodger.catalogue.folder_files import inside
from lodger.hub.base import RemoteFile
from lodger.hub.manifest import FileRecord, regular

CHUNK = 4 * 2**20  # bytes read at a time
THREADS = 4
Advance = Callable[[int], None]


def _unheard(count: int) -> None:
    pass


def record_of(path: Path, *, git: bool, advance: Advance = _unheard) -> FileRecord:
    """Size, time and hashes of a file. `git`: with the sha1 that git gives it as a blob."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % status.st_size, usedforsecurity=False)
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
            if git:
                sha1.update(chunk)
            advance(len(chunk))
    return FileRecord(status.st_size, status.st_mtime_ns, sha256.hexdigest(), sha1.hexdigest() if git else None)


def good_files(
    root: Path, files: Sequence[RemoteFile], known: Mapping[str, FileRecord], start: Callable[[int], Advance]
) -> dict[str, FileRecord]:
    """Those of `files` that are under `root` and right. What is `known` and untouched since is not read again.

    Args:
        start: told all bytes that will be read, if any; what it returns is told those read since its last call.

    Raises:
        ModelProblem: one of them is a link that leads out of `root`.
    """
    found: dict[str, FileRecord] = {}
    doubtful: list[RemoteFile] = []
    for file in files:
        status, record = regular(root / file.path), known.get(file.path)
        if status is None or status.st_size != file.size:
            continue
        inside(root, file.path)
        if record is not None and record.holds(file) and record.untouched(root / file.path):
            found[file.path] = record
        else:
            doubtful.append(file)
    advance = start(sum(file.size for file in doubtful)) if doubtful else _unheard

    def look(file: RemoteFile) -> FileRecord:
        return record_of(root / file.path, git=file.sha256 is None, advance=advance)

    with ThreadPoolExecutor(THREADS) as pool:
        for file, record in zip(doubtful, pool.map(look, doubtful), strict=True):
            if record.holds(file):
                before = known.get(file.path)  # it may know a hash that was not asked for now
                git_sha1 = before.git_sha1 if before and before.sha256 == record.sha256 else record.git_sha1
                found[file.path] = msgspec.structs.replace(record, git_sha1=git_sha1)
    return found
