"""Which model goes on which of several devices, and what it is granted there. Pure.

A model is on one device, or as many times as it has replicas on so many. Of all ways to place them that fit, the one is
taken with the fewest copies of the same weights, then the largest grants, then the fewest devices, then the most left
over on the fullest of them, then on the first devices: so models stay together while they lose nothing by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import NamedTuple

import msgspec

from lodger.device.view import DeviceView
from lodger.errors import DoesNotFit, Unsupported
from lodger.plan.demand import available, demands, fits, needed, process, steps, weights_key
from lodger.plan.fraction import in_bytes
from lodger.plan.planner import default_reserve, levels, plan, tops
from lodger.plan.remedies import join_names
from lodger.plan.spread_refusal import Room, spread_refusal
from lodger.plan.values import Candidate, Plan
from lodger.spec import ModelSpec

MOST_TRIED = 1024  # ways to place models that are compared at once; more models are placed in turn, the largest first
_UNBOUNDED = 2**62
Held = Mapping[str, Sequence[Candidate]]  # device -> the models that are on it


class Unit(NamedTuple):
    """A model to place, and every set of devices (by their place in the list) that it may go on."""

    candidate: Candidate
    options: tuple[tuple[int, ...], ...]


class _Score(NamedTuple):
    """How good one way is; a higher one is better."""

    copies: int  # of weights, negative
    level: int  # of the smallest grant that is under what its model can use
    devices: int  # that had no model before, negative
    left: int  # bytes, on the fullest device


def spread(
    devices: Sequence[DeviceView], held: Held, new: Sequence[Candidate], *, reserve: int | None = None
) -> tuple[Plan, ...]:
    """The plans of all devices that have a model then, in the order of `devices`. The order of `new` changes only the
    order of models inside a plan.

    Args:
        devices: GPUs, or the CPU alone.
        held: what is loaded, and stays where it is.
        reserve: bytes to leave to others on each device; None for the planner's own.

    Raises:
        DoesNotFit: there is no room on any device where they may go; with the numbers of each of these.
        Unsupported: a GPU that is not there, more replicas than GPUs, a context longer than its model knows.
    """
    places = _places(devices, held, new, reserve)
    if places is None and len(devices) > 1:
        raise _refusal(devices, held, new, reserve)
    if places is None:
        places = {candidate.spec.uid: (0,) for candidate in new}  # and the plan of this one device says why not
    plans = []
    for index, device in enumerate(devices):
        here = tuple(held.get(device.id, ()))
        added = tuple(meant(one, device) for one in new if index in places[one.spec.uid])
        if added:
            plans.append(plan(device, (*here, *added), reserve=reserve))
        elif here:
            plans.append(_as_it_is(device, here, reserve))
    return tuple(plans)


def _as_it_is(device: DeviceView, here: tuple[Candidate, ...], reserve: int | None) -> Plan:
    """Of what is loaded, whether or not others have taken more since than was left to them."""
    models = tuple(one.held for one in here if one.held is not None)
    return Plan(
        device=device,
        reserve=default_reserve(device) if reserve is None else reserve,
        process=process(device, demands(device, here)),
        steps=steps(device, [model.budget for model in models]),
        models=models,
    )


def meant(candidate: Candidate, device: DeviceView) -> Candidate:
    """`candidate` as asked for on `device`: a fraction of its memory in bytes, and on a CPU a note for its wishes."""
    candidate = in_bytes(candidate, device)
    spec = candidate.spec
    if device.kind != "cpu" or (spec.replicas == 1 and not spec.gpu):
        return candidate
    asked = ["gpu"] * bool(spec.gpu) + ["replicas"] * (spec.replicas > 1)
    verb = "has" if len(asked) == 1 else "have"
    note = f"{' and '.join(asked)} {verb} no effect: one copy on the CPU serves all requests, batched together."
    return msgspec.structs.replace(candidate, spec=msgspec.structs.replace(spec, notes=(*spec.notes, note)))


def likely(devices: Sequence[DeviceView], spec: ModelSpec) -> tuple[str, ...]:
    """Where it will probably go, before its folder was read: where it may go and most is free."""
    allowed = [device for device in devices if not spec.gpu or device.kind == "cpu" or _number(device) in spec.gpu]
    most = sorted(allowed, key=lambda device: -(device.free + device.ours))
    return tuple(device.id for device in most[: spec.replicas])


def _number(device: DeviceView) -> int:
    return int(device.id.partition(":")[2])


def _units(devices: Sequence[DeviceView], new: Iterable[Candidate]) -> list[Unit]:
    """Largest first."""

    def size(unit: Unit) -> tuple[int, str]:
        device = devices[unit.options[0][0]]
        [want] = demands(device, [meant(unit.candidate, device)])
        return -want.cost(0), want.uid

    ordered = sorted(new, key=lambda candidate: candidate.spec.uid)
    return sorted((Unit(candidate, _options(devices, candidate)) for candidate in ordered), key=size)


def _options(devices: Sequence[DeviceView], candidate: Candidate) -> tuple[tuple[int, ...], ...]:
    spec, ids = candidate.spec, [device.id for device in devices]
    if devices[0].kind == "cpu":
        return ((0,),)
    if missing := sorted(set(spec.gpu) - set(map(_number, devices))):
        raise Unsupported(
            f"{spec.uid} is to go on GPU {missing[0]}, which is not there for this server.",
            hint=f"There {'is' if len(ids) == 1 else 'are'} {join_names(ids)}; gpu: auto takes any.",
            param="gpu",
        )
    allowed = [index for index, device in enumerate(devices) if not spec.gpu or _number(device) in spec.gpu]
    if spec.replicas > len(allowed):
        raise Unsupported(
            f"{spec.uid} is to have {spec.replicas} replicas, each on a GPU of its own, and may go on"
            f" {join_names([ids[index] for index in allowed])}.",
            hint=f"Set replicas of {spec.uid} to {len(allowed)}: a second copy on one GPU would only take memory from"
            " the first, which batches all requests together.",
            param="replicas",
        )
    return tuple(combinations(allowed, spec.replicas))


def _refusal(devices: Sequence[DeviceView], held: Held, new: Sequence[Candidate], reserve: int | None) -> DoesNotFit:
    """Of the first that does not fit beside those that were asked for before it."""
    before: dict[str, tuple[int, ...]] = {}
    count = 0
    while (found := _places(devices, held, new[: count + 1], reserve)) is not None:
        before, count = found, count + 1
    last = new[count]

    def room(index: int) -> Room:
        device = devices[index]
        added = [one for one in new[:count] if index in before[one.spec.uid]]
        everything = (*held.get(device.id, ()), *(meant(one, device) for one in (*added, last)))
        return Room(device, everything, default_reserve(device) if reserve is None else reserve)

    def places(changed: Candidate) -> list[str] | None:
        found = _places(devices, held, [*new[:count], changed], reserve)
        return None if found is None else [devices[index].id for index in found[changed.spec.uid]]

    allowed = sorted({index for option in _options(devices, last) for index in option})
    return spread_refusal(last, [room(index) for index in allowed], places)


def _places(
    devices: Sequence[DeviceView], held: Held, new: Sequence[Candidate], reserve: int | None
) -> dict[str, tuple[int, ...]] | None:
    """Where each goes; None when they do not all fit."""
    search, places = _Search(devices, held, reserve), dict[str, tuple[int, ...]]()
    for some in _batches(_units(devices, new)):
        ways = product(*(unit.options for unit in some))
        scored = ((search.score(some, way), way) for way in ways)
        fitting = [(score, way) for score, way in scored if score is not None]
        if not fitting:
            return None
        _, best = max(fitting, key=lambda pair: pair[0])  # the first of equals
        search.settle(some, best)
        places |= {unit.candidate.spec.uid: place for unit, place in zip(some, best, strict=True)}
    return places


def _batches(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """As many at once as have at most MOST_TRIED ways together."""
    batch: list[Unit] = []
    ways = 1
    for unit in units:
        if batch and ways * len(unit.options) > MOST_TRIED:
            yield batch
            batch, ways = [], 1
        batch.append(unit)
        ways *= len(unit.options)
    if batch:
        yield batch


class _Search:
    """Scores ways to place models; what a device is worth with some of them on it is worked out once."""

    def __init__(self, devices: Sequence[DeviceView], held: Held, reserve: int | None) -> None:
        self._devices = devices
        self._reserve = reserve
        self._here = [list(held.get(device.id, ())) for device in devices]
        self._known: dict[tuple[int, frozenset[str]], _Score | None] = {}

    def score(self, units: Sequence[Unit], way: Sequence[tuple[int, ...]]) -> _Score | None:
        """None where it does not fit."""
        found: list[_Score] = []
        for index in sorted({index for place in way for index in place}):
            added = [unit.candidate for unit, place in zip(units, way, strict=True) if index in place]
            one = self._device(index, added)
            if one is None:
                return None
            found.append(one)
        return _Score(
            copies=sum(one.copies for one in found),
            level=min(one.level for one in found),
            devices=sum(one.devices for one in found),
            left=min(one.left for one in found),
        )

    def settle(self, units: Sequence[Unit], way: Sequence[tuple[int, ...]]) -> None:
        """These are where they are to be."""
        self._known.clear()
        for unit, place in zip(units, way, strict=True):
            for index in place:
                self._here[index].append(meant(unit.candidate, self._devices[index]))

    def _device(self, index: int, added: Sequence[Candidate]) -> _Score | None:
        key = index, frozenset(candidate.spec.uid for candidate in added)
        if key not in self._known:
            self._known[key] = self._worth(self._devices[index], self._here[index], added)
        return self._known[key]

    def _worth(self, device: DeviceView, here: Sequence[Candidate], added: Sequence[Candidate]) -> _Score | None:
        reserve = default_reserve(device) if self._reserve is None else self._reserve
        everything = [*here, *(meant(candidate, device) for candidate in added)]
        wants = demands(device, everything)
        if not fits(device, wants, reserve):
            return None
        reached, most = levels(device, wants, reserve), tops(device, wants)
        short = [reached[w.uid] for w in wants if w.candidate.held is None and reached[w.uid] < most[w.uid]]
        before = {weights_key(device, candidate) for candidate in here}
        return _Score(
            copies=-len({weights_key(device, candidate) for candidate in everything} - before),
            level=min(short, default=_UNBOUNDED),
            devices=0 if here else -1,
            left=available(device, reserve) - needed(device, wants, reached),
        )
