"""A folder's tensors, mapped into memory and not read until something is made of them."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lodger.catalogue.facts import Int4Weights
from lodger.catalogue.int4 import PARTS
from lodger.catalogue.safetensors_header import StoredTensor, read_folder, read_header
from lodger.errors import DamagedWeights
from lodger.runtime.int4_stored import StoredInt4, StoredInt4Linear, take
from lodger.runtime.stored_names import as_parameters

# Tensors that published checkpoints hold and that no forward here uses: buffers, and heads of other tasks.
_UNUSED = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias)$|(^|\.)pooler\.|^(lm_head|cls|classifier)\."
)
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def read_file(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of one safetensors file by name, as `Checkpoint` has them.

    Raises:
        DamagedWeights.
    """
    stored = read_header(path)
    file = _map(path)
    return {tensor.name: _view(file, tensor) for tensor in stored}


class Checkpoint:
    """Every tensor of a folder by name, in its stored dtype, as a view of the file.

    Nothing is read and no memory is held until a view is used; dropping the checkpoint unmaps the files.

    Args:
        packing: how its quantised matrices are stored, if it has any.

    Raises:
        FolderWithoutWeights, DamagedWeights.
    """

    def __init__(self, folder: Path, packing: Int4Weights | None = None) -> None:
        self._packing = packing
        stored = read_folder(folder)
        files = {name: _map(folder / name) for name in {tensor.file for tensor in stored.values()}}
        self.tensors = {_modern(name): _view(files[tensor.file], tensor) for name, tensor in stored.items()}

    def fill(self, model: PreTrainedModel) -> None:
        """Make every parameter of `model` the view of its tensor, and compute its buffers.

        A linear layer whose matrix is quantised becomes a `StoredInt4Linear`.

        An output projection beside the base model (`lm_head.weight`) stays in `tensors`, for whoever wants it.

        Raises:
            DamagedWeights: names tensors that are missing, of another shape, or that belong to no part of the model.
        ModelProblem: a quantised matrix in a form that is not served.
        """
        parameters = dict(model.named_parameters())
        tensors = as_parameters(self.tensors, model.config.model_type)
        left = set(tensors)
        missing = []
        for name, parameter in parameters.items():
            found = next((key for key in _spellings(name, model.base_model_prefix) if key in tensors), None)
            if found is None and self._packing and (stem := _packed_stem(name, model.base_model_prefix, tensors)):
                left -= {f"{stem}.{part}" for part in PARTS}
                left -= {key for key in (f"{stem}.bias",) if key in left and not tensors[key].any()}  # as GPTQ pads
                _assign_packed(model, name, parameter, take(tensors, stem, self._packing))
                continue
            if found is None:
                missing.append(name)
                continue
            left.discard(found)
            _check_shape(found, tensors[found], parameter)
            _assign(model, name, tensors[found])
        unexpected = sorted(key for key in left if not _UNUSED.search(key))
        if missing or unexpected:
            raise _mismatch(model, missing, unexpected)
        _compute_buffers(model)


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:  # copy on write: torch wants a writable buffer, and nobody writes
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _view(file: mmap.mmap, tensor: StoredTensor) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, tensor.dtype)
    if not tensor.elements:
        return torch.empty(tensor.shape, dtype=dtype)
    return torch.frombuffer(file, dtype=dtype, count=tensor.elements, offset=tensor.offset).view(tensor.shape)


def _modern(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return name


def _spellings(name: str, prefix: str) -> tuple[str, ...]:
    """A parameter's name in checkpoints saved from the same class, from one around it, and from one inside of it."""
    return name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")


def _packed_stem(name: str, prefix: str, tensors: dict[str, torch.Tensor]) -> str | None:
    """Under which name the weight `name` is there as a quantised matrix."""
    stems = (spelled.removesuffix(".weight") for spelled in _spellings(name, prefix) if spelled.endswith(".weight"))
    return next((stem for stem in stems if f"{stem}.qweight" in tensors), None)


def _assign_packed(model: PreTrainedModel, name: str, parameter: torch.nn.Parameter, weight: StoredInt4) -> None:
    if weight.shape != parameter.shape:
        raise _misshapen(name, f"{list(weight.shape)} in four bits", parameter)
    path = name.removesuffix(".weight")
    owner, _, leaf = path.rpartition(".")
    bias = dict(model.get_submodule(path).named_parameters()).get("bias")
    setattr(model.get_submodule(owner), leaf, StoredInt4Linear(weight, bias))


def _check_shape(name: str, tensor: torch.Tensor, parameter: torch.Tensor) -> None:
    if tensor.shape != parameter.shape or not tensor.is_floating_point():
        raise _misshapen(name, f"{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}", parameter)


def _misshapen(name: str, found: str, parameter: torch.Tensor) -> DamagedWeights:
    return DamagedWeights(
        f"the tensor {name!r} has the shape {found}, config.json asks for {list(parameter.shape)} of floats.",
        hint="The weights and config.json belong to different models; fetch the folder again.",
    )


def _assign(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(tensor, requires_grad=False))


def _compute_buffers(model: PreTrainedModel) -> None:
    """Buffers that no checkpoint holds (rotary frequencies, position ids), as transformers' own initialisation does."""
    for module in model.modules():
        buffers = dict(module.named_buffers(recurse=False))
        for name, buffer in buffers.items():
            setattr(module, name, torch.zeros_like(buffer, device="cpu"))
        if buffers:
            model._init_weights(module)  # type: ignore[no-untyped-call]


def _mismatch(model: PreTrainedModel, missing: list[str], unexpected: list[str]) -> DamagedWeights:
    parts = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    return DamagedWeights(
        f"the weights do not match {type(model).__name__}: {' and '.join(parts)}.",
        hint="Fetch the model's files again.",
    )
