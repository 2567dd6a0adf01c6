"""A lane of chats that has its device alone, driven as the device loop drives it."""

from __future__ import annotations

from lodger.runtime.generating import GenerateLane
from lodger.sched.arbiter import micro_step_tokens


def turn(lane: GenerateLane, step_tokens: int) -> tuple[bool, bool]:
    """A token for every chat that has begun, then a step for those that have not. Which of both there was to do."""
    decoding = lane.decoding
    if decoding:
        lane.decode()
    budget = micro_step_tokens(decoding, step_tokens)
    claims = list(lane.claims(budget))
    for claim in claims:
        lane.micro_step(claim.lane, budget)
    return decoding, bool(claims)
