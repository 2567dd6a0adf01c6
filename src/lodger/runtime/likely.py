"""What the model held for probable where a token was chosen, for those who ask.

OpenAI's log probabilities: of the model's own logits, before any rule of sampling. They travel from the device together
with the tokens, and rows that do not ask cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lodger.runtime.sampling import Sampler
from lodger.runtime.upload import upload

_AT_ONCE = 8  # rows: their float32 copies are memory of a step


class Probable(NamedTuple):
    """At one place of a text. Natural logarithms."""

    chosen: float
    top: tuple[tuple[int, float], ...]  # tokens, best first


def asked(samplers: Sequence[Sampler]) -> int | None:
    """The most alternatives that any row asks for; None where nobody asks for anything."""
    return max((s.logprobs for s in samplers if s.logprobs is not None), default=None)


@torch.inference_mode()
def probabilities(
    logits: torch.Tensor, chosen: torch.Tensor, samplers: Sequence[Sampler], most: int
) -> list[torch.Tensor]:
    """
    Args:
        logits: [rows, vocab_size], as the model made them.
        chosen: [rows] int64.
        most: as `asked`, of the whole step.

    Returns:
        On the device, one after the other what `unpack` reads.
    """
    asking, width = _asking(samplers), min(most, logits.shape[-1])
    parts = []
    for start in range(0, len(asking), _AT_ONCE):
        at = upload(asking[start : start + _AT_ONCE], torch.int64, logits.device)
        values = logits[at].float()
        total = values.logsumexp(dim=-1, keepdim=True)
        own = values.gather(-1, chosen[at, None]) - total
        best, ids = values.topk(width, dim=-1)
        numbers = torch.cat([own, best - total], dim=-1)
        parts.append(torch.cat([numbers.view(torch.int32), ids.int()], dim=-1))
    return parts


def unpack(packed: torch.Tensor, samplers: Sequence[Sampler]) -> dict[int, Probable]:
    """By row. `packed`: all that `probabilities` gave of a step with these samplers, in RAM."""
    width = (packed.shape[1] - 1) // 2
    numbers: list[list[float]] = packed[:, : 1 + width].contiguous().view(torch.float32).tolist()
    ids: list[list[int]] = packed[:, 1 + width :].tolist()
    return {
        row: Probable(own[0], tuple(zip(tokens, own[1:], strict=True))[: samplers[row].logprobs])
        for row, own, tokens in zip(_asking(samplers), numbers, ids, strict=True)
    }


def _asking(samplers: Sequence[Sampler]) -> list[int]:
    return [n for n, sampler in enumerate(samplers) if sampler.logprobs is not None]
