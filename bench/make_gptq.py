"""A GPTQ checkpoint of a small model, to show what four bits cost where nobody has published one.

    python -m bench.make_gptq FOLDER OUT [--group 128]

GPTQ (arXiv 2210.17323), layer by layer on a CPU: the columns of a matrix are rounded one after the other, and what each
rounding is off by is taken out of the columns still to come, by the inverse of the second moments of the inputs. These
are measured on texts that the model itself writes, drawn with a fixed seed. The result is in AutoGPTQ's layout,
asymmetric, with "gptq_v2" zero points; `lodger` serves it, and `bench.quality` measures it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.quality import WINDOW, load

INPUTS = {"q_proj": ("q_proj", "k_proj", "v_proj"), "o_proj": ("o_proj",), "gate_proj": ("gate_proj", "up_proj"),
          "down_proj": ("down_proj",)}  # fmt: skip
DAMPED = 0.01  # of the mean diagonal is added to it, as the paper does
_LEVELS = 15
_WINDOWS = 32  # that are measured


@torch.inference_mode()
def own_texts(model: Any) -> list[torch.Tensor]:
    """Windows of tokens, [1, WINDOW] each, that the model draws after its first token."""
    torch.manual_seed(0)
    first = torch.full((_WINDOWS, 1), model.config.bos_token_id)
    options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "repetition_penalty": 1.0}
    made = model.generate(
        first, attention_mask=torch.ones_like(first), min_new_tokens=WINDOW - 1, max_new_tokens=WINDOW - 1, **options
    )
    return list(made.split(1))


@contextmanager
def moments(linear: torch.nn.Linear) -> Iterator[torch.Tensor]:
    """Is filled with the sum of x x^T over the inputs of `linear` meanwhile. [columns, columns]."""
    total = torch.zeros(linear.in_features, linear.in_features)

    def add(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = inputs[0].flatten(0, -2)
        total.addmm_(rows.T, rows)

    handle = linear.register_forward_pre_hook(add)
    try:
        yield total
    finally:
        handle.remove()


def rounded(weight: torch.Tensor, seen: torch.Tensor, group: int) -> dict[str, torch.Tensor]:
    """`weight` [rows, columns] becomes what its numbers mean; these are returned, as AutoGPTQ stores them."""
    rows, columns = weight.shape
    order = inverse_root(seen)
    values = torch.empty(columns, rows, dtype=torch.int32)
    scales, zeros = [], []
    for column in range(columns):
        if column % group == 0:
            own = weight[:, column : column + group]
            low, high = own.amin(dim=1).clamp_max(0), own.amax(dim=1).clamp_min(0)
            scale = ((high - low) / _LEVELS).clamp_min(1e-6).half().float()
            zero = (-low / scale).round().clamp(0, _LEVELS)
            scales.append(scale)
            zeros.append(zero)
        number = ((weight[:, column] / scale).round() + zero).clamp(0, _LEVELS)
        values[column] = number.int()
        meant = (number - zero) * scale
        off = (weight[:, column] - meant) / order[column, column]
        weight[:, column] = meant
        weight[:, column + 1 :] -= off[:, None] * order[column, column + 1 :]
    return {
        "qweight": packed(values.T).T.contiguous(),
        "qzeros": packed(torch.stack(zeros).int()),
        "scales": torch.stack(scales).half(),
        "g_idx": (torch.arange(columns) // group).int(),
    }


def inverse_root(seen: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the damped second moments."""
    whole = seen.double()
    whole.diagonal().add_(DAMPED * whole.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(whole))
    return torch.linalg.cholesky(inverse, upper=True).float()


def packed(values: torch.Tensor) -> torch.Tensor:
    """int32 [n, m] of 0 to 15 -> int32 [n, m / 8], in order from the lowest bits on."""
    words = torch.zeros(len(values), values.shape[1] // 8, dtype=torch.int32)
    for place in range(8):
        words |= values[:, place::8] << (4 * place)
    return words


@torch.inference_mode()
def quantise(model: Any, windows: list[torch.Tensor], group: int) -> dict[str, torch.Tensor]:
    """The layers' matrices by name, each measured behind layers that are quantised already."""
    base, found = model.model, {}
    hidden = [base.embed_tokens(window) for window in windows]
    places = torch.arange(WINDOW)[None]
    for number, layer in enumerate(base.layers):
        linears = {name.rpartition(".")[2]: (name, linear) for name, linear in layer.named_modules()}

        def step(x: torch.Tensor, layer: Any = layer) -> torch.Tensor:
            out = layer(x, attention_mask=None, position_embeddings=base.rotary_emb(x, places))
            return out[0] if isinstance(out, tuple) else out

        with ExitStack() as stack:
            seen = {leaf: stack.enter_context(moments(linears[leaf][1])) for leaf in INPUTS}
            for x in hidden:
                step(x)
        for first, leaves in INPUTS.items():
            for name, linear in map(linears.__getitem__, leaves):
                parts = rounded(linear.weight.data, seen[first], group)
                found |= {f"model.layers.{number}.{name}.{part}": own for part, own in parts.items()}
        hidden = [step(x) for x in hidden]
        print(f"layer {number + 1} of {len(base.layers)}", flush=True)
    return found


def write(folder: Path, out: Path, model: Any, found: dict[str, torch.Tensor], group: int) -> None:
    from safetensors.torch import save_file

    others = {name: own.half() for name, own in model.state_dict().items() if f"{name[:-7]}.qweight" not in found}
    if model.config.tie_word_embeddings:
        others.pop("lm_head.weight", None)
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors*", "*.bin*", ".*"))
    save_file(others | found, out / "model.safetensors", metadata={"format": "pt"})
    said = {"bits": 4, "checkpoint_format": "gptq_v2", "desc_act": False, "group_size": group, "quant_method": "gptq",
            "sym": False}  # fmt: skip
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": said, "torch_dtype": "float16"}
    (out / "config.json").write_text(json.dumps(config, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--group", type=int, default=128)
    args = parser.parse_args()
    model = load(args.folder, torch.float32)
    write(args.folder, args.out, model, quantise(model, own_texts(model), args.group), args.group)


if __name__ == "__main__":
    main()
