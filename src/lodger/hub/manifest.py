"""`.lodger.json` in a model's folder: which files came from where, and that they were right when they came.

An untouched file (same size and time) needs no second look, so a model that is here is known to be in a millisecond and
without asking anyone.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection
from pathlib import Path

import msgspec

from lodger.catalogue.folder_files import inside
from lodger.catalogue.folders import MANIFEST
from lodger.catalogue.repository import HubName, Repository
from lodger.errors import SetupProblem
from lodger.hub.base import RemoteFile
from lodger.hub.job import Pulled

COMMIT = re.compile(r"[0-9a-f]{40}")


class FileRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One file as it was when its content was checked."""

    size: int
    mtime_ns: int
    sha256: str
    git_sha1: str | None = None  # where the hub told no sha256

    def untouched(self, path: Path) -> bool:
        status = regular(path)
        return status is not None and (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)

    def holds(self, file: RemoteFile) -> bool:
        """Whether this is what the hub lists. Unknown where the record lacks the kind of hash that the hub has."""
        if file.sha256 is not None:
            return file.sha256.lower() == self.sha256
        if file.git_sha1 is not None:
            return file.git_sha1.lower() == self.git_sha1
        return file.size == self.size


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a folder. `complete`: every file that serving needs is, by the listing of `revision`."""

    hub: HubName
    repo: str
    revision: str
    complete: bool
    files: dict[str, FileRecord]
    version: int = 1

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files.values())

    def expected(self) -> tuple[RemoteFile, ...]:
        """Its files as a hub would list them."""
        return tuple(RemoteFile(path, file.size, file.sha256, file.git_sha1) for path, file in self.files.items())

    def untouched(self, folder: Path) -> bool:
        """
        Raises:
            ModelProblem: a file is a link that leads out of the folder, which no model is loaded through.
        """
        return all(record.untouched(folder / path) and inside(folder, path) for path, record in self.files.items())

    def is_at(self, revision: str | None) -> bool:
        """Whether this is what `revision` means, for sure: a branch or a tag may have moved on."""
        return revision is None or (revision == self.revision and bool(COMMIT.fullmatch(revision)))

    def pulled(self, folder: Path, *, fetched: Collection[str] = (), replaced: Collection[str] = ()) -> Pulled:
        """The end of a pull that made this of `folder`."""
        return Pulled(
            folder=str(folder),
            hub=self.hub,
            repo=self.repo,
            revision=self.revision,
            files=len(self.files),
            bytes=self.bytes,
            fetched_files=len(fetched),
            fetched_bytes=sum(self.files[path].size for path in fetched),
            replaced=tuple(sorted(replaced)),
        )


_DECODER = msgspec.json.Decoder(Manifest)  # not in a function: see tests/test_style.py


def regular(path: Path) -> os.stat_result | None:
    """The status of a file, also behind a link; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def read_manifest(folder: Path) -> Manifest | None:
    """None where there is none, or where it cannot be understood: the folder is then checked like one without."""
    try:
        return _DECODER.decode((folder / MANIFEST).read_bytes())
    except (OSError, msgspec.DecodeError):  # a ValidationError is a DecodeError
        return None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """In one piece, also when we are killed here."""
    new = folder / f"{MANIFEST}.new"
    with new.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, folder / MANIFEST)


def check_owner(folder: Path, manifest: Manifest | None, repository: Repository) -> None:
    """
    Raises:
        SetupProblem: `folder` holds another model that has the same name.
    """
    known = [name for name in (repository.modelscope, repository.huggingface) if name]
    if manifest is not None and manifest.repo.casefold() not in (name.casefold() for name in known):
        raise SetupProblem(
            f"The folder {folder} holds another model: {manifest.repo}, not {' or '.join(dict.fromkeys(known))}.",
            hint="Move that folder away, or give another --home.",
        )


def folder_is_here(folder: Path, repository: Repository, revision: str | None = None) -> Manifest | None:
    """The manifest of a folder that has all its files, untouched since they were checked. Reads no file's content.

    Raises:
        SetupProblem: it holds another model.
    """
    manifest = read_manifest(folder)
    check_owner(folder, manifest, repository)
    if manifest is None or not manifest.complete or not manifest.is_at(revision):
        return None
    return manifest if manifest.untouched(folder) else None
