"""One plan for all models of a device: who gets how many bytes, or a refusal with every number. Pure."""

from __future__ import annotations

import msgspec

from lodger.budget import Budget
from lodger.device.view import DeviceView
from lodger.plan.demand import CALLER_TOKENS, Demand, available, demands, fits, grants, highest, needed, process, steps
from lodger.plan.refusal import refusal
from lodger.plan.values import Candidate, ModelPlan, Plan
from lodger.units import GIB, MIB

RESERVE = GIB  # left free for others on a GPU, and on a CPU unless 5 % of its RAM are less
# KV cache of all chat models together on a CPU, unless somebody asks for longer contexts: RAM is shared with all else
# that runs on a laptop, and its cores cannot serve more sequences than this holds.
CPU_KV_CACHE = 512 * MIB


def default_reserve(device: DeviceView) -> int:
    """Bytes of `device` that stay free for others when nobody says how many."""
    return RESERVE if device.kind == "cuda" else min(RESERVE, device.total // 20)


def plan(device: DeviceView, candidates: tuple[Candidate, ...], *, reserve: int | None = None) -> Plan:
    """Grants for every candidate, in the order given; the grants do not depend on that order.

    Every model first gets its smallest useful grant. What is left raises all of them alike (see `lodger.plan.demand`)
    until nobody can use more, a model meets its own `memory` limit, or the device is full.

    Args:
        reserve: bytes to leave to others; None for `default_reserve`.

    Raises:
        DoesNotFit: not even the smallest grants fit; the hint is the smallest change that makes them fit.
        Unsupported: a context longer than its model knows.
    """
    kept = default_reserve(device) if reserve is None else reserve
    wants = demands(device, candidates)
    if not fits(device, wants, kept):
        raise refusal(device, candidates, kept)
    reached = levels(device, wants, kept)
    budgets = grants(wants, reached)
    granted = {want.uid: _grant(want, reached[want.uid], own) for want, own in zip(wants, budgets, strict=True)}
    return Plan(
        device=device,
        reserve=kept,
        process=process(device, wants),
        steps=steps(device, [model.budget for model in granted.values()]),
        models=tuple(granted[candidate.spec.uid] for candidate in candidates),
    )


def levels(device: DeviceView, wants: tuple[Demand, ...], reserve: int) -> dict[str, int]:
    """The level of each model: the highest common one that fits, but for no model over its own top."""
    most = tops(device, wants)

    def at(level: int) -> dict[str, int]:
        return {want.uid: min(level, most[want.uid]) for want in wants}

    def fitting(level: int) -> bool:
        return needed(device, wants, at(level)) <= available(device, reserve)

    return at(highest(fitting, max(most.values(), default=0)))


def tops(device: DeviceView, wants: tuple[Demand, ...]) -> dict[str, int]:
    """The highest level that each model may have, whatever is free."""
    modest = max(want.ceiling for want in wants) if wants else 0
    if device.kind == "cpu":
        chats = [want for want in wants if want.generates]
        modest = highest(lambda level: sum(chat.budget(level).kv_cache for chat in chats) <= CPU_KV_CACHE, modest)
        modest = max(modest, CALLER_TOKENS)
    return {want.uid: _top(want, modest if want.generates else want.ceiling) for want in wants}


def _top(want: Demand, most: int) -> int:
    limit = want.candidate.spec.memory
    if limit is None:
        return most
    return highest(lambda level: want.cost(level) <= limit, most)


def _grant(want: Demand, level: int, budget: Budget) -> ModelPlan:
    if want.candidate.held is not None:
        return msgspec.structs.replace(want.candidate.held, shares=want.shares)
    return ModelPlan(
        uid=want.uid,
        facts=want.candidate.facts,
        dtype=want.dtype,
        quantization=want.quantization,
        budget=budget,
        kv_tokens=want.kv_tokens(level),
        shares=want.shares,
        notes=_notes(want, level),
    )


def _notes(want: Demand, level: int) -> tuple[str, ...]:
    notes: list[str] = []
    served, longest = want.context(level), want.candidate.facts.context_length
    if served < longest and want.candidate.spec.context_length is None:
        notes.append(f"serves {served:,} of the {longest:,} tokens that the model knows; context_length asks for more")
    if want.candidate.spec.quantization and not want.int8:
        notes.append(f"quantization has no effect: encoders keep {want.dtype}")
    if want.candidate.facts.int4 and not want.quantization:
        notes.append(f"its int4 weights become {want.dtype}, as no kernel multiplies with them here")
    return tuple(notes)
