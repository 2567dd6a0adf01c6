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
    return [", ".join(card[key] for key in _CARD[:3]) for card in cards()]


_CARD = ("name", "memory.total", "driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")


def cards() -> list[dict[str, str]]:
    """Each GPU by nvidia-smi's own names: what decides its speed."""
    query = ["nvidia-smi", f"--query-gpu={','.join(_CARD)}", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [dict(zip(_CARD, line.split(", "), strict=True)) for line in found.strip().splitlines()]


def card_line(card: dict[str, str]) -> str:
    """`NVIDIA H100 80GB HBM3 (81559 MiB, driver 580.65, up to 1980 and 2619 MHz, 700 W)`."""
    sm, memory = (card[f"clocks.max.{part}"].removesuffix(" MHz") for part in ("sm", "mem"))
    power = card["power.limit"].replace(".00", "")
    clocks = f"up to {sm} and {memory} MHz"
    return f"{card['name']} ({card['memory.total']}, driver {card['driver_version']}, {clocks}, {power})"


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
