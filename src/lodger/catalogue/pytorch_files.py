"""Sizes of checkpoints in PyTorch's own format, from the directory of the zip file that they are. Nothing is unpickled.

`torch.save` writes a zip file without compression: `NAME/data.pkl` describes the tensors, and `NAME/data/0`,
`NAME/data/1`, ... hold the bytes of their storages (torch/serialization.py, `_save`).
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path

from lodger.catalogue.folder_files import AGAIN, LFS_POINTER, open_file
from lodger.catalogue.shards import indexed, numbered
from lodger.errors import DamagedWeights, ModelProblem

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
MAX_DIRECTORY = 4 * 2**20  # bytes; an entry takes about 100, and a model has a few thousand
_LOCAL_HEADER = 30  # bytes before the name and the data of an entry
_STORAGE = re.compile(r"[^/]+/data/[0-9]+")
# What `zipfile` raises on files that are none.
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, OverflowError, OSError, ValueError)


def checkpoint_files(folder: Path) -> list[Path]:
    """pytorch_model.bin, or all shards of it; empty if there is none.

    Raises:
        DamagedWeights: a shard is missing, or the index makes no sense.
    """
    if os.path.lexists(folder / SINGLE):
        return [folder / SINGLE]
    if os.path.lexists(folder / INDEX):
        return indexed(folder, INDEX)[0]
    return numbered(folder, "pytorch_model", ".bin")


def storage_bytes(path: Path) -> int:
    """Bytes of all tensors of one file; tensors that share their storage count once.

    Raises:
        DamagedWeights: not whole, or not as `torch.save` writes it.
        ModelProblem: a pickle, as torch wrote it before version 1.6.
    """
    try:
        with open_file(path.parent, path.name, DamagedWeights) as file:
            _check_beginning(path.name, file.read(len(LFS_POINTER)), os.fstat(file.fileno()).st_size)
            with zipfile.ZipFile(_Sparing(file.fileno(), closefd=False)) as archive:
                entries, end = archive.infolist(), archive.start_dir
    except FileNotFoundError:
        raise DamagedWeights(f"{path.name} is missing.", hint=AGAIN) from None
    except _ZIP_ERRORS as error:
        raise DamagedWeights(f"{path.name} is damaged or cut short: {str(error)[:100]}.", hint=AGAIN) from None
    _check_entries(path.name, entries, end)
    return sum(entry.file_size for entry in entries if _STORAGE.fullmatch(entry.filename))


class _Sparing(io.FileIO):
    """A file that does not read a directory of any length into memory because the file says so."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory would have {size:,} bytes")
        return super().read(size) or b""  # without a size `zipfile` asks for the last 64 KiB only


def _check_beginning(name: str, first: bytes, actual: int) -> None:
    if first.startswith(b"PK\x03\x04"):
        return
    if first == LFS_POINTER:
        raise DamagedWeights(f"{name} is a Git LFS pointer of {actual:,} bytes, not the weights.", hint=AGAIN)
    if first.startswith(b"\x80"):  # every pickle of protocol 2 and later
        raise ModelProblem(
            f"{name} is a bare pickle, as PyTorch wrote before version 1.6, which is not read.",
            hint="Fetch the model's safetensors files, or load and save it once with a newer PyTorch.",
        )
    raise DamagedWeights(f"{name} ({actual:,} bytes) is no checkpoint of PyTorch.", hint=AGAIN)


def _check_entries(name: str, entries: list[zipfile.ZipInfo], end: int) -> None:
    """The entries are stored as they are, one after the other, in front of the directory at `end`."""
    names = {entry.filename for entry in entries}
    if len(names) < len(entries) or sum(entry.count("/") == 1 and entry.endswith("/data.pkl") for entry in names) != 1:
        raise DamagedWeights(f"{name} is a zip file, but no checkpoint of PyTorch.", hint=AGAIN)
    at = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        shown = repr(entry.filename[:100])
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise DamagedWeights(f"{name} compresses its entry {shown}, which PyTorch never does.", hint=AGAIN)
        if entry.header_offset < at:
            raise DamagedWeights(f"{name}: the entry {shown} begins inside of another.", hint=AGAIN)
        at = entry.header_offset + _LOCAL_HEADER + entry.file_size
    if at > end:
        raise DamagedWeights(f"{name}: its entries reach byte {at:,}, but {end:,} are there.", hint=AGAIN)
