"""A hub in this process: what it lists and what it sends need not be the same."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lodger.catalogue.repository import HubName
from lodger.errors import LodgerError
from lodger.hub.base import Listing, RemoteFile


def git_sha1(data: bytes) -> str:
    """As `git hash-object` says."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def listed(path: str, data: bytes, *, git: bool = False) -> RemoteFile:
    if git:
        return RemoteFile(path, len(data), git_sha1=git_sha1(data))
    return RemoteFile(path, len(data), sha256=hashlib.sha256(data).hexdigest())


Send = Callable[[bytes, Path], bytes]


@dataclass
class FakeHub:
    """`sends`: path -> functions that make of the right bytes, and of where they will be written, what comes next; a
    function may raise instead. After them all is well."""

    name: HubName
    files: Mapping[str, bytes]
    revision: str = "r1"
    down: LodgerError | None = None
    sends: dict[str, list[Send]] = field(default_factory=dict)
    listings: list[tuple[str, str | None]] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)
    git: frozenset[str] = frozenset({"README.md"})  # listed with git's hash only
    lock: threading.Lock = field(default_factory=threading.Lock)

    def list_files(self, repo: str, revision: str | None) -> Listing:
        self.listings.append((repo, revision))
        if self.down:
            raise self.down
        files = tuple(listed(path, data, git=path in self.git) for path, data in self.files.items())
        return Listing(self.name, repo, self.revision, files)

    def download(self, listing: Listing, file: RemoteFile, folder: Path, advance: Callable[[int], None]) -> Path:
        with self.lock:
            self.downloads.append(file.path)
            sends = self.sends.get(file.path)
            send = sends.pop(0) if sends else None
        path = folder / "arriving"
        data = self.files[file.path]
        path.write_bytes(send(data, path) if send else data)
        advance(len(data))
        return path
