"""What a fetch is told and what it tells: a `Job` as its argument, then a line of JSON for each `Told`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lodger.catalogue.repository import HubName, Repository
from lodger.errors import ErrorInfo
from lodger.hub.base import Work

TITLES: dict[HubName, str] = {"modelscope": "ModelScope", "huggingface": "Hugging Face"}


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One model to be fetched into `models_dir`."""

    repository: Repository
    models_dir: str
    hub: HubName | None = None  # this one only; None: each that has the model, in the table's order
    revision: str | None = None  # None: the one that is here, else the newest
    verify: bool = False  # look at every byte of what is here

    @property
    def folder(self) -> Path:
        return Path(self.models_dir) / self.repository.folder


class Pulled(msgspec.Struct, frozen=True, kw_only=True):
    """A model's folder, complete, and what it took."""

    folder: str
    hub: HubName
    repo: str
    revision: str
    files: int
    bytes: int
    fetched_files: int = 0
    fetched_bytes: int = 0
    replaced: tuple[str, ...] = ()  # files that were there and were not the hub's


class Moved(msgspec.Struct, frozen=True, tag="work"):
    work: Work


class Said(msgspec.Struct, frozen=True, tag="said"):
    """A line for people."""

    text: str


class Done(msgspec.Struct, frozen=True, tag="done"):
    pulled: Pulled


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    error: ErrorInfo


Told = Moved | Said | Done | Failed
