"""Checkpoints whose matrices are stored in four bits: which kinds are served, and what they hold, from headers alone.

Both kinds keep three tensors in place of a matrix [rows, columns], int32 of eight numbers each but for the scales:

- AWQ, AutoAWQ's "gemm" layout: qweight [columns, rows / 8], from the lowest bits on rows 0, 2, 4, 6, 1, 3, 5, 7;
  qzeros [groups, rows / 8] likewise; scales [groups, rows].
- GPTQ, AutoGPTQ's layout: qweight [columns / 8, rows], columns in order; qzeros [groups, rows / 8], rows in order, each
  less one unless the format is "gptq_v2"; scales [groups, rows]; g_idx [columns], the group of each.

A number means (number - zero) * scale, of its group of columns and its row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from lodger.catalogue.config_files import Fields
from lodger.catalogue.facts import Int4Weights
from lodger.catalogue.folder_files import AGAIN
from lodger.catalogue.safetensors_header import StoredTensor
from lodger.errors import DamagedWeights, ModelProblem

BLOCK = 128  # columns that the runtime packs together, and the widest group that it knows: wider ones become several
PARTS = ("qweight", "qzeros", "scales", "g_idx")
GROUPS = (32, 64, 128)
_WORD = 8  # numbers in an int32
_LAYOUTS = {"awq": ("gemm",), "gptq": ("gptq", "gptq_v2")}  # the first is what a file means that does not say
_SCALES = ("float16", "bfloat16", "float32")
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # that the runtime makes one product of
_INSTEAD = "Served are AWQ (gemm) and GPTQ of 4 bits. Use such a folder, or the same model in bfloat16."


def read_packing(name: str, config: Fields) -> Int4Weights | None:
    """How the folder `name` stores its matrices, by its config.json; None where they are ordinary ones.

    What they take is not counted yet.

    Raises:
        ModelProblem: in a way that is not served.
    """
    if "quantization_config" not in config:
        return None
    said = Fields("config.json's quantization_config", config.object("quantization_config"))
    method = str(said.values.get("quant_method", "")).lower()[:40]
    if method not in _LAYOUTS:
        raise _unserved(name, f"quantised by {method!r}")
    asked = said.values.get("version" if method == "awq" else "checkpoint_format") or said.values.get("format")
    layout = str(asked or _LAYOUTS[method][0]).lower()[:40]
    if layout not in _LAYOUTS[method]:
        raise _unserved(name, f"in {method}'s layout {layout!r}")
    bits, group = _number(said, "bits", "w_bit"), _number(said, "group_size", "q_group_size")
    if bits != 4:
        raise _unserved(name, f"of {bits} bits")
    if group != -1 and group not in GROUPS and (group < 1 or group % BLOCK):
        raise _unserved(name, f"in groups of {group} columns")
    _refuse_variants(name, method, said)
    return Int4Weights(
        method="awq" if method == "awq" else "gptq",
        group=max(group, 0),
        symmetric=method == "gptq" and said.flag("sym", default=True),
        zeros_less_one=layout == "gptq",
    )


def _refuse_variants(name: str, method: str, said: Fields) -> None:
    if said.values.get("dynamic"):
        raise _unserved(name, "with other settings for some of its layers (dynamic)")
    if said.flag("lm_head"):
        raise _unserved(name, "with the output projection among them (lm_head)")
    if said.values.get("pack_dtype") not in (None, "int32"):
        raise _unserved(name, f"packed into {str(said.values['pack_dtype'])[:20]!r}")
    if said.flag("is_marlin_format"):
        raise _unserved(name, f"in {method}'s layout 'marlin'")
    if method == "awq" and not said.flag("zero_point", default=True):
        raise _unserved(name, "by AWQ without zero points")


def _number(said: Fields, *names: str) -> int:
    name = next((name for name in names if name in said), names[0])
    value = said.values.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise said.problem(name, "a whole number")
    return value


def _unserved(name: str, how: str) -> ModelProblem:
    return ModelProblem(f"{name} holds weights {how}, which are not served.", hint=_INSTEAD)


class Counted(NamedTuple):
    """A folder's tensors, once its packed matrices are taken together."""

    packed: Int4Weights
    others: list[StoredTensor]
    stored: int  # bytes of the packed matrices in the files


