"""Small models quantised to four bits, in the forms that AutoAWQ, AutoGPTQ and GPTQModel publish.

Written from those forms' definition, number by number, and so slowly: the code under test packs and unpacks otherwise.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Tensors = dict[str, np.ndarray]
_DTYPES = {"float32": "F32", "float16": "F16", "int32": "I32"}


class Form(NamedTuple):
    """A published form."""

    method: str = "awq"
    group: int = 32  # -1: a row is one
    symmetric: bool = False
    layout: str = ""  # of GPTQ: "gptq" or "gptq_v2"; what config.json says
    zeros_less_one: bool | None = None  # None: as the layout says
    g_idx: bool = True  # of GPTQ


FORMS = {
    "awq": Form("awq"),
    "awq-64": Form("awq", 64),
    "awq-row": Form("awq", -1),
    "gptq": Form("gptq", 32, True, "gptq"),
    "gptq-asymmetric": Form("gptq", 32, False, "gptq"),
    "gptq-v2": Form("gptq", 64, False, "gptq_v2", g_idx=False),
    "gptq-row": Form("gptq", -1, True, "gptq"),
    "gptq-wide": Form("gptq", 128, False, "gptq"),  # wider than some of a tiny model's matrices
    "gptq-mislabelled": Form("gptq", 32, True, "gptq", zeros_less_one=False),
}


class Matrix(NamedTuple):
    """Its numbers, and what they mean: float32 [rows, columns]."""

    values: np.ndarray  # [rows, columns] of 0 to 15
    zeros: np.ndarray  # [groups, rows]
    scales: np.ndarray  # float16 [groups, rows]
    group: int

    @property
    def dense(self) -> np.ndarray:
        group = np.arange(self.values.shape[1]) // self.group
        meant = (self.values - self.zeros.T[:, group]).astype(np.float32) * self.scales.T[:, group].astype(np.float32)
        return np.ascontiguousarray(meant)


def random_matrix(rows: int, columns: int, form: Form, seed: int = 0, spread: float = 0.02) -> Matrix:
    rng = np.random.default_rng(seed)
    group = columns if form.group == -1 else form.group
    groups = -(-columns // group)
    zeros = np.full((groups, rows), 8) if form.symmetric else rng.integers(1, 16, (groups, rows))
    scales = (spread * (0.5 + rng.random((groups, rows)))).astype(np.float16)
    return Matrix(rng.integers(0, 16, (rows, columns)), zeros, scales, group)


def pack_matrix(matrix: Matrix, form: Form) -> Tensors:
    """The tensors that stand for one, by the last part of their names."""
    less = form.zeros_less_one
    less = form.layout == "gptq" if less is None else less
    if form.method == "awq":
        words = _packed(matrix.values.T, AWQ_ORDER)
        return {"qweight": words, "qzeros": _packed(matrix.zeros, AWQ_ORDER), "scales": matrix.scales}
    packed = {
        "qweight": np.ascontiguousarray(_packed(matrix.values, range(8)).T),
        "qzeros": _packed(matrix.zeros - (1 if less else 0), range(8)),
        "scales": matrix.scales,
    }
    if form.g_idx:
        packed["g_idx"] = (np.arange(matrix.values.shape[1]) // matrix.group).astype(np.int32)
    return packed


def _packed(numbers: np.ndarray, order: Any) -> np.ndarray:
    """Each row's numbers eight to an int32: the nth four bits hold the number order[n] of eight."""
    words = np.zeros((len(numbers), numbers.shape[1] // 8), np.uint32)
    for place, number in enumerate(order):
        words |= (numbers[:, number::8].astype(np.uint32) & 15) << np.uint32(4 * place)
    return words.view(np.int32)


def quantised(folder: Path, to: Path, form: Form, **said: Any) -> Path:
    """A tiny decoder's folder again, its layers' matrices in four bits, and beside it, as `<to>-dense`, the same
    numbers as float32. `said` goes into quantization_config."""
    stored = read_tensors(folder / "model.safetensors")
    packed: Tensors = {}
    dense: Tensors = {}
    for seed, (name, tensor) in enumerate(stored.items()):
        if not name.endswith("_proj.weight"):
            packed[name] = dense[name] = tensor
            continue
        matrix = random_matrix(*tensor.shape, form, seed)
        dense[name] = matrix.dense
        packed |= {name.removesuffix("weight") + part: own for part, own in pack_matrix(matrix, form).items()}
    config = json.loads((folder / "config.json").read_text())
    for path, tensors, more in (
        (to, packed, {"quantization_config": quantization_config(form) | said}),
        (dense_folder(to), dense, {}),
    ):
        shutil.copytree(folder, path)
        write_tensors(path / "model.safetensors", tensors)
        (path / "config.json").write_text(json.dumps(config | more))
    return to


def dense_folder(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-dense")


def quantization_config(form: Form) -> dict[str, Any]:
    if form.method == "awq":
        return {"bits": 4, "group_size": form.group, "modules_to_not_convert": None, "quant_method": "awq",
                "version": "gemm", "zero_point": True}  # fmt: skip
    return {"bits": 4, "checkpoint_format": form.layout, "damp_percent": 0.01, "desc_act": False, "dynamic": None,
            "group_size": form.group, "lm_head": False, "meta": {"quantizer": ["gptqmodel:2.2.0"]},
            "pack_dtype": "int32", "quant_method": "gptq", "static_groups": False, "sym": form.symmetric,
            "true_sequential": True}  # fmt: skip


def read_tensors(path: Path) -> Tensors:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    numpy = {name: np.dtype(dtype) for dtype, name in _DTYPES.items()}
    found: Tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        own = data[8 + length + start : 8 + length + end]
        found[name] = np.frombuffer(own, numpy[entry["dtype"]]).reshape(entry["shape"]).copy()
    return found


def write_tensors(path: Path, tensors: Tensors) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).tobytes())
