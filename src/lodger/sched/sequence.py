"""`Sequence`: the token state of one choice of one request."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

from lodger.errors import InternalError


class Sequence:
    """Known tokens, how many of them have keys and values in the cache, and where those lie.

    `tokens` is the prompt followed by what was generated; `blocks` is the block table from position 0, the same object
    until it changes. The first `computed` tokens are in the cache. `GenerateScheduler` alone changes any of them, but
    for `held`: the owner of a sequence may hold it back until it knows what may come next.
    """

    __slots__ = (
        "arrival",
        "blocks",
        "cached_tokens",
        "computed",
        "held",
        "id",
        "max_new_tokens",
        "preemptions",
        "prompt_length",
        "tokens",
    )

    def __init__(self, id: int, prompt: Tokens[int], *, max_new_tokens: int) -> None:
        if not prompt or max_new_tokens < 1:
            raise InternalError(f"sequence {id} has {len(prompt)} prompt tokens and may make {max_new_tokens}.")
        self.id = id
        self.tokens = list(prompt)
        self.prompt_length = len(self.tokens)
        self.max_new_tokens = max_new_tokens
        self.computed = 0
        self.blocks: tuple[int, ...] = ()
        self.cached_tokens = 0  # prompt tokens taken from the prefix cache when it was first admitted
        self.preemptions = 0
        self.held = False  # no step takes it
        self.arrival = 0  # place in the order of `add`; set by the scheduler

    @property
    def generated(self) -> list[int]:
        """The tokens after the prompt, the PENDING ones included."""
        return self.tokens[self.prompt_length :]

    @property
    def exhausted(self) -> bool:
        """All `max_new_tokens` are there: nothing more is scheduled, the caller finishes it."""
        return len(self.tokens) - self.prompt_length >= self.max_new_tokens
