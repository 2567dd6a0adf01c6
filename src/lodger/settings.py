"""The one reader of the environment: one table of options, with where each value came from.

A value is taken from the command line, else from the environment, else from a file that is read elsewhere
(`lodger.config`), else it is the default.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 9997


@dataclass(frozen=True)
class Settings:
    """What the process was told from outside, resolved once at its start."""

    home: Path  # LODGER_HOME: models, cache, run, logs
    endpoint: str | None  # LODGER_ENDPOINT: the server that client commands talk to
    api_key: str | None  # LODGER_API_KEY


def read_settings(
    *,
    home: str | None = None,
    endpoint: str | None = None,
    api_key: str | None = None,
    filed_home: Callable[[], Path | None] = lambda: None,
) -> Settings:
    """Arguments win over the environment (`LODGER_HOME`, `LODGER_ENDPOINT`, `LODGER_API_KEY`).

    Args:
        filed_home: what a file says of the home; asked only where nobody else does.
    """
    chosen_home = home or os.environ.get("LODGER_HOME") or filed_home() or "~/.lodger"
    return Settings(
        home=Path(os.path.abspath(Path(chosen_home).expanduser())),  # not resolved: a linked home is called by its link
        endpoint=endpoint or os.environ.get("LODGER_ENDPOINT") or None,
        api_key=api_key or os.environ.get("LODGER_API_KEY") or None,
    )


def ragflow_api_key() -> str | None:
    """RAGFLOW_API_KEY: RAGFlow's key, for who would not have it in a list of processes."""
    return os.environ.get("RAGFLOW_API_KEY") or None


def visible_gpus() -> tuple[str, ...] | None:
    """Entries of CUDA_VISIBLE_DEVICES; None when it is unset, which shows every GPU."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if value is None else tuple(entry.strip() for entry in value.split(",") if entry.strip())


def proxy_variables() -> dict[str, str]:
    """http_proxy, all_proxy and no_proxy as HTTP clients read them: in small letters first. Unset ones are left out."""
    names = ("http_proxy", "all_proxy", "no_proxy")
    found = {name: os.environ.get(name) or os.environ.get(name.upper()) for name in names}
    return {name: value for name, value in found.items() if value}


def environment_with(extra: dict[str, str]) -> dict[str, str]:
    """Our environment with `extra` on top."""
    return {**os.environ, **extra}


# What the hubs' SDKs are told unless the user tells them something else: to send no statistics, not to ask where this
# machine stands (ModelScope asks its hub and then an address of Alibaba's clouds), and to draw and log nothing.
QUIET_SDKS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "critical",
    "MODELSCOPE_DOWNLOAD_INTRA_CLOUD": "false",
    "MODELSCOPE_LOG_LEVEL": "CRITICAL",
    "TQDM_DISABLE": "1",
}


def child_environment(extra: dict[str, str], *, online: bool = False) -> dict[str, str]:
    """The environment of a child process: ours with `extra` on top, with GPUs counted as the driver counts them, and
    offline for every hub library unless `online`."""
    fixed = {"TOKENIZERS_PARALLELISM": "false", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    offline = {} if online else {"HF_HUB_OFFLINE": "1"}
    return {**QUIET_SDKS, **environment_with({**fixed, **offline, **extra})}
