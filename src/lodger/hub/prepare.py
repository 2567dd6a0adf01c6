"""From a spec to a folder that can be loaded: fetched where it is missing, converted where it holds pickles.

What is on this disk and whole costs a few milliseconds: no request, no process.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from lodger.catalogue.identify import identify
from lodger.catalogue.names import repository
from lodger.catalogue.repository import HubName
from lodger.catalogue.resolve import resolve
from lodger.errors import NotDownloaded, SetupProblem, from_info
from lodger.hub.base import Report
from lodger.hub.conversion import outdated_copies, pending
from lodger.hub.job import Failed, Moved
from lodger.hub.pull import pull
from lodger.paths import Home
from lodger.process import run_module
from lodger.spec import ModelSpec

_log = logging.getLogger(__name__)
_TOLD = msgspec.json.Decoder(Moved | Failed)  # not in a function: see tests/test_style.py
Say = Callable[[str], None]


def prepare(
    spec: ModelSpec, home: Home, report: Report, *, say: Say = lambda text: None, hub: HubName | None = None
) -> ModelSpec:
    """`spec` with the path of its folder, which is here and can be loaded. Blocking.

    Args:
        say: told what else people should know of a download.
        hub: fetch from this one only, where there is something to fetch.

    Raises:
        ModelProblem, WrongKind: no such model, or it cannot be served.
        HubProblem, NotEnoughDisk, SetupProblem: it cannot be had.
    """
    found, facts = identify(fetch(spec, home, report, say=say, hub=hub), home.models)
    loadable(Path(facts.path), home, report)
    return found


def fetch(
    spec: ModelSpec, home: Home, report: Report, *, say: Say = lambda text: None, hub: HubName | None = None
) -> ModelSpec:
    """`spec` with the path of its folder; a model that is known and not here is downloaded. Blocking.

    Raises:
        ModelProblem, HubProblem, NotEnoughDisk, SetupProblem.
    """
    try:
        return resolve(spec, home.models)
    except NotDownloaded:
        where = repository(spec.name or spec.uid, spec.size_in_billions)
        pull(where, home.models, report, say=say, hub=hub)
        return resolve(spec, home.models)


def loadable(folder: Path, home: Home, report: Report) -> Path:
    """The folder to load in place of `folder`: itself, with its pickles converted; or, where nothing can be written
    into it, one of this home with copies of its small files. Blocking.

    Raises:
        ModelProblem, NotEnoughDisk, SetupProblem.
    """
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    standing_in = home.cache / "converted" / digest / folder.name
    for target in (folder, standing_in):
        if not pending(folder, target) and not outdated_copies(folder, target):
            return target
    target = folder if _writable(folder) else standing_in
    _convert(folder, target, report)
    return target


def _writable(folder: Path) -> bool:
    """By trying: permissions alone do not tell of read-only mounts, of root on a network's disk, or of quotas."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _convert(folder: Path, target: Path, report: Report) -> None:
    """In a child process, whose memory goes with it. It is killed when `report` raises."""
    failed: list[Failed] = []

    def line(text: str) -> None:
        told = _TOLD.decode(text)
        if isinstance(told, Failed):
            failed.append(told)
        else:
            report(told.work)

    try:
        run_module("lodger.hub.convert", [str(folder), str(target)], report=line)
    except SetupProblem as error:
        _log.error(error.message)  # its last words, which may hold paths that are not for every caller
        raise SetupProblem(
            f"The conversion of {folder.name} to safetensors was ended.",
            hint="The line before this one, or the server's log, has its last words. Is there memory enough?",
        ) from None
    if failed:
        raise from_info(failed[0].error)
