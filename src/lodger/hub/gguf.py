"""Makes a normal model folder of a Llama GGUF file: `python -m lodger.hub.gguf SOURCE FOLDER`.

Prints the fraction done, a line each time, and exits 0 once the folder is there. Only what small published chat models
need is read: F32, F16, Q4_1 and Q8_0 tensors.
Formats: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and ggml/src/ggml-quants.c.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lodger.errors import LodgerError, ModelProblem
from lodger.hub.gguf_folder import folder_files, hf_name

Floats = npt.NDArray[np.float32]
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


class Encoding(NamedTuple):
    """How one GGML tensor type stores its numbers."""

    block: int  # numbers in one block
    bytes: int  # of one block
    decode: Callable[[npt.NDArray[np.uint8]], Floats]  # [blocks, bytes] -> [blocks, block]


class Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]  # row-major, as torch has it
    encoding: Encoding
    offset: int  # bytes from the beginning of the file

    @property
    def stored(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) // self.encoding.block * self.encoding.bytes

    def read(self, data: npt.NDArray[np.uint8]) -> Floats:
        raw = data[self.offset : self.offset + self.stored].reshape(-1, self.encoding.bytes)
        return self.encoding.decode(raw).reshape(self.shape)


def _f32(raw: npt.NDArray[np.uint8]) -> Floats:
    return raw.view("<f4")


def _f16(raw: npt.NDArray[np.uint8]) -> Floats:
    return raw.view("<f2").astype(np.float32)


def _q4_1(raw: npt.NDArray[np.uint8]) -> Floats:
    """32 numbers: scale and minimum in float16, then 16 bytes whose low halves come first."""
    scale, least = _f16(raw[:, :2]), _f16(raw[:, 2:4])
    halves = np.concatenate([raw[:, 4:] & 0x0F, raw[:, 4:] >> 4], axis=1)
    return halves * scale + least


def _q8_0(raw: npt.NDArray[np.uint8]) -> Floats:
    """32 numbers: scale in float16, then 32 signed bytes."""
    return raw[:, 2:].view(np.int8) * _f16(raw[:, :2])


ENCODINGS: dict[int, Encoding] = {
    0: Encoding(1, 4, _f32),
    1: Encoding(1, 2, _f16),
    3: Encoding(32, 20, _q4_1),
    8: Encoding(32, 34, _q8_0),
}


class Reader:
    """Reads a GGUF file's head, value after value."""

    def __init__(self, data: npt.NDArray[np.uint8]) -> None:
        self.view = data.data
        self.at = 0

    def scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.view, self.at)
        self.at += struct.calcsize(form)
        return value

    def string(self) -> str:
        length = self.scalar("<Q")
        if length > len(self.view) - self.at:
            raise ValueError("a string reaches beyond the end of the file")
        self.at += length
        return str(self.view[self.at - length : self.at], "utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item = self.scalar("<I")
            return [self.value(item) for _ in range(self.scalar("<Q"))]
        return self.scalar(_SCALARS[kind])


def read_gguf(data: npt.NDArray[np.uint8]) -> tuple[dict[str, Any], list[Tensor]]:
    """Metadata and tensors of a whole GGUF file.

    Raises:
        ModelProblem: not GGUF, cut short, or a tensor type that is not read here.
    """
    reader = Reader(data)
    try:
        if reader.scalar("<4s") != b"GGUF" or reader.scalar("<I") not in (2, 3):
            raise ModelProblem("It is no GGUF file of version 2 or 3.")
        tensors, pairs = reader.scalar("<Q"), reader.scalar("<Q")
        metadata = {reader.string(): reader.value(reader.scalar("<I")) for _ in range(pairs)}
        heads = [_head(reader) for _ in range(tensors)]
    except (struct.error, ValueError, KeyError, RecursionError) as error:
        raise ModelProblem(f"Its head is damaged: {error}.") from None
    alignment = metadata.get("general.alignment", 32)
    start = -(-reader.at // alignment) * alignment
    return metadata, [_tensor(head, start, len(data)) for head in heads]


def _head(reader: Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of one tensor."""
    name = reader.string()
    dims = [reader.scalar("<Q") for _ in range(reader.scalar("<I"))]
    return name, tuple(reversed(dims)), reader.scalar("<I"), reader.scalar("<Q")


def _tensor(head: tuple[str, tuple[int, ...], int, int], start: int, end: int) -> Tensor:
    name, shape, kind, offset = head
    if kind not in ENCODINGS:
        raise ModelProblem(f"{name} is of GGML type {kind}; read are F32, F16, Q4_1 and Q8_0.")
    tensor = Tensor(name, shape, ENCODINGS[kind], start + offset)
    if shape[-1:] and shape[-1] % tensor.encoding.block:
        raise ModelProblem(f"{name} has rows of {shape[-1]} numbers, no multiple of {tensor.encoding.block}.")
    if tensor.offset + tensor.stored > end:
        raise ModelProblem(f"It is cut short: {end:,} bytes of at least {tensor.offset + tensor.stored:,}.")
    return tensor


def to_bfloat16(values: Floats) -> npt.NDArray[np.uint16]:
    """The upper halves of float32, rounded to nearest and, halfway, to even. Values must be finite."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_weights(path: Path, tensors: list[Tensor], data: npt.NDArray[np.uint8], heads: dict[str, int]) -> None:
    """All tensors in bfloat16 under transformers' names. `heads`: of "q" and "k", whose rows GGUF reorders."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + 2 * math.prod(tensor.shape)
        header[hf_name(tensor.name)] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, tensor in enumerate(tensors, 1):
            values = tensor.read(data)
            if not np.isfinite(values).all():
                raise ModelProblem(f"{tensor.name} holds numbers that are not finite.")
            count = heads.get(tensor.name.split(".")[-2])
            file.write(to_bfloat16(_rotary_halves(values, count) if count else values).tobytes())
            print(f"{number / len(tensors):.3f}", flush=True)
        file.flush()
        os.fsync(file.fileno())


def _rotary_halves(values: Floats, heads: int) -> Floats:
    """Rows of q or k in transformers' order (a head's first halves, then its second ones).

    GGUF has the two rows that are rotated together side by side.
    """
    pairs = values.reshape(heads, -1, 2, values.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def convert(source: Path, folder: Path) -> None:
    """Make `folder` of the GGUF file `source`, unless it is there. It appears at once, complete.

    Whoever comes second waits for the first; what a killed conversion left behind is removed by the next.

    Raises:
        ModelProblem: the file cannot be converted; says why.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it when we end, however we end
        if folder.exists():
            return
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        data = np.memmap(source, np.uint8, "r")
        metadata, tensors = read_gguf(data)
        for name, text in folder_files(metadata, {tensor.name: tensor.shape for tensor in tensors}).items():
            (partial / name).write_text(text, encoding="utf-8")
        heads = {"attn_q": metadata["llama.attention.head_count"], "attn_k": metadata["llama.attention.head_count_kv"]}
        write_weights(partial / "model.safetensors", tensors, data, heads)
        os.rename(partial, folder)


def main(arguments: list[str]) -> None:
    source, folder = map(Path, arguments)
    try:
        convert(source, folder)
    except (LodgerError, OSError) as error:
        sys.exit(f"{source.name} cannot be converted. {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
