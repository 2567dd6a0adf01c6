"""Bytes are `int` and times are seconds everywhere; this module alone reads and prints them for people."""

from __future__ import annotations

import re

from lodger.errors import ConfigProblem

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40
_FACTORS = {
    "": 1, "b": 1,
    "k": KIB, "kb": 1000, "kib": KIB,
    "m": MIB, "mb": 1000**2, "mib": MIB,
    "g": GIB, "gb": 1000**3, "gib": GIB,
    "t": TIB, "tb": 1000**4, "tib": TIB,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")
_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def parse_size(value: str | int) -> int:
    """Bytes of ``'14GiB'``, ``'512 MiB'``, ``'1.5g'`` or a plain number of bytes.

    Raises:
        ConfigProblem: not a size.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(str(value))
    factor = _FACTORS.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise ConfigProblem(f"{value!r} is not a size.", hint="Write it like 14GiB or 512MiB.")
    return int(float(match.group(1)) * factor)


def parse_duration(value: str | int) -> float:
    """Seconds of ``'10m'``, ``'90 s'``, ``'1.5h'`` or a plain number of seconds.

    Raises:
        ConfigProblem: not a time.
    """
    match = _SIZE.fullmatch(str(value))
    factor = _SECONDS.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise ConfigProblem(f"{value!r} is not a time.", hint="Write it like 10m, 90s or 2h.")
    return float(match.group(1)) * factor


def gib(size: int) -> str:
    """``'1.06 GiB'``; under a tenth of a GiB ``'45 MiB'``; small ones in KiB or bytes."""
    if size >= GIB // 10:
        return f"{size / GIB:.2f} GiB"
    if size >= MIB:
        return f"{size / MIB:.0f} MiB"
    if size >= KIB:
        return f"{size / KIB:.0f} KiB"
    return f"{size} B"
