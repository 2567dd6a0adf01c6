"""Reads the tensors of a pickle and nothing else, in a process of its own (`lodger.hub.convert`).

A pickle is a program. torch's weights-only loader runs none of it but the making of tensors; what it refuses is an
error here that names the file and what it asked for. The format is torch.save's: a zip of uncompressed storages, which
are mapped and not read, or before torch 1.6 a row of pickles.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

from lodger.catalogue.folder_files import AGAIN, LFS_POINTER, open_file
from lodger.catalogue.safetensors_header import DTYPES
from lodger.errors import DamagedWeights, ModelProblem
from lodger.hub.verify import CHUNK

NAMES: dict[torch.dtype, str] = {getattr(torch, name): code for code, (name, _) in DTYPES.items()}
# What zipfile raises about damaged archives; OSError and OverflowError where an offset leads out of the file.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, OverflowError, RuntimeError,
           ValueError)  # fmt: skip
_ASKED = re.compile(r"GLOBAL (\S+)")
# What torch raises about files that are damaged, or made to do harm: it has no error of its own for them.
_REFUSALS = (pickle.UnpicklingError, ArithmeticError, AssertionError, AttributeError, EOFError, LookupError,
             MemoryError, OSError, RuntimeError, TypeError, ValueError, struct.error)  # fmt: skip


def read_pickle(path: Path, advance: Callable[[int], None]) -> dict[str, torch.Tensor]:
    """The tensors of a state dict by name, as views of the file, which has to stay as it is.

    Args:
        advance: told the bytes that were checked since the last call.

    Raises:
        ModelProblem: it asks for code, or holds something else than named tensors.
        DamagedWeights: it is cut short, or its bytes are not those that were saved.
    """
    mapped = _is_zip(path)
    if mapped:
        _check_sums(path, advance)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if type(state).__name__ not in ("dict", "OrderedDict") or not state:
            raise ModelProblem(f"{path.name} holds a {type(state).__name__[:40]}, not named tensors.", hint=_SAVE)
        for name, value in state.items():
            _check_tensor(path, name, value)
        return {name: tensor.detach() for name, tensor in state.items()}
    except _REFUSALS as error:
        raise _refusal(path, error) from None


_SAVE = "Weights are what torch.save writes of a model's state_dict()."


def _is_zip(path: Path) -> bool:
    with open_file(path.parent, path.name, DamagedWeights) as file:
        first = file.read(len(LFS_POINTER))
    if not first:
        raise DamagedWeights(f"{path.name} is empty.", hint=AGAIN)
    if first == LFS_POINTER:
        raise DamagedWeights(f"{path.name} is a Git LFS pointer, not the weights.", hint=AGAIN)
    return first.startswith(b"PK")


def _check_sums(path: Path, advance: Callable[[int], None]) -> None:
    """Of every entry, which torch does not look at. A file that was saved without them has zeros there."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ModelProblem(f"{path.name} is a compressed archive, which torch.save never writes.", hint=_SAVE)
            for entry in entries if any(entry.CRC for entry in entries) else ():
                with archive.open(entry) as file:
                    while chunk := file.read(CHUNK):
                        advance(len(chunk))
    except _DAMAGE as error:
        raise DamagedWeights(f"{path.name} is damaged or cut short: {str(error)[:200]}.", hint=AGAIN) from None


def _check_tensor(path: Path, name: object, value: object) -> None:
    if not isinstance(name, str) or name == "__metadata__" or not isinstance(value, torch.Tensor):
        what = f"{str(name)[:100]!r} is a {type(value).__name__[:40]}"
        raise ModelProblem(f"{path.name} holds more than named tensors: {what}.", hint=_SAVE)
    plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_nested
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or not plain or value.dtype not in NAMES:
        raise ModelProblem(f"{path.name}: {name[:100]!r} is of a kind ({value.dtype}) that is not served.", hint=_SAVE)
    if value.nbytes > path.stat().st_size:  # a view can repeat one number a billion times
        raise ModelProblem(f"{path.name}: {name[:100]!r} would have {value.nbytes:,} bytes, more than its file.")


def _refusal(path: Path, error: BaseException) -> ModelProblem:
    said = str(error)
    asked = _ASKED.search(said)
    if asked:
        return ModelProblem(
            f"{path.name} asks for {asked[1][:100]!r} when it is read. That is code, not weights; none of it was run.",
            hint="Fetch the model from its publisher. " + _SAVE,
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    # The weights-only loader wraps what it says into advice to load the file without it.
    told = next((line for line in lines if not line.startswith(_ADVICE)), type(error).__name__)
    return DamagedWeights(f"{path.name} is not a whole file of weights: {told[:200]}", hint=AGAIN)


_ADVICE = ("Weights only load failed", "Please file an issue", "(1)", "(2)", "Check the documentation")
