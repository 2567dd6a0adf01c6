"""Which precision a model runs in when nobody says: what this machine measures to be fastest for its shapes."""

from __future__ import annotations

import time
from functools import cache

import torch

from lodger.catalogue.facts import ModelFacts
from lodger.runtime.layers import half_weights_served, make_linear
from lodger.runtime.precision import Precision, precision

_WORKING_SET = 48 * 2**20  # bytes of float32 weights: more than caches hold, as a whole model's are
_MOST_LAYERS = 64
_DECODE_ROWS, _ENCODE_ROWS = 1, 256  # tokens in one product: a chat's next token; a text to embed
_REPEATS = 3


def precisions(facts: ModelFacts, asked: str | None, device: torch.device) -> list[Precision]:
    """Candidates, the preferred one first; only `asked` where that is set.

    A CPU's are ordered by measured speed. On a GPU it is the stored dtype if that is a half precision, else bfloat16
    for decoders and float16 for encoders, which need its longer mantissa more than range.

    Raises:
        Unsupported: `asked` is no dtype that models run in.
    """
    if asked:
        return [precision(asked, device)]
    if device.type == "cpu":
        rows = _DECODE_ROWS if facts.is_decoder else _ENCODE_ROWS
        return [precision(name, device) for name in _by_speed(facts.hidden_size, facts.intermediate_size, rows)]
    stored = max(facts.stored_bytes, key=lambda name: facts.stored_bytes[name], default="float32")
    half = stored if stored in ("bfloat16", "float16") else "bfloat16" if facts.is_decoder else "float16"
    return [precision(half, device), precision("float32", device)]


@cache
def _by_speed(hidden: int, intermediate: int, rows: int) -> list[str]:
    names = ["float32", "bfloat16", *(["float16"] if half_weights_served() else [])]
    return sorted(names, key=lambda name: _seconds(precision(name, torch.device("cpu")), hidden, intermediate, rows))


@torch.inference_mode()
def _seconds(precision: Precision, hidden: int, intermediate: int, rows: int) -> float:
    """Best time of `rows` tokens through as many up-projections as make a working set."""
    cpu = torch.device("cpu")
    weight = torch.randn(intermediate, hidden, dtype=precision.weights)
    count = min(max(_WORKING_SET // (weight.numel() * 4), 1), _MOST_LAYERS)
    layers = [make_linear(weight.clone(), None, cpu, precision) for _ in range(count)]
    x = torch.randn(rows, hidden, dtype=precision.compute)
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        for layer in layers:
            layer(x)
        best = min(best, time.perf_counter() - start)
    return best
