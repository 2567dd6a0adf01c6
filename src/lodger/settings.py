"""The one reader of the environment: one table of options, with where each value came from.

A value is taken from the command line, else from the environment, else from the default. Files are read elsewhere
(`lodger.config`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 9997


@dataclass(frozen=True)
class Settings:
    """What the process was told from outside, resolved once at its start."""

    home: Path  # LODGER_HOME: models, cache, run, logs
    endpoint: str | None  # LODGER_ENDPOINT: the server that client commands talk to
    api_key: str | None  # LODGER_API_KEY


def read_settings(*, home: str | None = None, endpoint: str | None = None, api_key: str | None = None) -> Settings:
    """Arguments win over the environment (`LODGER_HOME`, `LODGER_ENDPOINT`, `LODGER_API_KEY`)."""
    chosen_home = home or os.environ.get("LODGER_HOME") or "~/.lodger"
    return Settings(
        home=Path(chosen_home).expanduser().absolute(),
        endpoint=endpoint or os.environ.get("LODGER_ENDPOINT") or None,
        api_key=api_key or os.environ.get("LODGER_API_KEY") or None,
    )


def environment_with(extra: dict[str, str]) -> dict[str, str]:
    """Our environment with `extra` on top."""
    return {**os.environ, **extra}


def child_environment(extra: dict[str, str]) -> dict[str, str]:
    """The environment of a child process: ours with `extra` on top, offline for every hub library."""
    return environment_with({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **extra})
