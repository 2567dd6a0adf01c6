"""Where a model is put together before it is seen: one lock, and hidden folders beside the model's own."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lodger.errors import NotEnoughDisk
from lodger.hub.base import Listing, RemoteFile
from lodger.units import MIB, gib

MARGIN = 64 * MIB  # left free, for whoever else writes there


class Staging:
    """The places of one model. Everything survives being killed, and the next one goes on with it.

    A model that is new here is put together in `assembly` and appears at once; files of a folder that exists already
    are put into it one by one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.realpath(folder))  # a linked folder has its other places where it really is
        self.partial = self.folder.with_name(f".{self.folder.name}.partial")
        self.assembly = self.partial / "model"

    @property
    def root(self) -> Path:
        """Where checked files go."""
        with suppress(OSError):
            if any(self.folder.iterdir()):
                return self.folder
        return self.assembly

    @contextmanager
    def alone(self, wait: Callable[[], None]) -> Iterator[None]:
        """One process at a time. `wait` is called when another is at it. The kernel lets go of it when we end."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with open(self.folder.with_name(f".{self.folder.name}.lock"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def part(self, listing: Listing, file: RemoteFile) -> Path:
        """The folder in which this content of this file arrives: another revision's parts are never continued."""
        content = file.sha256 or file.git_sha1 or listing.revision
        key = hashlib.sha256(f"{listing.repo}\n{file.path}\n{file.size}\n{content}".encode()).hexdigest()[:20]
        return self.partial / listing.hub / key

    def forget_others(self, listing: Listing, files: Iterable[RemoteFile]) -> None:
        """Remove parts that are of no use for `files` any more."""
        ours = {self.part(listing, file) for file in files}
        with suppress(FileNotFoundError):
            for part in set((self.partial / listing.hub).iterdir()) - ours:
                shutil.rmtree(part, ignore_errors=True)

    def check_disk(self, listing: Listing, files: Iterable[RemoteFile]) -> None:
        """
        Raises:
            NotEnoughDisk: what is missing of `files` does not fit; before a byte of them is written.
        """
        missing = sum(max(0, file.size - on_disk(self.part(listing, file))) for file in files)
        free = shutil.disk_usage(self.folder.parent).free
        if missing and missing + MARGIN > free:
            raise NotEnoughDisk(
                f"{self.folder.name} needs {gib(missing + MARGIN)} on the disk of {self.folder.parent}, "
                f"and {gib(free)} are free there.",
                hint=f"Free {gib(missing + MARGIN - free)}, or name a folder on another disk with --home.",
            )

    def finish(self, root: Path) -> None:
        """The model in `root` is complete: let it be seen, and remove what only its making needed."""
        if root == self.assembly:
            sync_folder(self.assembly)
            os.rename(self.assembly, self.folder)  # an empty folder gives way
        sync_folder(self.folder.parent)
        shutil.rmtree(self.partial, ignore_errors=True)


def on_disk(folder: Path) -> int:
    """Bytes in the files below `folder`."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # it may just be renamed
                found += os.lstat(os.path.join(place, name)).st_size
    return found


def sync_folder(folder: Path) -> None:
    """Have the names in it on disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
