"""`pull`: a model's folder made complete. What talks to hubs runs in a child process (`lodger.hub.fetch`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from lodger.catalogue.repository import HubName, Repository
from lodger.errors import HubProblem, from_info
from lodger.hub.base import Report
from lodger.hub.job import Done, Failed, Job, Moved, Pulled, Said, Told
from lodger.hub.manifest import folder_is_here
from lodger.process import run_module

_TOLD = msgspec.json.Decoder(Told)  # not in a function: see tests/test_style.py


def pull(
    repository: Repository,
    models_dir: Path,
    report: Report,
    *,
    say: Callable[[str], None] = lambda text: None,
    hub: HubName | None = None,
    revision: str | None = None,
    verify: bool = False,
) -> Pulled:
    """Have every file of a model that serving needs under `models_dir`. Blocking; goes on where an earlier call ended.

    A folder that is complete and untouched costs no request and no process. One that came from elsewhere is checked in
    place, and only what is missing or wrong is fetched.

    Args:
        report: told of the whole set under the folder's name, of each file under ``folder/path``, and of a check of
            what is here under ``Checking folder``.
        say: told what else people should know: another pull that is waited for, a hub that is passed over.
        hub: fetch from this one only; else from the first that answers and has the model.
        revision: branch, tag or commit; else what is here, or the newest.
        verify: look at every byte of what is here.

    Raises:
        HubProblem, NotEnoughDisk, ModelProblem.
        SetupProblem: the folder holds another model, or cannot be written.
    """
    job = Job(repository=repository, models_dir=str(models_dir), hub=hub, revision=revision, verify=verify)
    if not verify and (here := folder_is_here(job.folder, repository, revision)):
        return here.pulled(job.folder)
    ends: list[Done | Failed] = []

    def line(text: str) -> None:
        match _TOLD.decode(text):
            case Moved(work):
                report(work)
            case Said(text):
                say(text)
            case Done() | Failed() as end:
                ends.append(end)

    run_module("lodger.hub.fetch", [msgspec.json.encode(job).decode()], report=line, online=True)
    match ends:
        case [Done(pulled)]:
            return pulled
        case [Failed(error)]:
            raise from_info(error)
    raise HubProblem(f"Fetching {repository.folder} ended without a word.", hint="Run it again.")
