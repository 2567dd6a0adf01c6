"""What a server costs while it stands: memory of its whole process tree, processes, and the size of its environment."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import psutil

MIB = 2**20

_PROBE = """
import importlib.metadata as m, json, sys
names = ("lodger", "xinference", "torch", "transformers", "tokenizers", "sentence-transformers")
found = {}
for name in names:
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: pass
print(json.dumps({"python": sys.version.split()[0], "prefix": sys.prefix, **found}))
"""


def memory(pid: int) -> dict[str, Any]:
    """Proportional set size of a process and all its descendants: shared pages are counted once."""
    rows: list[tuple[str, int, int]] = []  # name, PSS, RSS
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            used = process.memory_full_info()
            rows.append((process.name(), used.pss, used.rss))
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return {
        "processes": len(rows),
        "pss_mib": round(sum(pss for _, pss, _ in rows) / MIB),
        "rss_mib": round(sum(rss for _, _, rss in rows) / MIB),
        "each": [{"name": name, "pss_mib": round(pss / MIB), "rss_mib": round(rss / MIB)} for name, pss, rss in rows],
    }


def environment(python: str) -> dict[str, Any]:
    """Versions in the environment of the interpreter `python`, and its size on disk in MiB."""
    found: dict[str, Any] = json.loads(subprocess.run([python, "-c", _PROBE], check=True, capture_output=True).stdout)
    prefix = Path(found.pop("prefix"))
    size = sum(file.lstat().st_size for file in prefix.rglob("*") if file.is_file() and not file.is_symlink())
    return {"versions": found, "environment_mib": round(size / MIB)}
