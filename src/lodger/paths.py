"""The one module that knows directories. Everything lives under the home folder (`LODGER_HOME`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """Where Lodger keeps things. `make` creates the folders; what is in `run` is for the owner only."""

    root: Path

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def run(self) -> Path:
        """The record of the running server and its lock (0700)."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def registrations(self) -> Path:
        """Names that users registered for models of their own."""
        return self.root / "registrations"

    @property
    def server_record(self) -> Path:
        return self.run / "server.json"

    @property
    def server_log(self) -> Path:
        return self.logs / "server.log"

    def worker_log(self, device: str) -> Path:
        return self.logs / f"worker-{device.replace(':', '')}.log"

    def make(self) -> Home:
        for folder in (self.models, self.run, self.logs, self.cache):
            folder.mkdir(parents=True, exist_ok=True)
        self.run.chmod(0o700)
        return self
