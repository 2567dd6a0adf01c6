"""Log probabilities in OpenAI's two shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lodger.tasks import Likely, TokenLogprobs

_IMPOSSIBLE = -9999.0  # OpenAI's number for a token that cannot be; JSON has none for the logarithm of 0


def chat_logprobs(tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """Of chat completions: each token with its bytes and its alternatives."""
    content = [_entry(token.chosen) | {"top_logprobs": list(map(_entry, token.top))} for token in tokens]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[TokenLogprobs], offset: int) -> dict[str, Any]:
    """Of completions: one list for each thing that is known. `offset`: where the first token's text begins."""
    texts = [_text(token.chosen) for token in tokens]
    offsets = [offset + sum(map(len, texts[:place])) for place in range(len(texts))]
    return {
        "tokens": texts,
        "token_logprobs": [_number(token.chosen) for token in tokens],
        "top_logprobs": [_alternatives(token) for token in tokens],
        "text_offset": offsets,
    }


def text_length(tokens: Sequence[TokenLogprobs]) -> int:
    return sum(len(_text(token.chosen)) for token in tokens)


def _alternatives(token: TokenLogprobs) -> dict[str, float]:
    """By text; of two tokens with the same text the more probable one."""
    return {_text(likely): _number(likely) for likely in (token.chosen, *reversed(token.top))}


def _entry(likely: Likely) -> dict[str, Any]:
    return {"token": _text(likely), "logprob": _number(likely), "bytes": list(likely.text)}


def _text(likely: Likely) -> str:
    return likely.text.decode("utf-8", "replace")


def _number(likely: Likely) -> float:
    return max(likely.logprob, _IMPOSSIBLE)
