"""The missing files of one model from one hub: several at once, each checked before it takes its final name."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import msgspec

from lodger.errors import DamagedDownload, HubUnreachable
from lodger.hub.bars import Bar
from lodger.hub.base import Hub, Listing, RemoteFile
from lodger.hub.job import TITLES
from lodger.hub.manifest import FileRecord, Manifest, write_manifest
from lodger.hub.staging import Staging, on_disk
from lodger.hub.verify import record_of

AT_ONCE = 4  # files
TRIES = 3  # of a file whose bytes are wrong
CALLS = 20  # of the SDK for one file, as long as each brings some bytes


class Download:
    """Puts files into `root` and each into the manifest there, so that a killed one need not look at them again."""

    def __init__(self, hub: Hub, listing: Listing, staging: Staging, root: Path, manifest: Manifest, bar: Bar) -> None:
        self.hub = hub
        self.listing = listing
        self.staging = staging
        self.root = root
        self.manifest = manifest
        self.bar = bar
        self._placing = threading.Lock()
        self._given_up = False

    def run(self, files: Sequence[RemoteFile]) -> Manifest:
        """All of `files`, the largest first. After an error nothing more is placed, whatever still comes.

        Raises:
            HubProblem: of the first file that cannot be had; the others' parts stay for the next time.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        write_manifest(self.root, self.manifest)
        pool = ThreadPoolExecutor(AT_ONCE, "fetch")
        coming = [pool.submit(self._one, file) for file in sorted(files, key=lambda file: -file.size)]
        try:
            for one in as_completed(coming):
                one.result()
        finally:  # after an error, not even for those that are on their way
            pool.shutdown(wait=False, cancel_futures=True)
        return self.manifest

    def _one(self, file: RemoteFile) -> None:
        if self._given_up:
            return
        try:
            self._fetch(file)
        except BaseException:
            with self._placing:
                self._given_up = True
            raise

    def _fetch(self, file: RemoteFile) -> None:
        part, bar = self.staging.part(self.listing, file), self.bar.part(file.path, file.size)
        for _ in range(TRIES):
            part.mkdir(parents=True, exist_ok=True)
            path = self._arrived(file, part, bar)
            record = record_of(path, git=file.sha256 is None)
            if record.size == file.size and record.holds(file):
                self._place(file, path, record)
                shutil.rmtree(part, ignore_errors=True)
                bar.move_to(file.size)
                return
            shutil.rmtree(part)
            bar.move_to(0)
        raise DamagedDownload(
            f"{TITLES[self.listing.hub]} sent a wrong {file.path} of {self.listing.repo} {TRIES} times: "
            f"{_difference(record, file)}.",
            hint="Try again later, or name the other hub with --hub.",
        )

    def _arrived(self, file: RemoteFile, part: Path, bar: Bar) -> Path:
        """The file, unchecked. A line that breaks again and again is still used while each call brings something."""
        for _ in range(CALLS):
            before = on_disk(part)
            bar.move_to(before)
            try:
                return self.hub.download(self.listing, file, part, bar.advance)
            except HubUnreachable as error:
                broken = error
                if on_disk(part) <= before:
                    break
            except DamagedDownload:  # the SDK looked itself, again and again: nothing of this is worth going on with
                shutil.rmtree(part, ignore_errors=True)
                raise
        raise broken

    def _place(self, file: RemoteFile, path: Path, record: FileRecord) -> None:
        _make_lasting(path)
        with self._placing:
            if self._given_up:
                return
            target = self.root / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
            files = {**self.manifest.files, file.path: record}
            self.manifest = msgspec.structs.replace(self.manifest, files=files)
            write_manifest(self.root, self.manifest)


def _make_lasting(path: Path) -> None:
    """On disk, and readable to whom new files are: SDKs write for the owner alone."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fchmod(handle, 0o666 & ~_umask())
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """Of this process; asking with os.umask would change it for a moment."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("Umask:", 1)[1].split(maxsplit=1)[0], 8)


def _difference(record: FileRecord, file: RemoteFile) -> str:
    if record.size != file.size:
        return f"{record.size:,} bytes instead of {file.size:,}"
    if file.sha256:
        return f"sha256 {record.sha256} instead of {file.sha256}"
    return f"git sha1 {record.git_sha1} instead of {file.git_sha1}"
