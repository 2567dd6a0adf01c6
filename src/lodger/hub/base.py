"""The contract of a hub: where it lists the files of a model, and how one of them gets here.

Implementations import their hub's SDK inside their methods and run in a child process only (`lodger.hub.fetch`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from lodger.catalogue.repository import HubName


class Work(msgspec.Struct, frozen=True):
    """How far something long is, for whoever shows it. Titles are the keys: one bar for each."""

    title: str
    done: int  # bytes
    total: int  # bytes


Report = Callable[[Work], None]


class RemoteFile(msgspec.Struct, frozen=True):
    """One file as the hub lists it."""

    path: str  # relative to the model's folder, "1_Pooling/config.json"
    size: int
    sha256: str | None = None  # hex
    git_sha1: str | None = None  # hex, of the git blob; where a hub has no sha256 for small files (Hugging Face)


class Listing(msgspec.Struct, frozen=True):
    """Every file of one revision."""

    hub: HubName
    repo: str  # the hub's id, "BAAI/bge-m3"
    revision: str  # as exact as the hub tells: a commit where it has one
    files: tuple[RemoteFile, ...]


class Hub(Protocol):
    """A place that models come from. Every method blocks and may be called by several threads."""

    name: HubName

    def list_files(self, repo: str, revision: str | None) -> Listing:
        """
        Raises:
            HubUnreachable: with the address that gave no answer.
            HubRefused: no such model or revision, or it wants a token (with the SDK's variable for it).
        """
        ...

    def download(self, listing: Listing, file: RemoteFile, folder: Path, advance: Callable[[int], None]) -> Path:
        """Fetch one file to somewhere inside `folder` and return where. A part that an earlier call left is resumed.

        The size is the listing's; the caller compares the hash. A file of that size that an earlier call returned may
        be returned again, so the caller removes a wrong one before it asks again.

        Args:
            folder: ours alone, and of this content: the SDK may keep what it wants in it.
            advance: told the bytes that have come since the last call, without what was there before this one; minus
                some where the hub or the SDK starts over. May be called from another thread.

        Raises:
            HubUnreachable, HubRefused, DamagedDownload: after the SDK's own retries, or ours where it has none.
            OSError: the disk's; what has come stays.
        """
        ...