def count(packing: Int4Weights, tensors: Iterable[StoredTensor]) -> Counted:
    """
    Raises:
        DamagedWeights: parts of a matrix are missing or do not fit each other.
        ModelProblem: some of the matrices are stored otherwise, in a way that is not served.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    stems = [name.removesuffix(".qweight") for name in by_name if name.endswith(".qweight")]
    if not stems:
        raise DamagedWeights("config.json says that matrices are quantised, and the files hold none.", hint=AGAIN)
    _check_together(set(stems))
    shapes = [_shape(packing, stem, by_name) for stem in stems]
    packed = [tensor for stem in stems for part in PARTS if (tensor := by_name.pop(f"{stem}.{part}", None))]
    whole = msgspec.structs.replace(
        packing,
        parameters=sum(rows * columns for rows, columns in shapes),
        resident=sum(resident_bytes(rows, columns, packing.group) for rows, columns in shapes),
    )
    return Counted(whole, list(by_name.values()), sum(tensor.size for tensor in packed))


def resident_bytes(rows: int, columns: int, group: int) -> int:
    """Bytes of a matrix as the runtime holds it on a GPU: blocks of BLOCK columns in half a byte for each number, and
    four bytes for scale and zero point of each group (`lodger.runtime.int4`)."""
    blocks = -(-columns // BLOCK)
    return rows * blocks * (BLOCK // 2 + 4 * groups_in_block(group))


def groups_in_block(group: int) -> int:
    """1 for groups as wide as a block or wider, which are cut."""
    return BLOCK // group if group in GROUPS else 1


def _check_together(stems: set[str]) -> None:
    for stem in stems:
        owner, _, leaf = stem.rpartition(".")
        parts = next((parts for parts in _TOGETHER if leaf in parts), ())
        plain = next((part for part in parts if f"{owner}.{part}" not in stems), None)
        if plain is not None:
            raise ModelProblem(f"{owner}.{plain} is not quantised and {leaf} beside it is, which is not served.")
    if "lm_head" in stems:
        raise ModelProblem("The output projection is quantised (lm_head.qweight), which is not served.", hint=_INSTEAD)


def _shape(packing: Int4Weights, stem: str, tensors: dict[str, StoredTensor]) -> tuple[int, int]:
    """[rows, columns] of one matrix, whose parts fit each other."""
    words, zeros, scales = (tensors.get(f"{stem}.{part}") for part in PARTS[:3])
    if words is None or zeros is None or scales is None:
        raise DamagedWeights(f"{stem[:100]} lacks qzeros or scales beside its qweight.", hint=AGAIN)
    if len(words.shape) != 2:
        raise _misfit(stem, "qweight", words.shape, "two dimensions")
    first, second = words.shape
    rows, columns = (second * _WORD, first) if packing.method == "awq" else (second, first * _WORD)
    groups = -(-columns // packing.group) if packing.group else 1
    expected: dict[str, tuple[StoredTensor, tuple[int, ...], tuple[str, ...]]] = {
        "qweight": (words, words.shape, ("int32",)),
        "qzeros": (zeros, (groups, rows // _WORD), ("int32",)),
        "scales": (scales, (groups, rows), _SCALES),
    }
    if order := tensors.get(f"{stem}.g_idx"):
        expected["g_idx"] = order, (columns,), ("int32",)
    for part, (found, shape, dtypes) in expected.items():
        if found.shape != shape or found.dtype not in dtypes:
            raise _misfit(stem, part, (*found.shape, found.dtype), f"{list(shape)} of {' or '.join(dtypes)}")
    if not rows or not columns or rows % _WORD:
        raise _misfit(stem, "qweight", words.shape, "rows in eights")
    return rows, columns


def _misfit(stem: str, part: str, found: tuple[Any, ...], expected: str) -> DamagedWeights:
    return DamagedWeights(f"{stem[:100]}.{part} is {list(found)}, expected {expected}.", hint=AGAIN)
