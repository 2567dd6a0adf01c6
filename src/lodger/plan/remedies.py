"""The smallest change that makes a plan fit. Every advice has been tried before it is given. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import NamedTuple

import msgspec

from lodger.device.view import DeviceView
from lodger.plan.demand import (
    GRAIN,
    MIN_CHAT_CONTEXT,
    MIN_ENCODER_CONTEXT,
    available,
    demands,
    fits,
    highest,
    needed,
    with_spec,
)
from lodger.plan.values import Candidate
from lodger.units import GIB, MIB, gib

SIZE_GRAIN = 256 * MIB  # advised sizes are multiples, so that what is printed with two digits is exactly what is meant
MOST_CHANGED = 8  # models; with more of them only single ones are changed, to keep a refusal quick


class Remedy(NamedTuple):
    """A change in words, and the arguments of `plan` after it."""

    text: str
    device: DeviceView
    candidates: tuple[Candidate, ...]
    reserve: int


Change = Callable[[Remedy], Iterator[Remedy]]


def remedy(device: DeviceView, candidates: tuple[Candidate, ...], reserve: int) -> Remedy:
    """The smallest change that really makes it fit: one of `_MILD`, else several of them together, else fewer models,
    else (and this always does) more memory."""
    start = Remedy("", device, candidates, reserve)
    for count in range(1, 1 + len(_MILD)):
        for chain in combinations(_MILD, count):
            for change in _apply(chain, start):
                if _fits(change):
                    return change
    more = _more_memory(start)
    for change in _fewer_models(start):
        if _fits(change):
            wait = f" Or {more.text[0].lower()}{more.text[1:]}" if more.device.total == device.total else ""
            return change._replace(text=change.text + wait)
    return more


def _apply(chain: Sequence[Change], start: Remedy) -> Iterator[Remedy]:
    """Every way to go through all of `chain`, the last one first: it leaves the least for the others to do."""
    if not chain:
        yield start
        return
    for change in chain[-1](start):
        yield from _apply(chain[:-1], change._replace(text=f"{start.text} {change.text}".strip()))


def _fits(state: Remedy) -> bool:
    return fits(state.device, demands(state.device, state.candidates), state.reserve)


def _smaller_again(state: Remedy) -> Iterator[Remedy]:
    """A loaded model keeps what it was granted when it had the device to itself; loaded again, it can leave room."""
    for held in sorted((c for c in state.candidates if c.held), key=lambda c: c.spec.uid):
        uid = held.spec.uid
        fresh = _change(state.candidates, [uid], with_spec)
        wants = demands(state.device, fresh)
        smallest = next(want.cost(0) for want in wants if want.uid == uid)
        room = available(state.device, state.reserve) - needed(state.device, wants) + smallest
        limit = room // SIZE_GRAIN * SIZE_GRAIN
        if smallest <= limit < (held.held.budget.total if held.held else 0):
            changed = _change(fresh, [uid], lambda c, limit=limit: with_spec(c, memory=limit))  # type: ignore[misc]
            text = f"Terminate {uid}, launch it again with a memory of {gib(limit)}, then try this again."
            yield state._replace(text=text, candidates=changed)


def _smaller_reserve(state: Remedy) -> Iterator[Remedy]:
    spare = available(state.device, 0) - needed(state.device, demands(state.device, state.candidates))
    smaller = spare // SIZE_GRAIN * SIZE_GRAIN
    if 0 < smaller < state.reserve:
        text = f"Lower the reserve from {gib(state.reserve)} to {gib(smaller)}."
        yield state._replace(text=text, reserve=smaller)


def _shorter_context(state: Remedy) -> Iterator[Remedy]:
    """The longest context that fits, or the shortest that is served, for the chat models that ask for more, then for
    all models that do."""
    everyone = ("chat", "embedding", "rerank")
    for kinds, shortest in ((("chat",), MIN_CHAT_CONTEXT), (everyone, MIN_ENCODER_CONTEXT)):
        asked = max((c.spec.context_length or 0 for c in state.candidates if c.facts.kind in kinds), default=0)
        if asked > shortest:
            longest = highest(partial(_fits_cut, state, kinds), (asked - 1) // GRAIN * GRAIN)
            yield _cut(state, kinds, max(shortest, longest))


def _fits_cut(state: Remedy, kinds: tuple[str, ...], longest: int) -> bool:
    return longest == 0 or _fits(_cut(state, kinds, longest))


def _cut(state: Remedy, kinds: tuple[str, ...], longest: int) -> Remedy:
    over = [c.spec.uid for c in state.candidates if c.facts.kind in kinds and (c.spec.context_length or 0) > longest]
    changed = _change(state.candidates, over, lambda c: with_spec(c, context_length=longest))
    return state._replace(text=f"Set context_length of {join_names(over)} to {longest}.", candidates=changed)


def _higher_limits(state: Remedy) -> Iterator[Remedy]:
    short = [want for want in demands(state.device, state.candidates) if want.too_small]
    least = {want.uid: -(-want.cost(0) // SIZE_GRAIN) * SIZE_GRAIN for want in short}
    if least:
        limits = join_names([f"memory of {uid} to {gib(size)}" for uid, size in least.items()])
        changed = _change(state.candidates, least, lambda c: with_spec(c, memory=least[c.spec.uid]))
        yield state._replace(text=f"Raise {limits}.", candidates=changed)


def _half_precision(state: Remedy) -> Iterator[Remedy]:
    """On a CPU the plan takes float32; a model stored in bfloat16 loses nothing by staying there."""
    stored = [c.spec.uid for c in state.candidates if _stored_in_bfloat16(c) and c.spec.dtype is None]
    for chosen in _subsets(stored if state.device.kind == "cpu" else []):
        changed = _change(state.candidates, chosen, lambda c: with_spec(c, dtype="bfloat16"))
        text = f"Set dtype of {join_names(chosen)} to bfloat16, as the files store it."
        yield state._replace(text=text, candidates=changed)


def _stored_in_bfloat16(candidate: Candidate) -> bool:
    stored = candidate.facts.stored_bytes
    return stored.get("bfloat16", 0) * 2 > sum(stored.values())


def _rerank_by_embedding(state: Remedy) -> Iterator[Remedy]:
    own = [c.spec.uid for c in state.candidates if c.facts.rerank_method == "cross-encoder"]
    embeddings = [c for c in state.candidates if c.facts.kind == "embedding"]
    for embedding in sorted(embeddings, key=lambda c: c.spec.uid):
        for chosen in _subsets(own):
            changed = _change(state.candidates, chosen, partial(_as_bi_encoder, embedding))
            names = join_names(chosen)
            text = f"Let {names} rank by the vectors of {embedding.spec.uid}: kind rerank, with that model's folder."
            yield state._replace(text=text, candidates=changed)


def _as_bi_encoder(embedding: Candidate, candidate: Candidate) -> Candidate:
    path, dtype = embedding.facts.path, embedding.spec.dtype
    facts = msgspec.structs.replace(embedding.facts, kind="rerank", rerank_method="bi-encoder")
    changed = with_spec(candidate, kind="rerank", name=None, path=path, dtype=dtype, context_length=None)
    return Candidate(changed.spec, facts)


_MILD: tuple[Change, ...] = (
    _smaller_again,
    _shorter_context,
    _smaller_reserve,
    _higher_limits,
    _half_precision,
    _rerank_by_embedding,
)


def _fewer_models(state: Remedy) -> Iterator[Remedy]:
    sizes = {want.uid: want.cost(0) for want in demands(state.device, state.candidates)}
    for left_out in _subsets(sorted(sizes, key=lambda uid: (sizes[uid], uid))):
        rest = tuple(c for c in state.candidates if c.spec.uid not in left_out)
        if rest:
            names = join_names([f"{uid} ({gib(sizes[uid])})" for uid in left_out])
            yield state._replace(text=f"Leave out {names}.", candidates=rest)


def _more_memory(state: Remedy) -> Remedy:
    """Waiting, where others hold enough; else a larger device."""
    device, reserve = state.device, state.reserve
    limits = list(_higher_limits(state))
    candidates = limits[0].candidates if limits else state.candidates
    least = needed(device, demands(device, candidates))
    missing = least - available(device, reserve)
    if device.free + device.ours + missing <= device.total:
        text = f"Wait until {gib(_upwards(missing))} more are free, then try again."
        later = msgspec.structs.replace(device, free=device.free + missing)
    else:
        text = f"Use smaller models or a device of at least {gib(_upwards(least + reserve))}."
        later = msgspec.structs.replace(device, total=least + reserve, free=least + reserve - device.ours)
    return Remedy(" ".join([*(change.text for change in limits), text]), later, candidates, reserve)


def _upwards(size: int) -> int:
    """`size` or a little more, so that two printed digits never promise too little."""
    grain = GIB // 100 if size >= GIB // 10 else MIB
    return -(-size // grain) * grain


def _change(
    candidates: tuple[Candidate, ...], uids: Collection[str], change: Callable[[Candidate], Candidate]
) -> tuple[Candidate, ...]:
    return tuple(change(c) if c.spec.uid in uids else c for c in candidates)


def _subsets(uids: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Small ones first, each in the order given."""
    for size in range(1, 1 + (len(uids) if len(uids) <= MOST_CHANGED else 1)):
        yield from combinations(uids, size)


def join_names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
