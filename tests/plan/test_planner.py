"""What every plan promises, for any models on any device."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_facts import BGE_M3, MINILM, QWEN3_4B, RERANKER, SMOLLM2, candidate, trio

from lodger.budget import SMALL_CAPTURED, workspaces_beside
from lodger.catalogue.facts import ModelFacts
from lodger.device.view import DeviceView
from lodger.errors import DoesNotFit, Unsupported
from lodger.plan.demand import demands, needed
from lodger.plan.planner import CPU_KV_CACHE, default_reserve, plan
from lodger.plan.values import Candidate, Plan
from lodger.units import GIB, MIB

BI_ENCODER = msgspec.structs.replace(MINILM, kind="rerank", rerank_method="bi-encoder")
YES_NO = msgspec.structs.replace(QWEN3_4B, kind="rerank", rerank_method="yes-no")
WHOLE_M3 = msgspec.structs.replace(BGE_M3, token_heads=("sparse", "colbert"))
MULTI_VECTOR = msgspec.structs.replace(WHOLE_M3, kind="rerank", rerank_method="multi-vector")
ALL_FACTS = [QWEN3_4B, SMOLLM2, BGE_M3, RERANKER, MINILM, BI_ENCODER, YES_NO, WHOLE_M3, MULTI_VECTOR]


def gpu(free: float, total: float = 80, ours: float = 0) -> DeviceView:
    sizes = {"total": int(total * GIB), "free": int(free * GIB), "ours": int(ours * GIB)}
    return DeviceView(id="cuda:0", kind="cuda", name="A100", compute_capability=(8, 0), **sizes)


def cpu(free: float, total: float = 32) -> DeviceView:
    return DeviceView(id="cpu", kind="cpu", name="RAM", total=int(total * GIB), free=int(free * GIB))


Scene = tuple[DeviceView, tuple[Candidate, ...]]  # a device, and models for it, of which some are on it already


@st.composite
def asked(draw: st.DrawFn, uid: str, kind: str) -> Candidate:
    facts: ModelFacts = draw(st.sampled_from(ALL_FACTS))
    found = candidate(
        uid,
        facts,
        context_length=draw(st.none() | st.integers(1, min(facts.context_length, 70_000))),
        memory=draw(st.none() | st.integers(64 * MIB, 30 * GIB)),
        dtype=draw(st.sampled_from([None, None, "float32", "bfloat16", "float16"])),
    )
    there = cpu if kind == "cpu" else gpu
    loaded = planned(there(free=draw(st.integers(1, 80)), total=80), (found,)) if draw(st.booleans()) else None
    return msgspec.structs.replace(found, held=loaded.models[0]) if loaded else found


@st.composite
def devices(draw: st.DrawFn) -> DeviceView:
    total = draw(st.integers(2 * GIB, 96 * GIB))
    free = draw(st.integers(0, total))
    ours = draw(st.integers(0, total - free))
    kind = draw(st.sampled_from(["cpu", "cuda"]))
    return DeviceView(id="x", kind=kind, name="some device", total=total, free=free, ours=ours)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    device = draw(devices())
    return device, tuple(draw(asked(f"model-{n}", device.kind)) for n in range(draw(st.integers(1, 5))))


reserves = st.none() | st.integers(0, 4 * GIB)


def planned(device: DeviceView, candidates: tuple[Candidate, ...], reserve: int | None = None) -> Plan | None:
    try:
        return plan(device, candidates, reserve=reserve)
    except DoesNotFit:
        return None


@settings(deadline=None)
@given(scenes(), reserves)
def test_never_more_than_there_is(scene: Scene, reserve: int | None) -> None:
    device, candidates = scene
    made = planned(device, candidates, reserve)
    if made is None:
        return
    assert made.needed <= device.free + device.ours - made.reserve
    assert made.left >= 0
    loaded = {m.uid: m.budget.weights for m in made.models if m.shares is None}
    steps = [m.budget.activations for m in made.models]
    others = sum(m.budget.kv_cache + m.budget.captured for m in made.models)
    graphs = sum({m.budget.graphs for m in made.models})  # each place counts once
    gaps = max(m.budget.gaps for m in made.models) if len(made.models) > 1 else 0
    beside = sum({m.budget.beside for m in made.models})  # and so does each place of texts beside chats
    beside += sum(m.budget.made_beside for m in made.models)
    products = workspaces_beside(device.compute_capability) if beside else 0
    unfinished = sum(m.budget.unfinished for m in made.models) + graphs + gaps + beside + products
    largest = max((m.budget.activations - m.budget.resumed for m in made.models), default=0)
    others += sum(steps) if device.kind == "cpu" else largest + unfinished
    assert made.needed == made.process + sum(loaded.values()) + others
    for model, one in zip(made.models, candidates, strict=True):
        assert model.uid == one.spec.uid
        assert model.shares is None or loaded[model.shares] == model.budget.weights
        cost = model.budget.total - (model.budget.weights if made.is_shared(model) else 0)
        cost -= model.budget.graphs  # as much as the largest model needs
        assert one.spec.memory is None or one.held or cost <= one.spec.memory


@settings(deadline=None)
@given(scenes(), reserves)
def test_every_grant_can_serve(scene: Scene, reserve: int | None) -> None:
    device, candidates = scene
    made = planned(device, candidates, reserve)
    for model, one in zip(made.models, candidates, strict=True) if made else ():
        budget, longest = model.budget, one.facts.context_length
        assert budget.context_length == one.spec.context_length or one.spec.context_length is None
        assert min(longest, 2048 if one.facts.generates else 512) <= budget.context_length or one.spec.context_length
        assert budget.context_length <= longest
        if one.facts.generates:
            assert model.kv_tokens >= budget.context_length
            assert model.kv_tokens % budget.block_size == 0
            assert budget.kv_cache % model.kv_tokens == 0
            assert 512 <= budget.step_tokens <= 8192
        else:
            assert budget.kv_cache == model.kv_tokens == 0
            assert budget.step_tokens >= budget.context_length


@settings(deadline=None)
@given(scenes(), reserves, st.randoms())
def test_order_does_not_matter(scene: Scene, reserve: int | None, random: object) -> None:
    device, candidates = scene
    shuffled = list(candidates)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = planned(device, candidates, reserve), planned(device, tuple(shuffled), reserve)
    assert (one is None) == (other is None)
    if one and other:
        assert {m.uid: m for m in one.models} == {m.uid: m for m in other.models}
        assert [m.uid for m in other.models] == [c.spec.uid for c in shuffled]


@settings(deadline=None)
@given(scenes(), reserves, st.integers(0, 16 * GIB))
def test_more_free_memory_never_gives_less(scene: Scene, reserve: int | None, more: int) -> None:
    device, candidates = scene
    less = planned(device, candidates, reserve)
    larger = msgspec.structs.replace(device, free=min(device.total - device.ours, device.free + more))
    greater = planned(larger, candidates, reserve)
    if less is None:
        return
    assert greater is not None
    for small, large in zip(less.models, greater.models, strict=True):
        assert small.budget.total <= large.budget.total
        assert small.budget.context_length <= large.budget.context_length


def test_the_guides_trio_in_fourteen_gib() -> None:
    made = plan(gpu(free=14), trio(context_length=8192))
    chat, embedding, reranker = made.models
    assert made.reserve == GIB
    assert chat.dtype == "bfloat16"
    assert chat.budget.context_length == 8192
    assert embedding.budget.context_length == reranker.budget.context_length == 8192
    assert 12 * GIB < made.needed <= 13 * GIB


def test_memory_that_we_hold_already_counts_as_ours() -> None:
    assert plan(gpu(free=4, ours=10), trio()).models == plan(gpu(free=14), trio()).models


def test_a_card_of_its_own_is_not_eaten() -> None:
    made = plan(gpu(free=80), trio())
    assert made.models[0].kv_tokens == 16 * 4096
    assert made.left > 55 * GIB


def test_a_laptop_is_not_eaten() -> None:
    made = plan(cpu(free=28), (candidate("chat", SMOLLM2), candidate("embedding", MINILM)))
    assert made.models[0].budget.kv_cache <= CPU_KV_CACHE
    assert made.models[0].budget.context_length == 8192
    assert made.needed < 2 * GIB


def test_chat_models_on_a_cpu_share_the_modest_cache() -> None:
    made = plan(cpu(free=28), tuple(candidate(f"chat-{n}", SMOLLM2) for n in range(2)))
    assert sum(model.budget.kv_cache for model in made.models) <= CPU_KV_CACHE


def test_a_long_own_context_is_served_in_part_with_a_note() -> None:
    chat = plan(gpu(free=14), trio()).models[0]
    assert 8192 <= chat.budget.context_length < QWEN3_4B.context_length
    assert f"serves {chat.budget.context_length:,} of the 262,144 tokens" in chat.notes[0]


def test_a_context_that_was_asked_for_is_never_cut() -> None:
    with pytest.raises(DoesNotFit):
        plan(gpu(free=14), trio(context_length=65_536))


def test_a_context_that_the_model_does_not_know_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"embedding cannot serve a context of 9,000 tokens: .* 1 to 8,192"):
        plan(gpu(free=80), (candidate("embedding", BGE_M3, context_length=9000),))


def test_a_limit_caps_one_model_and_leaves_the_rest_to_others() -> None:
    free, capped = plan(gpu(free=80), trio()), plan(gpu(free=80), trio(memory=14 * GIB))
    kept, most = (made.models[0].budget.total - made.models[0].budget.graphs for made in (capped, free))
    assert kept <= 14 * GIB < most
    assert capped.models[1:] == free.models[1:]


def test_a_bi_encoder_reranker_uses_the_weights_of_its_embedding_model() -> None:
    both = plan(cpu(free=8), (candidate("r", BI_ENCODER), candidate("e", MINILM)))
    reranker, embedding = both.models
    assert (reranker.shares, embedding.shares) == ("e", None)
    assert both.added(embedding) - both.added(reranker) == 22_713_216 * 4
    assert reranker.budget == embedding.budget  # whichever is loaded first may load them
    (alone,) = plan(cpu(free=8), (candidate("r", BI_ENCODER),)).models
    assert alone.shares is None
    assert alone.budget == reranker.budget


def test_a_chat_model_and_a_reranker_of_its_folder_keep_different_rows_of_it() -> None:
    models = plan(gpu(free=40), (candidate("a", QWEN3_4B), candidate("b", YES_NO))).models
    assert [model.shares for model in models] == [None, None]


def test_two_models_of_one_folder_share_its_weights_in_one_dtype() -> None:
    chats = plan(gpu(free=40), (candidate("a", QWEN3_4B), candidate("b", QWEN3_4B))).models
    assert [chat.shares for chat in chats] == [None, "a"]
    chats = plan(gpu(free=40), (candidate("a", QWEN3_4B), candidate("b", QWEN3_4B, dtype="float16"))).models
    assert [chat.shares for chat in chats] == [None, None]
    chats = plan(gpu(free=40), (candidate("a", QWEN3_4B), candidate("b", QWEN3_4B, dtype="bfloat16"))).models
    assert [chat.shares for chat in chats] == [None, "a"]  # what a GPU would take anyway


def test_weights_that_are_loaded_are_shared_from_where_they_are() -> None:
    reranker = candidate("r", BI_ENCODER)
    held = plan(cpu(free=8), (reranker,)).models[0]
    loaded, new = plan(cpu(free=8), (msgspec.structs.replace(reranker, held=held), candidate("e", MINILM))).models
    assert loaded == held
    assert new.shares == "r"


def test_shared_weights_are_counted_for_whoever_is_left() -> None:
    embedding, reranker = candidate("e", MINILM), candidate("r", BI_ENCODER)
    both = plan(cpu(free=8), (embedding, reranker))
    left = plan(cpu(free=8), (msgspec.structs.replace(reranker, held=both.models[1]),))
    assert left.models[0].shares is None
    assert left.needed - left.process == both.models[1].budget.total


def test_texts_run_beside_chats_where_the_kv_cache_leaves_memory_for_it() -> None:
    plenty, tight = plan(gpu(free=80), trio()), plan(gpu(free=12), trio())
    assert [model.budget.beside > 0 for model in plenty.models] == [False, True, True]
    assert len({model.budget.beside for model in plenty.models[1:]}) == 1, "one place for all"
    captured = [
        model.budget.captured - one.budget.captured for model, one in zip(plenty.models, tight.models, strict=True)
    ]
    assert captured[1:] == [10 * MIB] * 2, "hidden states once more; what is made of them is a step's"
    assert [model.budget.made_beside for model in plenty.models] == [0, SMALL_CAPTURED, SMALL_CAPTURED]
    assert not any(model.budget.beside for model in tight.models)
    assert not any(model.budget.beside for model in plan(gpu(free=80), trio()[1:]).models), "there are no chats"


def test_captured_steps_share_a_place_that_does_not_grow() -> None:
    chat, reranker = candidate("c", QWEN3_4B), candidate("r", RERANKER)
    alone = plan(gpu(free=40), (chat,)).models[0]
    first, second = plan(gpu(free=40), (msgspec.structs.replace(chat, held=alone), reranker)).models
    assert first == alone
    assert second.budget.graphs > first.budget.graphs, "a place of its own beside the smaller one"
    held = tuple(msgspec.structs.replace(one, held=made) for one, made in ((chat, first), (reranker, second)))
    made = plan(gpu(free=40), (*held, candidate("s", RERANKER)))
    assert made.models[2].budget.graphs == second.budget.graphs, "there is one that is large enough"
    largest = max(m.budget.activations - m.budget.resumed for m in made.models)
    unfinished = sum(m.budget.unfinished for m in made.models)
    beside = second.budget.beside + sum(m.budget.made_beside for m in made.models) + workspaces_beside((8, 0))
    largest += max(m.budget.gaps for m in made.models)
    assert made.steps == largest + unfinished + first.budget.graphs + second.budget.graphs + beside


def test_the_reserve() -> None:
    assert default_reserve(gpu(free=80)) == GIB
    assert default_reserve(cpu(free=1, total=64)) == GIB
    assert default_reserve(cpu(free=1, total=4)) == 4 * GIB // 20
    with pytest.raises(DoesNotFit):
        plan(gpu(free=14), trio(), reserve=4 * GIB)


def test_no_models_need_no_worker() -> None:
    made = plan(gpu(free=14), ())
    assert made.needed == 0
    assert made.models == ()


def test_grants_rise_in_every_model_alike() -> None:
    tokens = [plan(gpu(free=f), trio()).models for f in (12, 13, 14, 20)]
    for before, after in itertools.pairwise(tokens):
        assert all(b.budget.context_length <= a.budget.context_length for b, a in zip(before, after, strict=True))
        assert before[0].kv_tokens < after[0].kv_tokens


def test_a_loaded_model_keeps_its_grant_whatever_comes() -> None:
    chat, embedding, reranker = trio()
    alone = plan(gpu(free=80), (chat,)).models[0]
    loaded = msgspec.structs.replace(chat, held=alone)
    together = plan(gpu(free=80), (loaded, embedding, reranker))
    assert together.models[0] == alone


@pytest.mark.parametrize(("quantization", "most"), [(None, 11.9), ("int8", 8.5)])
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_three_models_of_8192_tokens_fit(quantization: str | None, most: float, capability: tuple[int, int]) -> None:
    card = msgspec.structs.replace(gpu(free=most), compute_capability=capability)
    wanted = [candidate("chat", QWEN3_4B, context_length=8192, quantization=quantization)]
    wanted += [candidate(uid, facts, context_length=8192) for uid, facts in (("e", BGE_M3), ("r", RERANKER))]
    made = plan(card, tuple(wanted), reserve=0)
    assert {model.budget.context_length for model in made.models} == {8192}
    assert made.models[0].budget.sequences >= 16


def test_an_encoder_of_short_texts_packs_a_full_step_where_there_is_room() -> None:
    model, roomy = candidate("m", MINILM), gpu(free=14)
    least = needed(roomy, demands(roomy, (model,)))
    assert plan(roomy, (model,)).models[0].budget.step_tokens == 2048
    assert plan(gpu(free=(least + GIB + MIB) / GIB), (model,)).models[0].budget.step_tokens < 2048
