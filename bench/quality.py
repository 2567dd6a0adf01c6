"""What a precision costs in quality: perplexity of texts, on any machine.

    python -m bench.quality FOLDER [--text FILE ...] [--out FILE]

transformers computes it, with weights that were quantised by the runtime's own function and made float32 again. So it
is the rounding of weights that is measured, not a kernel; the kernels' own tests compare them with float64.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, pad

from bench.hardware import describe
from lodger.catalogue.inspect import inspect_folder
from lodger.runtime.int4_stored import take
from lodger.runtime.quantised import quantise
from lodger.runtime.weights import Checkpoint

DATA = Path(__file__).parent / "data"
GROUP = 128  # columns
WINDOW, STRIDE = 512, 256  # tokens that the model sees, and of them those that count


def load(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)


def int8(folder: Path) -> Any:
    """float32 with the layers' matrices rounded to one byte; the output projection stays, as it does in the runtime."""
    model = load(folder, torch.float32)
    round_to_int8(model.model.layers)
    return model


def round_to_int8(layers: torch.nn.Module) -> None:
    """Give every matrix in `layers` the numbers that the runtime would compute with."""
    for module in layers.modules():
        if isinstance(module, torch.nn.Linear):
            values, scales = quantise([module.weight.data], torch.device("cpu"))
            module.weight.data = values.float() * scales[:, None]


def rounded_int4(folder: Path) -> Any:
    """float32 with the layers' matrices rounded to the nearest of 16 numbers, in groups of 128 columns: what four bits
    cost without a method that looks at what a matrix multiplies."""
    model = load(folder, torch.float32)
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            rows, columns = module.weight.shape
            groups = pad(module.weight.data, (0, -columns % GROUP)).view(rows, -1, GROUP)
            low, high = groups.amin(-1, keepdim=True).clamp_max(0), groups.amax(-1, keepdim=True).clamp_min(0)
            scale = ((high - low) / 15).clamp_min(1e-6).half().float()
            zero = (-low / scale).round().clamp(0, 15)
            meant = (((groups / scale).round() + zero).clamp(0, 15) - zero) * scale
            module.weight.data = meant.view(rows, -1)[:, :columns].contiguous()
    return model


def int4(folder: Path) -> Any:
    """A quantised checkpoint in float32, with the numbers that its matrices mean."""
    from transformers import AutoConfig, AutoModelForCausalLM

    packing = inspect_folder(folder).int4
    assert packing is not None
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = Checkpoint(folder, packing).tensors
    stems = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    matrices = {f"{stem}.weight": take(tensors, stem, packing).dense() for stem in stems}
    missing = model.load_state_dict(tensors | matrices, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    return model


PRECISIONS: dict[str, Callable[[Path], Any]] = {
    "float32": lambda folder: load(folder, torch.float32),
    "bfloat16": lambda folder: load(folder, torch.bfloat16),
    "int8": int8,
    "int4 rounded": rounded_int4,
}
QUANTISED: dict[str, Callable[[Path], Any]] = {"int4": int4}  # of a folder whose matrices are in four bits


@torch.inference_mode()
def losses(model: Any, tokens: list[int]) -> torch.Tensor:
    """Nats of each token but the first, given at least WINDOW - STRIDE before it where there are so many. [N - 1]."""
    found = []
    for start in range(0, max(len(tokens) - 1 - (WINDOW - STRIDE), 1), STRIDE):
        part = torch.tensor(tokens[start : start + WINDOW + 1])
        logits = model(part[None, :-1]).logits[0].float()
        nats = cross_entropy(logits, part[1:], reduction="none")
        found.append(nats if start == 0 else nats[WINDOW - STRIDE :])
    return torch.cat(found)


def measure(folder: Path, texts: list[Path]) -> dict[str, Any]:
    from lodger.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(str(folder))
    tokens = {text.name: tokenizer.encode(text.read_text(encoding="utf-8"), special=True) for text in texts}
    result: dict[str, Any] = {"model": folder.name, "hardware": describe(), "texts": {}}
    for text, ids in tokens.items():
        result["texts"][text] = {"tokens": len(ids), "perplexity": {}}
    precisions = QUANTISED if inspect_folder(folder).int4 else PRECISIONS
    for name, make in precisions.items():
        model = make(folder)
        for text, ids in tokens.items():
            result["texts"][text]["perplexity"][name] = value = math.exp(losses(model, ids).mean())
            print(f"{text:20} {len(ids):6,} tokens  {name:12} {value:8.3f}", flush=True)
        del model
    return result


def command(about: str | None, measure: Callable[[Path, list[Path]], dict[str, Any]]) -> None:
    """The command line of whatever measures a folder on texts."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, action="append", help="[those in bench/data]")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result = measure(args.folder, args.text or sorted(DATA.glob("*.txt")))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    command(__doc__, measure)
