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

from lodger.catalogue.config_files import is_text
from lodger.catalogue.folder_files import AGAIN, open_file
from lodger.catalogue.shards import indexed, numbered
from lodger.errors import DamagedWeights, FolderWithoutWeights

# Bytes. The reference implementation allows 100 MB, which take gigabytes to parse; published headers have under 2.
MAX_HEADER = 16 * 2**20
MAX_DIMENSION = 2**48
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
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
    """Every tensor of a folder by name: from model.safetensors, from all shards of its index, or from all shards that
    count themselves where there is no index.

    Raises:
        FolderWithoutWeights: names the weight files that are there instead.
        DamagedWeights: a file is missing, cut short, or its header makes no sense.
    """
    files, promised = weight_files(folder)
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in read_header(file):
            first = tensors.setdefault(tensor.name, tensor)
            if first is not tensor:
                raise DamagedWeights(f"{first.file} and {file.name} both hold {_shown(tensor.name)}.", hint=AGAIN)
    _check_index(tensors, promised)
    return tensors


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors files of a folder, and what their index says where they have one: tensor name -> basename.

    Raises:
        FolderWithoutWeights, DamagedWeights.
    """
    if os.path.lexists(folder / SINGLE):  # a link to nowhere is a damaged file, not an absent one
        return [folder / SINGLE], {}
    if os.path.lexists(folder / INDEX):
        return indexed(folder, INDEX)
    files = numbered(folder, "model", ".safetensors")
    if not files:
        raise _no_weights(folder)
    return files, {}


def _check_index(tensors: dict[str, StoredTensor], promised: dict[str, str]) -> None:
    for name, file_name in promised.items():
        if name not in tensors or tensors[name].file != file_name:
            raise DamagedWeights(
                f"{file_name[:100]} lacks the tensor {_shown(name)} that {INDEX} promises.", hint=AGAIN
            )
    for name, tensor in tensors.items() if promised else ():
        if name not in promised:
            raise DamagedWeights(f"{INDEX} does not name the tensor {_shown(name)} of {tensor.file}.", hint=AGAIN)


def _shown(name: str) -> str:
    return repr(name[:100])


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one file in the order of their bytes.

    Raises:
        DamagedWeights: names the file, and for a wrong length the bytes expected and found.
    """
    try:
        with open_file(path.parent, path.name, DamagedWeights) as file:
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
        header = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise DamagedWeights(f"{file} has a header that is not JSON, or names something twice.", hint=AGAIN) from None
    if not isinstance(header, dict):
        raise DamagedWeights(f"{file} has a header that is no JSON object.", hint=AGAIN)
    header.pop("__metadata__", None)
    for name, entry in header.items():
        yield _tensor(file, name, entry, begin=8 + len(text))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are unique, as the format demands."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _tensor(file: str, name: str, entry: Any, begin: int) -> StoredTensor:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), _counts(fields.get("shape")), _counts(fields.get("data_offsets"))
    known = DTYPES.get(dtype) if isinstance(dtype, str) else None
    if known is None or shape is None or offsets is None or len(offsets) != 2:
        raise DamagedWeights(f"{file} describes the tensor {_shown(name)} wrongly.", hint=AGAIN)
    start, end = offsets
    size = math.prod(shape) * known[1]
    if end - start != size:
        raise DamagedWeights(f"{file} gives the tensor {_shown(name)} {end - start:,} bytes, not {size:,}.", hint=AGAIN)
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
                f"{file}: the tensor {_shown(tensor.name)} begins at byte {tensor.offset:,}, not {at:,}.", hint=AGAIN
            )
        at += tensor.size


def _no_weights(folder: Path) -> FolderWithoutWeights:
    found: list[str] = []
    endings = (".bin", ".safetensors", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack")
    with contextlib.suppress(OSError):  # a folder may be readable by name only
        found = sorted(name for name in os.listdir(folder) if name.endswith(endings) and is_text(name))
    shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    if not found:
        return FolderWithoutWeights(f"{folder.name} has no weights.", hint=AGAIN)
    return FolderWithoutWeights(
        f"{folder.name} has no {SINGLE}, only {shown}.",
        hint="Read are the model's safetensors files, and pytorch_model.bin.",
    )
