"""Hubs in this process, which send what they are told to, and a folder for models."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lodger.catalogue.repository import HubName, Repository
from lodger.errors import LodgerError
from lodger.hub.base import Listing, RemoteFile
from lodger.hub.fetch import fetch
from lodger.hub.job import Job, Pulled, Said, Told


def git_sha1(data: bytes) -> str:
    """As `git hash-object` says."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def listed(path: str, data: bytes, *, git: bool = False) -> RemoteFile:
    if git:
        return RemoteFile(path, len(data), git_sha1=git_sha1(data))
    return RemoteFile(path, len(data), sha256=hashlib.sha256(data).hexdigest())


COMMIT = "0123456789" * 4
Send = Callable[[bytes, Path], bytes]


@dataclass
class FakeHub:
    """`sends`: path -> functions that make of the right bytes, and of where they will be written, what comes next; a
    function may raise instead. After them all is well."""

    name: HubName
    files: Mapping[str, bytes]
    revision: str = COMMIT
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


WEIGHTS = os.urandom(300_000)
FILES = {
    "README.md": b"# read me",
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}" * 999,
    "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
    "model.safetensors": WEIGHTS,
    "onnx/model.onnx": b"of no use",
}
CHOSEN = {path: data for path, data in FILES.items() if not path.startswith("onnx")}
BGE = Repository(folder="bge", modelscope="BAAI/bge", huggingface="BAAI/bge-hf")


@dataclass
class World:
    """A models folder, two hubs, and all that was told."""

    models: Path
    modelscope: FakeHub = field(default_factory=lambda: FakeHub("modelscope", FILES))
    huggingface: FakeHub = field(default_factory=lambda: FakeHub("huggingface", FILES))
    told: list[Told] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.models / "bge"

    def fetch(self, repository: Repository = BGE, tell: Callable[[Told], None] | None = None, **more: object) -> Pulled:
        job = Job(repository=repository, models_dir=str(self.models), **more)  # type: ignore[arg-type]
        try:
            return fetch(job, tell or self.told.append, self.open)
        except BaseException:  # a process would end here, with what is still on its way
            for thread in threading.enumerate():
                if thread.name.startswith("fetch"):
                    thread.join()
            raise

    def open(self, name: HubName) -> FakeHub:
        return self.modelscope if name == "modelscope" else self.huggingface

    def said(self) -> list[str]:
        return [one.text for one in self.told if isinstance(one, Said)]

    def forget(self) -> None:
        for hub in (self.modelscope, self.huggingface):
            hub.listings.clear()
            hub.downloads.clear()
        self.told.clear()

    def guides(self, files: dict[str, bytes]) -> None:
        """A folder as another tool leaves it."""
        for path, data in files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lodger.json"
    }


def hidden(models: Path) -> list[str]:
    return sorted(path.name for path in models.iterdir() if path.name.endswith(".partial"))
