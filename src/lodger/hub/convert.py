"""Makes safetensors of a folder's pickles: `python -m lodger.hub.convert FOLDER TARGET`, in a process of its own.

Tells what it does and how it ends as lines of JSON (`lodger.hub.job`).
Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec
import torch

from lodger.catalogue.folder_files import open_file
from lodger.catalogue.safetensors_header import read_header
from lodger.errors import DamagedWeights, LodgerError, NotEnoughDisk, SetupProblem
from lodger.hub.bars import Bar
from lodger.hub.base import Report, Work
from lodger.hub.conversion import RECORD, Conversion, Made, outdated_copies, pending, read_record
from lodger.hub.job import Failed, Moved
from lodger.hub.manifest import FileRecord
from lodger.hub.pickles import NAMES, read_pickle
from lodger.hub.staging import MARGIN, sync_folder
from lodger.hub.verify import CHUNK, record_of
from lodger.units import gib

LOCK = ".lodger-convert.lock"
_POLL_SECONDS = 0.1
Advance = Callable[[int], None]


def convert(folder: Path, target: Path, report: Report) -> None:
    """Make in `target` everything that `folder` lacks as safetensors. What is there and right is left alone.

    Whoever comes second waits for the first. What has a final name is whole, and what a killed conversion left behind
    is removed by the next.

    Args:
        target: `folder` itself, or one that stands for it and gets copies of the other files.

    Raises:
        ModelProblem: a pickle holds something else than tensors.
        DamagedWeights: one cannot be read, or is still being written.
        NotEnoughDisk: before anything is written.
    """
    title = f"Converting {folder.name}"
    target.mkdir(parents=True, exist_ok=True)
    with _alone(target, wait=lambda: report(Work(title, 0, 0))):
        todo, copies = pending(folder, target), outdated_copies(folder, target)
        total = sum(_size(folder / name) for one in todo for name in one.sources)
        _check_disk(target, total + sum(_size(folder / name) for name in copies))
        for name in copies:
            _copy(folder, target, name)
        bar = Bar(title, total, report)
        advance = _thirds(bar)
        for one in todo:
            _make(folder, target, one, advance)
        bar.move_to(total)


def _thirds(bar: Bar) -> Advance:
    """Every byte is handled three times: hashed, checked and written."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        bar.move_to(done // 3)

    return advance


def _copy(folder: Path, target: Path, name: str) -> None:
    (target / name).parent.mkdir(exist_ok=True)
    with open_file(folder, name) as original, _new(target / name) as copy:
        shutil.copyfileobj(original, copy)
        status = os.fstat(original.fileno())
    os.utime(target / name, ns=(status.st_atime_ns, status.st_mtime_ns))


def _new(path: Path) -> BinaryIO:
    """To be written: never through a link that somebody left there."""
    path.unlink(missing_ok=True)
    return path.open("xb")


@contextmanager
def _alone(target: Path, wait: Callable[[], None]) -> Iterator[None]:
    """One process at a time. `wait` is called now and then while another is at it."""
    path = target / LOCK
    while (lock := _try_lock(path)) is None:
        wait()
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _try_lock(path: Path) -> int | None:
    """A handle that holds the lock until it is closed or the process ends; None while another has it."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(path)):
            return lock
    except (BlockingIOError, FileNotFoundError):  # the one before us removes it as it ends
        pass
    os.close(lock)
    return None


def _make(folder: Path, target: Path, one: Conversion, advance: Advance) -> None:
    """One result. Where the same bytes were converted before, only the times of its files are noted."""
    result, partial = target / one.result, target / f".{one.result}.partial"
    sources = {name: record_of(folder / name, git=False, advance=advance) for name in one.sources}
    before = read_record(target).get(one.result)
    if before and _hashes(before.sources).items() >= _hashes(sources).items() and _size(result) == before.result.size:
        now = record_of(result, git=False, advance=advance)
        if now.sha256 == before.result.sha256:
            _remember(target, one.result, Made(now, sources))
            return
    try:
        made = Made(_write(folder, partial, one.sources, advance), sources)
        for name, record in sources.items():
            if not record.untouched(folder / name):
                raise DamagedWeights(f"{name} changed while it was read.", hint="Wait until it is complete.")
        _remember(target, one.result, made)  # first: without a record it would pass for a file of the publisher's
        os.replace(partial, result)
        sync_folder(target)
    finally:
        partial.unlink(missing_ok=True)


def _write(folder: Path, path: Path, sources: tuple[str, ...], advance: Advance) -> FileRecord:
    """All tensors of `sources` as one safetensors file, each on its own even where they shared memory."""
    tensors: dict[str, torch.Tensor] = {}
    for source in sources:
        tensors |= read_pickle(folder / source, advance)
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))  # so that each begins aligned
    _check_disk(path.parent, sum(tensor.nbytes for tensor in tensors.values()))
    digest = hashlib.sha256()
    with _new(path) as file:

        def write(data: memoryview | bytes) -> None:
            file.write(data)
            digest.update(data)

        write(_header(tensors))
        for tensor in tensors.values():
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            for start in range(0, len(data), CHUNK):
                write(data[start : start + CHUNK])
                advance(len(data[start : start + CHUNK]))
        file.flush()
        os.fsync(file.fileno())
    read_header(path)
    status = path.stat()
    return FileRecord(status.st_size, status.st_mtime_ns, digest.hexdigest())


def _header(tensors: dict[str, torch.Tensor]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _remember(target: Path, result: str, made: Made) -> None:
    new = target / f"{RECORD}.new"
    with _new(new) as file:
        file.write(msgspec.json.format(msgspec.json.encode(read_record(target) | {result: made})) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, target / RECORD)


def _check_disk(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target).free
    if needed and needed + MARGIN > free:
        raise NotEnoughDisk(
            f"Converting to safetensors needs {gib(needed + MARGIN)} on the disk of the folder {target.name!r}, and "
            f"{gib(free)} are free there.",
            hint=f"Free {gib(needed + MARGIN - free)}.",
        )


def _hashes(files: dict[str, FileRecord]) -> dict[str, str]:
    return {name: file.sha256 for name, file in files.items()}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tell(message: Moved | Failed) -> None:
    print(msgspec.json.encode(message).decode(), flush=True)


def main(arguments: list[str]) -> None:
    folder, target = map(Path, arguments)
    try:
        convert(folder, target, lambda work: _tell(Moved(work)))
    except LodgerError as error:
        _tell(Failed(error.info()))
    except OSError as error:
        kind = NotEnoughDisk if error.errno in (errno.ENOSPC, errno.EDQUOT) else SetupProblem
        message = f"{folder.name} cannot be converted to safetensors: {error.strerror}."
        _tell(Failed(kind(message, hint="Mend that, then try again.").info()))


if __name__ == "__main__":
    main(sys.argv[1:])
