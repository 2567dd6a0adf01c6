"""`Arbiter`: which of the waiting kinds of work runs next on a device that they share.

The owner of the device turns like this: one decode step of every chat model with running sequences, then one
micro-step, chosen here among the claims that are ready and cut to `micro_step_tokens`. So a token of a chat waits for
at most one micro-step, however much there is to embed. Only other chats make that micro-step longer: each that waits
for its first token adds a share, up to a full step (`prefill_tokens`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lodger.sched.step import Lane

PATIENCE = 4  # turns per claim in sight before one that waits goes first
DECODING_SHARE = 8  # a micro-step beside decoding chats is this fraction of a full step
SMALLEST_STEP = 64  # tokens; below it a forward costs about as much as one of this size
SHARE = 256  # tokens of prompts beside decoding chats, for each chat that waits for its first one
PAUSE = 2048  # most tokens of prompts for which more chats wait than have come: 28 ms of a 4B model on an H100


class Claim(NamedTuple):
    """Work that is ready. A claim is known from turn to turn by its model and lane."""

    model: str
    lane: Lane  # "prefill", "rerank" or "embed"
    tokens: int  # of the micro-step it would run if chosen
    urgent: bool  # somebody waits for this one text: a query to embed


class Arbiter:
    """Prefill, rerank and urgent embeddings before bulk embeddings; among equals deficit round robin by tokens.

    Bound: with never more than n claims ready at once, one that stays ready is chosen within (PATIENCE + 1) * n turns.
    Proof: after PATIENCE * n turns it is overdue, and the overdue are served longest-waiting first. Those before it are
    at most n - 1, and whoever is served waits from 0 again, so behind it.
    """

    def __init__(self) -> None:
        self._waited: dict[tuple[str, Lane], int] = {}  # turns since it was last chosen or became ready
        self._deficit: dict[tuple[str, Lane], int] = {}  # tokens; its order is the ring

    def choose(self, claims: Sequence[Claim]) -> Claim | None:
        """The claim whose micro-step runs in this turn; None without claims.

        Args:
            claims: all that are ready now, at most one for each model and lane.
        """
        if not claims:
            self._waited.clear()
            self._deficit.clear()
            return None
        waited = {_key(claim): self._waited.get(_key(claim), 0) for claim in claims}
        patient = max(claims, key=lambda claim: waited[_key(claim)])
        chosen = patient if waited[_key(patient)] >= PATIENCE * len(claims) else self._by_class(claims)
        self._waited = {key: turns + 1 for key, turns in waited.items()}
        self._waited[_key(chosen)] = 0
        return chosen

    def _by_class(self, claims: Sequence[Claim]) -> Claim:
        first = [claim for claim in claims if claim.lane != "embed" or claim.urgent]
        return self._round_robin(first or claims)

    def _round_robin(self, claims: Sequence[Claim]) -> Claim:
        ready = {_key(claim): claim for claim in claims}
        ring = {key: deficit for key, deficit in self._deficit.items() if key in ready}
        self._deficit = ring | {key: 0 for key in ready if key not in ring}
        quantum = max(max(claim.tokens for claim in claims), 1)
        while True:
            key, deficit = next(iter(self._deficit.items()))
            if deficit >= ready[key].tokens:
                self._deficit[key] = deficit - ready[key].tokens
                return ready[key]
            del self._deficit[key]
            self._deficit[key] = deficit + quantum


def micro_step_tokens(decoding: bool, step_tokens: int) -> int:
    """Most tokens of one micro-step: all of `step_tokens`, or a small part while chats wait for their next token."""
    if not decoding:
        return step_tokens
    return min(step_tokens, max(SMALLEST_STEP, step_tokens // DECODING_SHARE))


def prefill_tokens(budget: int, step_tokens: int, waiting: int, decoding: int) -> int:
    """Most tokens of a chunk of prompts: SHARE for each chat that waits for its first token, up to a full step.

    One long prompt beside chats goes in small chunks. From eight waiting chats on the chunks are large (PAUSE), so that
    many that come at once are not let in one by one; and full steps as long as no fewer chats wait for their first
    token than for their next one. Between two tokens of a chat there is at most one such chunk.

    Args:
        budget: of a micro-step; less than `step_tokens` while chats decode.
        waiting: chats without a first token.
        decoding: chats that wait for their next one.
    """
    if budget >= step_tokens:
        return step_tokens
    most = step_tokens if waiting >= decoding else min(step_tokens, PAUSE)
    return min(most, min(budget, SHARE) * max(waiting, 1))


def _key(claim: Claim) -> tuple[str, Lane]:
    return claim.model, claim.lane
