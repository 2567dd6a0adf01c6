"""The hardware line that goes with every number."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import psutil

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # what decides the speed of matrix products


def describe() -> dict[str, Any]:
    """Processor, cores that this process may use, its vector instructions, memory, kernel and GPUs."""
    info = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*:\s*(.*)", info)
    flags = re.search(r"flags\s*:\s*(.*)", info)
    has = set(flags.group(1).split()) if flags else set()
    return {
        "cpu": name.group(1) if name else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [flag for flag in _FLAGS if flag in has],
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "kernel": platform.release().split("-")[0],
        "gpus": _gpus(),
    }


def _gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return found.strip().splitlines()


def kind(host: dict[str, Any]) -> str:
    """A short name for a file: `cpu-2` for two cores, `nvidia-h100-80gb-hbm3` for a GPU."""
    if host["gpus"]:
        return re.sub(r"[^a-z0-9]+", "-", host["gpus"][0].split(",")[0].lower()).strip("-")
    return f"cpu-{host['cores']}"


def line(host: dict[str, Any]) -> str:
    """One line for a person."""
    gpus = f", {', '.join(host['gpus'])}" if host["gpus"] else ", no GPU"
    instructions = f" ({', '.join(host['instructions'])})" if host["instructions"] else ""
    return f"{host['cores']} cores of {host['cpu']}{instructions}, {host['memory_gib']} GiB{gpus}"
