"""How much a model folder stores, in whichever format its weights are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from lodger.catalogue import int4, pytorch_files
from lodger.catalogue.config_files import Fields
from lodger.catalogue.facts import Int4Weights, WeightsFormat
from lodger.catalogue.safetensors_header import DTYPES, StoredTensor, read_folder, read_header
from lodger.errors import FolderWithoutWeights, ModelProblem

Counted = Callable[[str], bool]  # whether a tensor of this name is served
_ITEMSIZE = {name: size for name, size in DTYPES.values() if "float" in name}


class Weights(NamedTuple):
    """Whole numbers are buffers (position ids), not parameters, where the format tells them apart."""

    parameters: int
    stored: dict[str, int]  # dtype -> bytes
    format: WeightsFormat
    int4: Int4Weights | None = None


def weigh(
    folder: Path, config: Fields, heads: Iterable[Path], counted: Counted, packing: Int4Weights | None = None
) -> Weights:
    """Parameters and bytes by dtype of the model in `folder` and of its `heads`; "pytorch" if any of it still is.

    safetensors win where both are there. Storages in PyTorch's format do not say their dtype: config.json does, and it
    is float32 where it does not.

    Args:
        packing: how quantised matrices are stored.

    Raises:
        FolderWithoutWeights, DamagedWeights.
        ModelProblem: weights in a format that is not read.
    """
    dtype = _dtype(config)
    stored: dict[str, int] = {}
    files = list(heads)
    pytorch = [file for file in files if file.suffix != ".safetensors"]
    try:
        tensors = list(read_folder(folder).values())
    except FolderWithoutWeights:
        tensors = []
        whole = pytorch_files.checkpoint_files(folder)
        if not whole:
            raise
        pytorch += whole
    tensors += [tensor for file in files if file.suffix == ".safetensors" for tensor in read_header(file)]
    if packing is not None:
        packing, tensors, stored["int4"] = _packed(folder, packing, tensors)
    for tensor in tensors:
        if tensor.dtype in _ITEMSIZE and counted(tensor.name):
            stored[tensor.dtype] = stored.get(tensor.dtype, 0) + tensor.size
    for file in pytorch:
        stored[dtype] = stored.get(dtype, 0) + pytorch_files.storage_bytes(file)
    parameters = sum(size // _ITEMSIZE[name] for name, size in stored.items() if name in _ITEMSIZE)
    parameters += packing.parameters if packing else 0
    return Weights(parameters, stored, "pytorch" if pytorch else "safetensors", packing)


def _packed(folder: Path, packing: Int4Weights, tensors: list[StoredTensor]) -> int4.Counted:
    if not tensors:
        raise ModelProblem(f"{folder.name} holds quantised weights as pickles, which are not served.")
    return int4.count(packing, tensors)


def _dtype(config: Fields) -> str:
    """`torch_dtype`, which transformers 5 spells `dtype`."""
    named = config.values.get("torch_dtype") or config.values.get("dtype")
    name = named.removeprefix("torch.") if isinstance(named, str) else ""
    return name if name in _ITEMSIZE else "float32"
