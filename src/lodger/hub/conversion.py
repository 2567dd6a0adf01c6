"""Which pickled weights of a folder must become safetensors before it can be loaded, and which already have.

`pytorch_model.bin`, in shards or not, becomes model.safetensors, and each of bge-m3's heads a file of its own. A small
record beside the results says what they were made of, so that a changed source is converted again and a damaged result
is noticed: by size and time at once, and by sha256 where those differ. Nothing here reads a tensor.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from lodger.catalogue.pytorch_files import checkpoint_files
from lodger.catalogue.safetensors_header import INDEX, SINGLE, read_header
from lodger.catalogue.token_heads import STEMS
from lodger.errors import DamagedWeights
from lodger.hub.manifest import FileRecord, regular

RECORD = ".lodger-converted.json"
_READ = (".json", ".jinja", ".txt", ".safetensors")  # what serving reads of a folder


class Conversion(NamedTuple):
    """Pickles whose tensors go into one safetensors file. Names are those of files in the folder."""

    sources: tuple[str, ...]
    result: str


class Made(msgspec.Struct, frozen=True):
    """One result, and by their names the files that it was made of."""

    result: FileRecord
    sources: dict[str, FileRecord]


_RECORDS = msgspec.json.Decoder(dict[str, Made])  # not in a function: see tests/test_style.py


def pending(folder: Path, target: Path) -> list[Conversion]:
    """What is still to be made in `target`, which is `folder` itself or one that stands for it; the weights last, with
    which it is complete.

    Raises:
        DamagedWeights: some of the shards are missing.
    """
    made = read_record(target)
    return [one for one in _conversions(folder, target) if not _settled(folder, target, one, made.get(one.result))]


def outdated_copies(folder: Path, target: Path) -> list[str]:
    """Files of `folder` that `target`, standing for it, lacks or has as they were before."""
    if target == folder:
        return []
    made = {one.result for one in _conversions(folder, target) if not _published(folder, one)}
    there = [path for path in (*folder.glob("*"), *folder.glob("*/*")) if path.suffix in _READ and path.is_file()]
    names = [str(path.relative_to(folder)) for path in there if not path.name.startswith(".")]
    return sorted(name for name in names if name not in made and not _same(folder / name, target / name))


def _conversions(folder: Path, target: Path) -> list[Conversion]:
    found = [
        Conversion((f"{stem}.pt",), f"{stem}.safetensors")
        for stem in STEMS.values()
        if (folder / f"{stem}.pt").exists()
    ]
    try:
        sources = tuple(path.name for path in checkpoint_files(folder))
    except DamagedWeights:
        if not (target / SINGLE).exists():  # else it no longer matters what is left of them
            raise
        sources = ()
    return found + [Conversion(sources, SINGLE)] * bool(sources)


def read_record(target: Path) -> dict[str, Made]:
    """By the names of the results. Empty where no record can be read: then everything is made anew."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return _RECORDS.decode((target / RECORD).read_bytes())
    return {}


def _settled(folder: Path, target: Path, one: Conversion, made: Made | None) -> bool:
    if made is None:
        return _published(folder, one)
    result = target / one.result
    if _replaced(result, made.result):
        return True
    unchanged = all(name in made.sources and made.sources[name].untouched(folder / name) for name in one.sources)
    return unchanged and made.result.untouched(result)


def _published(folder: Path, one: Conversion) -> bool:
    """Whether the folder came with these tensors in safetensors."""
    if one.result in read_record(folder):
        return False
    return os.path.lexists(folder / one.result) or (one.result == SINGLE and (folder / INDEX).exists())


def _replaced(path: Path, made: FileRecord) -> bool:
    """Whether somebody put another sound file in the place of our result. It is theirs then, and stays."""
    status = regular(path)
    try:
        return status is not None and status.st_size != made.size and bool(read_header(path))
    except DamagedWeights:
        return False


def _same(original: Path, copy: Path) -> bool:
    one, other = regular(original), regular(copy)
    if one is None or other is None:
        return False
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
