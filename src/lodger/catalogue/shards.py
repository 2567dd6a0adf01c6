"""Weights in several files: an index that names them, or their own names ("model-00001-of-00003.safetensors")."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from lodger.catalogue.config_files import read_fields
from lodger.catalogue.folder_files import AGAIN
from lodger.errors import DamagedWeights


def indexed(folder: Path, index: str) -> tuple[list[Path], dict[str, str]]:
    """The files that `index` (which is there) names, and tensor name -> basename of its file.

    Raises:
        DamagedWeights: the index makes no sense, or a file of it is missing.
    """
    fields = read_fields(folder, index)
    promised = fields.strings("weight_map")
    if not promised or len(promised) != len(fields.values["weight_map"]):
        raise DamagedWeights(f"{index} has no weight_map of tensor names and files.", hint=AGAIN)
    names = sorted(set(promised.values()))
    for name in names:
        if name in {"", ".", ".."} or "/" in name or "\0" in name:
            raise DamagedWeights(f"{index} names a file outside of the folder.", hint=AGAIN)
        if not os.path.lexists(folder / name):
            raise DamagedWeights(f"{name[:100]} is missing, though {index} names it.", hint=AGAIN)
    return [folder / name for name in names], promised


def numbered(folder: Path, stem: str, suffix: str) -> list[Path]:
    """The files `stem`-NUMBER-of-TOTAL`suffix` where no index is, in order; empty if there are none.

    Raises:
        DamagedWeights: one is missing, or they count to different totals.
    """
    pattern = re.compile(rf"{re.escape(stem)}-([0-9]{{5}})-of-([0-9]{{5}}){re.escape(suffix)}")
    names: list[str] = []
    with contextlib.suppress(OSError):  # a folder may be readable by name only
        names = os.listdir(folder)
    found = {match[0]: match for match in map(pattern.fullmatch, names) if match}
    totals = {match[2] for match in found.values()}
    if len(totals) > 1:
        raise DamagedWeights(f"The files {', '.join(sorted(found)[:3])} belong to different models.", hint=AGAIN)
    for total in totals:
        for number in range(1, int(total) + 1):
            name = f"{stem}-{number:05}-of-{total}{suffix}"
            if name not in found:
                raise DamagedWeights(f"{name} is missing beside {len(found)} of {int(total)} files.", hint=AGAIN)
    return [folder / name for name in sorted(found)]
