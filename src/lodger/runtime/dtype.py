"""Which precision a model runs in when nobody says: what this machine measures to be fastest for its shapes."""

from __future__ import annotations

import time
from functools import cache

import torch

from lodger.catalogue.facts import ModelFacts
from lodger.runtime.layers import half_weights_served, make_linear
from lodger.runtime.precision import Precision, precision, with_int4, with_int8

_WORKING_SET = 16 * 2**20  # bytes of float32 weights: a product finds them in no core's own cache
_MOST_LAYERS = 64
_DECODE_ROWS, _ENCODE_ROWS = (1, 8), (256,)  # tokens in one product: next tokens of one and of eight chats; a text
_REPEATS = 3
_ADVANTAGE = {"float32": 1.0, "float16": 1.15, "bfloat16": 1.3}  # how much faster the coarser must be to be preferred


def precisions(
    facts: ModelFacts, asked: str | None, device: torch.device, quantization: str | None = None
) -> list[Precision]:
    """Candidates, the preferred one first; only `asked` where that is set.

    A CPU's are ordered by measured speed. On a GPU it is the stored dtype if that is a half precision, else bfloat16
    for decoders and float16 for encoders, which need its longer mantissa more than range. Weights of one byte are for
    decoders, and then for nothing else. Those of a quantised checkpoint are what they are.

    Raises:
        MissingDependency: for the kernels of a quantised checkpoint.
        Unsupported: `asked` is no dtype that models run in, or not one for weights of one byte.
    """
    found = _dense(facts, asked, device)
    if facts.int4 is not None:
        return [with_int4(dense, device) for dense in found]
    return [with_int8(found[0], device)] if quantization and facts.causal else found


def _dense(facts: ModelFacts, asked: str | None, device: torch.device) -> list[Precision]:
    if asked:
        return [precision(asked, device)]
    if device.type == "cpu":
        rows = _DECODE_ROWS if facts.generates else _ENCODE_ROWS
        return [precision(name, device) for name in _by_speed(facts.hidden_size, facts.intermediate_size, rows)]
    stored = facts.stored_dtype
    half = stored if stored in ("bfloat16", "float16") else "bfloat16" if facts.causal else "float16"
    return [precision(half, device), precision("float32", device)]


@cache
@torch.inference_mode()
def _by_speed(hidden: int, intermediate: int, rows: tuple[int, ...]) -> list[str]:
    """Names in the order of one core's time for the products, which other work on the machine changes least."""
    names = ["float32", "bfloat16", *(["float16"] if half_weights_served() else [])]
    trials = [_Trial(precision(name, torch.device("cpu")), hidden, intermediate) for name in names]
    total: dict[str, float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, trial in zip(names, trials, strict=True):
            total[name] = sum(min(trial.seconds(count) for _ in range(_REPEATS)) for count in rows)
    finally:
        torch.set_num_threads(threads)
    return sorted(names, key=lambda name: total[name] * _ADVANTAGE[name])


class _Trial:
    """As many up-projections of a model's shape as make a working set."""

    def __init__(self, precision: Precision, hidden: int, intermediate: int) -> None:
        count = min(max(_WORKING_SET // (4 * hidden * intermediate), 1), _MOST_LAYERS)
        weight = torch.randn(intermediate, hidden, dtype=precision.weights)
        self._layers = [make_linear(weight.clone(), None, torch.device("cpu"), precision) for _ in range(count)]
        self._hidden, self._dtype = hidden, precision.compute

    def seconds(self, rows: int) -> float:
        x = torch.randn(rows, self._hidden, dtype=self._dtype)
        start = time.thread_time()
        for layer in self._layers:
            layer(x)
        return time.thread_time() - start
