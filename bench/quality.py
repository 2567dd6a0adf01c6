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
from torch.nn.functional import cross_entropy

from bench.hardware import describe
from lodger.runtime.quantised import quantise

DATA = Path(__file__).parent / "data"
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


PRECISIONS: dict[str, Callable[[Path], Any]] = {
    "float32": lambda folder: load(folder, torch.float32),
    "bfloat16": lambda folder: load(folder, torch.bfloat16),
    "int8": int8,
}


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
    for name, make in PRECISIONS.items():
        model = make(folder)
        for text, ids in tokens.items():
            result["texts"][text]["perplexity"][name] = value = math.exp(losses(model, ids).mean())
            print(f"{text:20} {len(ids):6,} tokens  {name:9} {value:8.3f}", flush=True)
        del model
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, action="append", help="[those in bench/data]")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result = measure(args.folder, args.text or sorted(DATA.glob("*.txt")))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
