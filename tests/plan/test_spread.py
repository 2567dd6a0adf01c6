"""Models on several GPUs: room, wishes, the same answer in any order, and one device as before."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_facts import BGE_M3, MINILM, QWEN3_4B, RERANKER, SMOLLM2, candidate, trio
from msgspec.structs import replace

from lodger.catalogue.facts import ModelFacts
from lodger.device.fake import parse_device
from lodger.device.view import DeviceView
from lodger.errors import DoesNotFit, Unsupported
from lodger.plan import spread as spread_module
from lodger.plan.planner import plan
from lodger.plan.spread import likely, meant, spread
from lodger.plan.values import Candidate, Plan
from lodger.spec import ModelSpec
from lodger.units import GIB, gib, parse_size

ON_M3 = replace(BGE_M3, kind="rerank", rerank_method="bi-encoder")
FACTS: list[ModelFacts] = [QWEN3_4B, SMOLLM2, BGE_M3, RERANKER, MINILM, ON_M3]
CPU = DeviceView(id="cpu", kind="cpu", name="RAM", total=64 * GIB, free=60 * GIB)


def cards(*free: float) -> tuple[DeviceView, ...]:
    described = [parse_device(f"A100:80GiB,free={size}GiB", number) for number, size in enumerate(free)]
    return tuple(replace(device, compute_capability=(8, 0)) for device in described)


def places(plans: Sequence[Plan]) -> dict[str, list[str]]:
    """uid -> the devices that it is on."""
    found: dict[str, list[str]] = {}
    for one in plans:
        for model in one.models:
            found.setdefault(model.uid, []).append(one.device.id)
    return found


def held_on(device: DeviceView, *candidates: Candidate) -> list[Candidate]:
    grants = plan(device, candidates).models
    return [replace(one, held=grant) for one, grant in zip(candidates, grants, strict=True)]


def refusal_of(devices: Sequence[DeviceView], new: Sequence[Candidate]) -> DoesNotFit:
    with pytest.raises(DoesNotFit) as caught:
        spread(devices, {}, new)
    return caught.value


@st.composite
def machines(draw: st.DrawFn) -> tuple[DeviceView, ...]:
    return cards(*draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)))


@st.composite
def asked(draw: st.DrawFn, count: int) -> tuple[Candidate, ...]:
    """Models that may go on some of `count` GPUs."""
    found = []
    for number in range(draw(st.integers(1, 4))):
        gpus = tuple(sorted(draw(st.sets(st.integers(0, count - 1), max_size=count))))
        replicas = draw(st.integers(1, len(gpus) or count))
        facts = draw(st.sampled_from(FACTS))
        memory = draw(st.none() | st.integers(1 * GIB, 30 * GIB))
        found.append(candidate(f"model-{number}", facts, gpu=gpus, replicas=replicas, memory=memory))
    return tuple(found)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[tuple[DeviceView, ...], dict[str, list[Candidate]], tuple[Candidate, ...]]:
    """A machine, what is loaded on its first GPU, and what is asked for."""
    devices = draw(machines())
    held: dict[str, list[Candidate]] = {}
    if draw(st.booleans()):
        first = devices[0]
        try:
            loaded = held_on(first, candidate("loaded", draw(st.sampled_from(FACTS)), memory=4 * GIB))
        except DoesNotFit:
            loaded = []
        used = sum(one.held.budget.total for one in loaded if one.held)
        devices = (replace(first, free=first.free - used, ours=used), *devices[1:])
        held = {first.id: loaded}
    return devices, held, draw(asked(len(devices)))


World = tuple[tuple[DeviceView, ...], Mapping[str, list[Candidate]], tuple[Candidate, ...]]


@given(worlds())
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
def test_nobody_gets_more_than_there_is_and_wishes_are_kept(world: World) -> None:
    devices, held, new = world
    try:
        plans = spread(devices, held, new)
    except DoesNotFit:
        return
    for one in plans:
        assert one.needed <= one.available
    found = places(plans)
    for device, models in held.items():
        for model in models:
            assert found[model.spec.uid] == [device], "what is loaded never moves"
    for one_asked in new:
        where = found[one_asked.spec.uid]
        assert len(where) == len(set(where)) == one_asked.spec.replicas
        assert not one_asked.spec.gpu or {int(id[5:]) for id in where} <= set(one_asked.spec.gpu)


@given(worlds(), st.randoms())
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_the_order_of_asking_changes_nothing(world: World, random: Random) -> None:
    devices, held, new = world
    mixed = list(new)
    random.shuffle(mixed)

    def outcome(models: Sequence[Candidate]) -> object:
        try:
            plans = spread(devices, held, models)
        except DoesNotFit:
            return "refused"
        return [(one.device.id, sorted(one.models, key=lambda model: model.uid)) for one in plans]

    assert outcome(new) == outcome(mixed)


@given(worlds())
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_it_refuses_only_what_fits_in_no_way(world: World) -> None:
    devices, held, new = world
    try:
        spread(devices, held, new)
    except DoesNotFit:
        ways = itertools.product(*(_choices(devices, one) for one in new))
        assert not any(_fits(devices, held, new, way) for way in ways)


def _choices(devices: Sequence[DeviceView], one: Candidate) -> list[tuple[int, ...]]:
    allowed = [number for number in range(len(devices)) if not one.spec.gpu or number in one.spec.gpu]
    return list(itertools.combinations(allowed, one.spec.replicas))


def _fits(
    devices: Sequence[DeviceView],
    held: Mapping[str, list[Candidate]],
    new: Sequence[Candidate],
    way: Sequence[tuple[int, ...]],
) -> bool:
    try:
        for number, device in enumerate(devices):
            added = [one for one, where in zip(new, way, strict=True) if number in where]
            if added:
                plan(device, (*held.get(device.id, ()), *added))
    except DoesNotFit:
        return False
    return True


@given(st.sampled_from([CPU, *cards(14, 60)]), asked(1))
@settings(max_examples=40)
def test_on_one_device_it_is_the_plan_of_that_device(device: DeviceView, new: tuple[Candidate, ...]) -> None:
    device = replace(device, id="cuda:0" if device.kind == "cuda" else "cpu")

    def outcome(make: Callable[[], tuple[Plan, ...]]) -> object:
        try:
            return make()
        except DoesNotFit as error:
            return error.info()

    before = outcome(lambda: (plan(device, tuple(meant(one, device) for one in new)),))
    assert outcome(lambda: spread([device], {}, new)) == before


def test_models_stay_together_on_the_card_with_most_room() -> None:
    assert places(spread(cards(40, 60), {}, trio())) == {one.spec.uid: ["cuda:1"] for one in trio()}
    assert places(spread(cards(60, 60), {}, trio())) == {one.spec.uid: ["cuda:0"] for one in trio()}


def test_they_part_where_one_card_would_give_them_less() -> None:
    [first, second] = spread(cards(12.5, 12.5), {}, trio())
    alone = spread(cards(12.5), {}, trio())[0]
    chat = next(model for one in (first, second) for model in one.models if model.kv_tokens)
    assert {"bge-m3-local", "bge-reranker-v2-m3-local"} in [{m.uid for m in one.models} for one in (first, second)]
    assert chat.kv_tokens > next(model for model in alone.models if model.kv_tokens).kv_tokens


def test_what_comes_later_joins_what_is_there_while_it_fits() -> None:
    [first, second] = cards(60, 79)
    loaded = held_on(first, candidate("chat", QWEN3_4B))
    new = [candidate("m3", BGE_M3)]
    assert places(spread([first, second], {"cuda:0": loaded}, new))["m3"] == ["cuda:0"]
    full = replace(first, free=GIB, ours=6 * GIB)  # others took what was left, and more
    plans = spread([full, second], {"cuda:0": loaded}, new)
    assert places(plans) == {"chat": ["cuda:0"], "m3": ["cuda:1"]}
    assert plans[0].left < 0


def test_models_of_one_folder_share_its_weights_on_one_card() -> None:
    [first, second] = cards(20, 79)
    loaded = {"cuda:0": held_on(first, candidate("m3", BGE_M3))}
    plans = spread([first, second], loaded, [candidate("ranker", ON_M3), candidate("chat", QWEN3_4B, gpu=(1,))])
    assert places(plans) == {"m3": ["cuda:0"], "ranker": ["cuda:0"], "chat": ["cuda:1"]}
    assert next(model for model in plans[0].models if model.uid == "ranker").shares == "m3"


def test_replicas_go_on_cards_of_their_own() -> None:
    new = [candidate("chat", SMOLLM2, replicas=2), candidate("m3", BGE_M3, gpu=(2,))]
    assert places(spread(cards(30, 20, 10), {}, new)) == {"chat": ["cuda:0", "cuda:2"], "m3": ["cuda:2"]}
    with pytest.raises(Unsupported, match=r"3 replicas, .* and may go on cuda:0 and cuda:1") as caught:
        spread(cards(30, 20), {}, [candidate("chat", SMOLLM2, replicas=3)])
    assert "Set replicas of chat to 2" in (caught.value.hint or "")
    with pytest.raises(Unsupported, match="GPU 7, which is not there"):
        spread(cards(30, 20), {}, [candidate("chat", SMOLLM2, gpu=(0, 7))])


def test_a_refusal_has_the_numbers_of_every_card_and_a_change_that_helps() -> None:
    devices = cards(6, 7)
    error = refusal_of(devices, [candidate("m3", BGE_M3), candidate("chat", QWEN3_4B)])
    assert error.message.startswith("chat does not fit on cuda:0 and cuda:1. cuda:0: chat needs at least ")
    assert all(f"{gib(device.free)} free" in error.message for device in devices)
    assert "cuda:1: chat and m3 need at least " in error.message
    found = re.fullmatch(r"On cuda:0: wait until (.+) more are free, then try again\.", error.hint or "")
    assert found
    later = (replace(devices[0], free=devices[0].free + parse_size(found[1])), devices[1])
    spread(later, {}, [candidate("m3", BGE_M3), candidate("chat", QWEN3_4B)])


def test_the_first_change_is_to_wish_for_less() -> None:
    devices = cards(6, 40)
    error = refusal_of(devices, [candidate("chat", QWEN3_4B, gpu=(0,))])
    assert error.hint == "Set gpu of chat to auto: there is room on cuda:1."
    assert "cuda:1:" not in error.message
    error = refusal_of(devices, [candidate("chat", QWEN3_4B, replicas=2)])
    assert error.message.startswith("2 replicas of chat do not fit on cuda:0 and cuda:1. cuda:0: chat needs")
    assert "cuda:1: chat would fit." in error.message
    assert error.hint == "Set replicas of chat to 1: there is room on cuda:1."


def test_a_cpu_has_one_copy_and_says_so() -> None:
    found = meant(candidate("m3", BGE_M3, gpu=(1,), replicas=2), CPU).spec
    assert found.notes[0].startswith("gpu and replicas have no effect")
    assert (found.gpu, found.replicas) == ((1,), 2), "it is still what was asked for"
    [only] = spread([CPU], {}, [candidate("m3", BGE_M3, gpu=(1,), replicas=2)])
    assert [model.uid for model in only.models] == ["m3"]


def test_a_fraction_means_that_of_the_card_it_lands_on() -> None:
    big, small = parse_device("80GiB"), parse_device("24GiB", 1)
    new = [candidate("chat", QWEN3_4B, memory_fraction=0.5, gpu=(1,))]
    [on_small] = spread([big, small], {}, new)
    assert 9 * GIB < on_small.models[0].budget.total <= 12 * GIB


def test_more_models_than_can_be_compared_at_once_are_placed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    new = [candidate(f"m-{number}", MINILM) for number in range(5)]
    together = places(spread(cards(30, 20), {}, new))
    monkeypatch.setattr(spread_module, "MOST_TRIED", 4)
    assert places(spread(cards(30, 20), {}, new)) == together


def test_a_worker_may_be_started_where_the_model_will_probably_go() -> None:
    devices = cards(20, 30, 10)
    assert likely(devices, ModelSpec(uid="m")) == ("cuda:1",)
    assert likely(devices, ModelSpec(uid="m", replicas=2)) == ("cuda:1", "cuda:0")
    assert likely(devices, ModelSpec(uid="m", gpu=(2,))) == ("cuda:2",)
    assert likely([CPU], ModelSpec(uid="m", gpu=(2,), replicas=3)) == ("cpu",)
