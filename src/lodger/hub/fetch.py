"""Makes a model's folder complete: `python -m lodger.hub.fetch JOB`, which tells its `Told`, a line of JSON each.

It may be killed at any byte. A file takes its final name when its size and hash are what the hub's listing says, and a
new model's folder when all of its files have; the next run goes on from there.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
from collections.abc import Callable

import msgspec

from lodger.catalogue.repository import HubName
from lodger.errors import HubProblem, HubRefused, HubUnreachable, LodgerError, NotEnoughDisk, SetupProblem
from lodger.hub import TABLE, open_hub
from lodger.hub.bars import Bar
from lodger.hub.base import Hub, Work
from lodger.hub.download import Download
from lodger.hub.job import TITLES, Done, Failed, Job, Moved, Pulled, Said, Told
from lodger.hub.manifest import Manifest, check_owner, read_manifest, write_manifest
from lodger.hub.select import select
from lodger.hub.staging import Staging
from lodger.hub.verify import Advance, good_files
from lodger.units import gib

_JOB = msgspec.json.Decoder(Job)
Tell = Callable[[Told], None]


def fetch(job: Job, tell: Tell, opened: Callable[[HubName], Hub] = open_hub) -> Pulled:
    """As `lodger.hub.pull.pull`, in this process."""
    try:
        return Fetch(job, tell, opened).run()
    except OSError as error:
        raise _disk_problem(job, error) from error


class Fetch:
    """One job, under its lock."""

    def __init__(self, job: Job, tell: Tell, opened: Callable[[HubName], Hub]) -> None:
        self.job = job
        self.name = job.repository.folder
        self.tell = tell
        self.opened = opened
        self.staging = Staging(job.folder)

    def run(self) -> Pulled:
        if self.job.folder.exists() and not self.job.folder.is_dir():
            raise SetupProblem(f"{self.job.folder} is a file.", hint="Move it away: the model's folder goes there.")
        with self.staging.alone(lambda: self.say(f"Another pull of {self.name} is running; waiting for its end.")):
            manifest = read_manifest(self.staging.root)
            check_owner(self.staging.root, manifest, self.job.repository)
            if manifest and (manifest.complete or self.job.verify):
                manifest = self.look_again(manifest)
                if manifest.complete and manifest.is_at(self.job.revision):
                    return manifest.pulled(self.job.folder)
            return self.from_hubs(manifest)

    def look_again(self, manifest: Manifest) -> Manifest:
        """Compare the folder with its own manifest, which needs no network."""
        known = {} if self.job.verify else manifest.files
        good = good_files(self.staging.root, manifest.expected(), known, self.checking)
        if wrong := sorted(manifest.files.keys() - good.keys()):
            self.say(f"Missing or not as it came: {', '.join(wrong)}.")
        found = msgspec.structs.replace(manifest, files=good, complete=manifest.complete and not wrong)
        if found != manifest:
            write_manifest(self.staging.root, found)
        return found

    def from_hubs(self, manifest: Manifest | None) -> Pulled:
        """From the first hub that answers and has the model."""
        problems: list[HubProblem] = []
        for hub in self.hubs(manifest):
            if problems:
                self.say(f"{problems[-1].message} Trying {TITLES[hub]}.")
            try:
                return self.from_hub(hub, manifest)
            except (HubUnreachable, HubRefused) as error:
                problems.append(error)
        if len(problems) == 1:
            raise problems[0]
        kind = HubRefused if any(isinstance(problem, HubRefused) for problem in problems) else HubUnreachable
        raise kind(" ".join(problem.message for problem in problems), hint=problems[0].hint)

    def hubs(self, manifest: Manifest | None) -> list[HubName]:
        """Those to try, in order: where the folder's other files came from comes first."""
        names = [self.job.hub] if self.job.hub else sorted(TABLE, key=lambda name: name != (manifest and manifest.hub))
        having = [name for name in names if self.job.repository.on(name)]
        if not having:
            there = [f"--hub {name}" for name in TABLE if self.job.repository.on(name)]
            raise HubRefused(
                f"{self.name} is not known to be on {' or '.join(TITLES[name] for name in names)}.",
                hint=f"Try {' or '.join([*there, 'the id that it has there'])}.",
            )
        return having

    def from_hub(self, name: HubName, manifest: Manifest | None) -> Pulled:
        """Whatever is missing or wrong by the listing of this hub."""
        hub, repo = self.opened(name), self.job.repository.on(name) or ""
        same = manifest if manifest and manifest.hub == name else None
        listing = hub.list_files(repo, self.job.revision or (same.revision if same else None))
        files, root = select(listing), self.staging.root
        there = {file.path for file in files if os.path.lexists(root / file.path)}
        good = good_files(root, files, manifest.files if manifest else {}, self.checking)
        missing = [file for file in files if file.path not in good]
        self.staging.forget_others(listing, missing)
        self.staging.check_disk(listing, missing)
        now = Manifest(hub=name, repo=repo, revision=listing.revision, complete=False, files=good)
        bar = Bar(self.name, sum(file.size for file in files), self.moved, done=sum(good[path].size for path in good))
        now = Download(hub, listing, self.staging, root, now, bar).run(missing)
        write_manifest(root, msgspec.structs.replace(now, complete=True))
        self.staging.finish(root)
        fetched = [file.path for file in missing]
        replaced = there.intersection(fetched) if root != self.staging.assembly else ()
        return now.pulled(self.job.folder, fetched=fetched, replaced=replaced)

    def checking(self, total: int) -> Advance:
        return Bar(f"Checking {self.name}", total, self.moved).advance

    def moved(self, work: Work) -> None:
        self.tell(Moved(work))

    def say(self, text: str) -> None:
        self.tell(Said(text))


def _disk_problem(job: Job, error: OSError) -> SetupProblem:
    folder = job.folder.parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NotEnoughDisk(
            f"The disk of {folder} is full: {gib(shutil.disk_usage(folder).free)} are free there for "
            f"{job.repository.folder}.",
            hint="Free some and run it again: what has come stays and is not fetched again.",
        )
    return SetupProblem(f"{job.repository.folder} cannot be put into {folder}: {error}.", hint="Look at that folder.")


def main(argument: str) -> None:
    """Never returns: threads of an SDK that still wait for a hub are not waited for."""
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what an SDK prints is not for our parent
    encoder, writing = msgspec.json.Encoder(), threading.Lock()

    def tell(told: Told) -> None:
        with writing:
            lines.write(encoder.encode(told) + b"\n")

    try:
        tell(Done(fetch(_JOB.decode(argument), tell)))
    except LodgerError as error:
        tell(Failed(error.info()))
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
