"""Reads and checks the headers of safetensors files; the tensors themselves stay on disk.

Format: https://github.com/huggingface/safetensors#format. A file that passes can be mapped and sliced by its header
without reading outside of it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lodger.catalogue.config_files import read_fields
from lodger.errors import DamagedWeights, FolderWithoutWeights

MAX_HEADER = 100_000_000  # bytes, as in the reference implementation
MAX_DIMENSION = 2**48
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
AGAIN = "Fetch the file again."
DTYPES: dict[str, tuple[str, int]] = {  # safetensors' name -> torch's name, bytes of one element
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1),
    "U64": ("uint64", 8), "U32": ("uint32", 4), "U16": ("uint16", 2), "BOOL": ("bool", 1),
}  # fmt: skip


class StoredTensor(NamedTuple):
    """One tensor of a file: where it is and what it is."""

    name: str
    file: str  # basename
    dtype: str  # torch's name, "bfloat16"
    shape: tuple[int, ...]
    offset: int  # bytes from the beginning of the file
    size: int  # bytes

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder by name, from model.safetensors or from all shards of its index.

    Raises:
        FolderWithoutWeights: names the weight files that are there instead.
        DamagedWeights: a file is missing, cut short, or its header makes no sense.
    """
    files, promised = weight_files(folder)
    tensors = {tensor.name: tensor for file in files for tensor in read_header(file)}
    for name, file_name in promised.items():
        if name not in tensors or tensors[name].file != file_name:
            raise DamagedWeights(f"{file_name} lacks the tensor {name[:100]!r} that {INDEX} promises.", hint=AGAIN)
    return tensors


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors files of a folder, and for a sharded one the index: tensor name -> basename of its file.

    Raises:
        FolderWithoutWeights, DamagedWeights.
    """
    if os.path.lexists(folder / SINGLE):  # a link to nowhere is a damaged file, not an absent one
        return [folder / SINGLE], {}
    if not (folder / INDEX).exists():
        raise _no_weights(folder)
    fields = read_fields(folder, INDEX)
    promised = fields.strings("weight_map")
    if not promised or len(promised) != len(fields.values["weight_map"]):
        raise DamagedWeights(f"{INDEX} has no weight_map of tensor names and files.", hint=AGAIN)
    names = sorted(set(promised.values()))
    for name in names:
        if name in {"", ".", ".."} or "/" in name or "\0" in name:
            raise DamagedWeights(f"{INDEX} names a file outside of the folder.", hint=AGAIN)
        if not (folder / name).is_file():
            raise DamagedWeights(f"{name} is missing, though {INDEX} names it.", hint=AGAIN)
    return [folder / name for name in names], promised


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one file in the order of their bytes.

    Raises:
        DamagedWeights: names the file, and for a wrong length the bytes expected and found.
    """
    try:
        with path.open("rb") as file:
            actual = file.seek(0, 2)
            file.seek(0)
            first = file.read(8)
            length = int.from_bytes(first, "little")
            _check_length(path.name, first, length, actual)
            text = file.read(length)
    except OSError as error:
        raise DamagedWeights(f"{path.name} cannot be read: {error.strerror}.") from None
    tensors = sorted(_tensors(path.name, text), key=lambda tensor: (tensor.offset, tensor.size))
    _check_layout(path.name, tensors, actual, begin=8 + length)
    return tensors


def _check_length(name: str, first: bytes, length: int, actual: int) -> None:
    if first == b"version ":
        raise DamagedWeights(
            f"{name} is a Git LFS pointer of {actual:,} bytes, not the weights.", hint="Fetch it with git lfs pull."
        )
    if len(first) < 8:
        raise DamagedWeights(f"{name} is {actual:,} bytes long: not even the length of its header.", hint=AGAIN)
    if length > MAX_HEADER:
        raise DamagedWeights(f"{name} is not safetensors: its header would have {length:,} bytes.", hint=AGAIN)
    if 8 + length > actual:
        raise DamagedWeights(
            f"{name} is cut short: {actual:,} bytes of at least {8 + length:,} (its header alone).", hint=AGAIN
        )


def _tensors(file: str, text: bytes) -> Iterator[StoredTensor]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise DamagedWeights(f"{file} has a header that is not JSON.", hint=AGAIN) from None
    if not isinstance(header, dict):
        raise DamagedWeights(f"{file} has a header that is no JSON object.", hint=AGAIN)
    header.pop("__metadata__", None)
    for name, entry in header.items():
        yield _tensor(file, name, entry, begin=8 + len(text))


def _tensor(file: str, name: str, entry: Any, begin: int) -> StoredTensor:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), _counts(fields.get("shape")), _counts(fields.get("data_offsets"))
    known = DTYPES.get(dtype) if isinstance(dtype, str) else None
    if known is None or shape is None or offsets is None or len(offsets) != 2:
        raise DamagedWeights(f"{file} describes the tensor {name[:100]!r} wrongly.", hint=AGAIN)
    start, end = offsets
    size = math.prod(shape) * known[1]
    if end - start != size:
        raise DamagedWeights(f"{file} gives the tensor {name[:100]!r} {end - start:,} bytes, not {size:,}.", hint=AGAIN)
    return StoredTensor(name, file, known[0], shape, begin + start, size)


def _counts(value: Any) -> tuple[int, ...] | None:
    """A list of at most 8 plausible dimensions or offsets; None for anything else."""
    if not isinstance(value, list) or len(value) > 8:
        return None
    return tuple(value) if all(type(item) is int and 0 <= item <= MAX_DIMENSION for item in value) else None


def _check_layout(file: str, tensors: list[StoredTensor], actual: int, begin: int) -> None:
    """The tensors fill the file from `begin` to its end without overlap or hole."""
    expected = max((tensor.offset + tensor.size for tensor in tensors), default=begin)
    if actual < expected:
        raise DamagedWeights(f"{file} is cut short: {actual:,} bytes of {expected:,}.", hint=AGAIN)
    if actual > expected:
        raise DamagedWeights(f"{file} is {actual:,} bytes long, its header describes {expected:,}.", hint=AGAIN)
    at = begin
    for tensor in tensors:
        if tensor.offset != at:
            raise DamagedWeights(
                f"{file}: the tensor {tensor.name[:100]!r} begins at byte {tensor.offset:,}, not {at:,}.", hint=AGAIN
            )
        at += tensor.size


def _no_weights(folder: Path) -> FolderWithoutWeights:
    found: list[str] = []
    endings = (".bin", ".safetensors", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack")
    with contextlib.suppress(OSError):  # a folder may be readable by name only
        found = sorted(path.name for path in folder.iterdir() if path.suffix in endings)
    shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    if not found:
        return FolderWithoutWeights(f"{folder.name} has no weights.", hint=f"Put {SINGLE} into it.")
    return FolderWithoutWeights(
        f"{folder.name} has no {SINGLE}, only {shown}.",
        hint="This version does not convert other formats; fetch the model's safetensors files.",
    )
