"""What the arbiter promises to everybody who waits for the device."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodger.sched.arbiter import PATIENCE, PAUSE, SHARE, Arbiter, Claim, micro_step_tokens, prefill_tokens
from lodger.sched.blocks import BlockPool
from lodger.sched.generate import GenerateScheduler
from lodger.sched.sequence import Sequence
from lodger.sched.step import GenerateStep, Lane

BULK = Claim("m3", "embed", 500, False)
QUERY = Claim("m3", "embed", 20, True)
PREFILL = Claim("chat", "prefill", 500, False)
RERANK = Claim("ranker", "rerank", 500, False)


def turns(arbiter: Arbiter, claims: list[Claim], count: int) -> list[Claim | None]:
    return [arbiter.choose(claims) for _ in range(count)]


def test_without_claims_nothing_is_chosen() -> None:
    assert Arbiter().choose([]) is None


@pytest.mark.parametrize("first", [PREFILL, RERANK, Claim("other", "embed", 20, True)])
def test_bulk_embeddings_go_last(first: Claim) -> None:
    assert Arbiter().choose([BULK, first]) == first


def test_a_query_goes_before_the_bulk_of_the_same_model_by_its_claim() -> None:
    other = Claim("other", "embed", 500, False)
    assert Arbiter().choose([other, QUERY]) == QUERY


def test_bulk_embeddings_still_get_their_part_beside_endless_prefills() -> None:
    chosen = Counter(turns(Arbiter(), [PREFILL, BULK], 90))
    assert chosen[PREFILL] >= 70
    assert chosen[BULK] >= 90 // ((PATIENCE + 1) * 2)


def test_equals_share_the_device_by_tokens() -> None:
    small = Claim("ranker", "rerank", 250, False)
    chosen = Counter(turns(Arbiter(), [PREFILL, small], 300))
    assert chosen[PREFILL] * PREFILL.tokens == pytest.approx(chosen[small] * small.tokens, rel=0.05)


def test_who_was_away_brings_no_credit_and_no_debt() -> None:
    arbiter = Arbiter()
    turns(arbiter, [PREFILL], 50)
    assert set(turns(arbiter, [PREFILL, RERANK], 2)) == {PREFILL, RERANK}


claims = st.builds(
    Claim,
    model=st.sampled_from(["a", "b", "c"]),
    lane=st.sampled_from(["prefill", "rerank", "embed"]),
    tokens=st.integers(0, 5000),
    urgent=st.booleans(),
)
crowds = st.lists(st.lists(claims, max_size=5, unique_by=lambda claim: claim[:2]), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(patient=claims, crowds=crowds)
def test_a_claim_that_stays_ready_is_served_within_the_bound(patient: Claim, crowds: list[list[Claim]]) -> None:
    """Others come and go and change in every turn; the bound is (PATIENCE + 1) * the most claims at once."""
    arbiter = Arbiter()
    key: tuple[str, Lane] = (patient.model, patient.lane)
    rivals = [[claim for claim in crowd if (claim.model, claim.lane) != key] for crowd in crowds]
    bound = (PATIENCE + 1) * (1 + max(map(len, rivals)))
    waited = 0
    for turn in range(4 * bound):
        ready = [patient, *rivals[turn % len(rivals)]]
        chosen = arbiter.choose(ready)
        assert chosen in ready
        waited = 0 if chosen == patient else waited + 1
        assert waited < bound


def test_beside_decoding_chats_a_micro_step_is_small_and_never_over_the_step() -> None:
    assert micro_step_tokens(False, 8192) == 8192
    assert micro_step_tokens(True, 8192) == 1024
    for step_tokens in (1, 16, 64, 100, 2048):
        assert 1 <= micro_step_tokens(True, step_tokens) <= step_tokens


def test_each_chat_that_waits_for_its_first_token_buys_one_share() -> None:
    assert prefill_tokens(1024, 8192, waiting=1, decoding=9) == SHARE, "a long prompt beside chats goes in small chunks"
    assert prefill_tokens(1024, 8192, waiting=3, decoding=9) == 3 * SHARE
    assert prefill_tokens(64, 512, waiting=3, decoding=9) == 192, "steps are smaller where memory is short"
    assert prefill_tokens(8192, 8192, waiting=1, decoding=0) == 8192, "nobody decodes"


def test_chunks_are_full_while_more_chats_wait_for_a_first_token_than_for_a_next_one() -> None:
    assert prefill_tokens(1024, 8192, waiting=96, decoding=32) == 8192
    assert prefill_tokens(1024, 8192, waiting=64, decoding=64) == 8192
    assert prefill_tokens(1024, 8192, waiting=63, decoding=64) == PAUSE
    assert prefill_tokens(64, 512, waiting=63, decoding=64) == 512


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 700), min_size=1, max_size=40),
    begun=st.integers(1, 5),
    step_tokens=st.sampled_from([256, 512, 2048, 8192]),
)
def test_many_prompts_at_once_are_let_in_by_full_steps_and_no_token_waits_longer_than_one(
    prompts: list[int], begun: int, step_tokens: int
) -> None:
    """Turns as the device loop makes them, with chats that decode all the time."""
    scheduler = GenerateScheduler(BlockPool(4000, 16), max_running=64)
    for n in range(begun):
        scheduler.add(Sequence(n, [n], max_new_tokens=10_000))
    run(scheduler, scheduler.next_prefill(begun))
    for n, length in enumerate(prompts, begun):
        scheduler.add(Sequence(n, [n] * length, max_new_tokens=10_000))
    share = micro_step_tokens(True, step_tokens)
    turns = 0
    while scheduler.has_prefill():
        turns += 1
        run(scheduler, scheduler.next_decode(64))
        waiting = scheduler.waiting + scheduler.running - scheduler.decoding
        step = scheduler.next_prefill(prefill_tokens(share, step_tokens, waiting, scheduler.decoding))
        assert step is not None
        assert step.tokens <= min(step_tokens, share * waiting)
        run(scheduler, step)
    most, share = min(step_tokens, PAUSE), min(share, SHARE)
    last = sum(-(-length // share) for length in sorted(prompts)[-(most // share) :])  # when few wait, one by one
    assert turns <= -(-sum(prompts) // most) + last


def run(scheduler: GenerateScheduler, step: GenerateStep | None) -> None:
    if step is not None:
        scheduler.complete(step, {row.sequence: 7 for row in step.rows if row.sample})
