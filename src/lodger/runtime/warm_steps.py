"""Steps of nobody's text, for when a model starts.

Some kernels are for steps of some numbers of tokens only. Whoever would launch one first would wait until it is built,
and everybody with them; and the driver's memory would grow by it. Together these steps launch all that later ones do.
"""

from __future__ import annotations

from collections.abc import Iterator

from lodger.sched.step import Row

_FEW = (8, 16, 32, 64, 128)  # tokens, up to which products are cut for so many
_EACH, _MOST = 256, 4096  # beyond, a product may be cut anew for each so many tokens, up to these
_TRIMMED = 256  # tokens of a step from which on its last layer is computed of sampled rows only
_SAMPLED = (8, 16, 32)
_KEYS = 256  # that two programs or more share, and few enough that no more than eight do


def warm_steps(step_tokens: int, most: int, longest: int, block_size: int) -> Iterator[tuple[Row, ...]]:
    """Rows of prefill steps of up to `step_tokens` tokens and `most` sequences, each of up to `longest` tokens. All of
    them are in the KV cache's first block, which nobody has yet."""

    def row(number: int, tokens: int, past: int = 0) -> Row:
        past = max(min(past, longest - tokens), 0)
        return Row(-1 - number, (0,) * tokens, past, (0,) * -(-(past + tokens) // block_size), True)

    whole = min(step_tokens, longest)
    yield (row(0, whole),)
    yield (row(0, -(-whole // 2), whole // 2), row(1, max(whole // 2, 1)))[:most]
    for past in (0, _KEYS, longest):
        yield (row(0, 2, past), row(1, 1, past))[:most]
    for tokens in (*_FEW, *range(_EACH, _MOST + 1, _EACH)):
        if tokens < whole:
            yield (row(0, tokens),)
    for count in _SAMPLED:
        if count <= most and whole >= _TRIMMED:
            yield tuple(row(number, _TRIMMED // count) for number in range(count))
