"""`Frame`: the special tokens and segment ids that a tokenizer's post-processor puts around one text or two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from lodger.errors import ModelProblem

_PROBES = ("a", "1", ".", "的")


class Encoded(NamedTuple):
    """One input as the model sees it, special tokens included."""

    tokens: tuple[int, ...]
    token_types: tuple[int, ...] | None  # segment ids of a pair; None where all are 0
    truncated: bool  # the text was longer than the limit


class _Part(NamedTuple):
    tokens: tuple[int, ...] = ()
    types: tuple[int, ...] = ()


class Frame(NamedTuple):
    """prefix A suffix, or prefix A middle B suffix."""

    prefix: _Part
    middle: _Part
    suffix: _Part
    first_type: int
    second_type: int

    @property
    def added(self) -> int:
        """How many special tokens it adds."""
        return len(self.prefix.tokens) + len(self.middle.tokens) + len(self.suffix.tokens)

    def put(self, first: Sequence[int], second: Sequence[int] = (), *, truncated: bool = False) -> Encoded:
        prefix, middle, suffix = self.prefix, self.middle, self.suffix
        tokens = (*prefix.tokens, *first, *middle.tokens, *second, *suffix.tokens)
        first_types, second_types = (self.first_type,) * len(first), (self.second_type,) * len(second)
        types = prefix.types + first_types + middle.types + second_types + suffix.types
        return Encoded(tokens, types if any(types) else None, truncated)


def read_frame(tokenizer: Any, *, pair: bool) -> Frame:
    """What this `tokenizers.Tokenizer` adds, found by encoding a letter.

    Raises:
        ModelProblem: it does something else than adding tokens around its input.
    """
    probe = next((text for text in _PROBES if tokenizer.encode(text, add_special_tokens=False).ids), None)
    if probe is None:
        raise ModelProblem(f"the tokenizer knows none of {', '.join(_PROBES)}.")
    encoding = tokenizer.encode(probe, probe) if pair else tokenizer.encode(probe)
    rows = list(zip(encoding.sequence_ids, encoding.ids, encoding.type_ids, strict=True))
    runs = [(text, list(run)) for text, run in groupby(rows, key=lambda row: row[0])]
    order = [text for text, _ in runs if text is not None]
    if order != ([0, 1] if pair else [0]):
        raise ModelProblem("the tokenizer's post-processor reorders or repeats its input.")
    special = [_Part(), _Part(), _Part()]
    types = [0, 0]
    seen = 0
    for text, run in runs:
        if text is None:
            special[2 if seen == len(order) else seen] = _Part(tuple(r[1] for r in run), tuple(r[2] for r in run))
        else:
            types[text] = run[0][2]
            seen += 1
    return Frame(special[0], special[1], special[2], types[0], types[1])
