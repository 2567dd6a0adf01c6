"""A refusal names every number, and what it advises has been tried."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given, settings
from model_facts import BGE_M3, QWEN3_4B, RERANKER, candidate, trio
from test_planner import Scene, cpu, gpu, planned, reserves, scenes

from lodger.device.view import DeviceView, Neighbour
from lodger.errors import DoesNotFit
from lodger.plan.demand import demands, needed, process
from lodger.plan.planner import default_reserve, plan
from lodger.plan.remedies import remedy
from lodger.plan.values import Candidate
from lodger.units import GIB, gib, parse_size


def refused(device: DeviceView, candidates: tuple[Candidate, ...], reserve: int | None = None) -> DoesNotFit:
    with pytest.raises(DoesNotFit) as caught:
        plan(device, candidates, reserve=reserve)
    return caught.value


@settings(deadline=None)
@given(scenes(), reserves)
def test_what_is_advised_really_fits(scene: Scene, reserve: int | None) -> None:
    device, candidates = scene
    kept = default_reserve(device) if reserve is None else reserve
    if planned(device, candidates, kept) is not None:
        return
    advice = remedy(device, candidates, kept)
    assert refused(device, candidates, kept).hint == advice.text
    changed = plan(advice.device, advice.candidates, reserve=advice.reserve)
    assert changed.left >= 0
    assert (advice.device, advice.candidates, advice.reserve) != (device, candidates, kept)


def least(device: DeviceView, *candidates: Candidate) -> int:
    """Bytes of the smallest grants and their worker."""
    return needed(device, demands(device, candidates))


def test_the_message_has_every_number() -> None:
    neighbours = (Neighbour(4211, 60 * GIB, "alice", "python"), Neighbour(77, None))
    device = msgspec.structs.replace(gpu(free=11.5), neighbours=neighbours)
    wanted = trio(context_length=8192)
    said = refused(device, wanted).message
    need = least(device, *wanted)
    chat = next(want for want in demands(device, wanted) if want.generates).smallest
    for part in [
        f"bge-m3-local, bge-reranker-v2-m3-local and qwen3-4b-chat-local need at least {gib(need)}",
        f"{gib(need - device.free + GIB)} more than there are",
        "A100 has 80.00 GiB, 11.50 GiB free, 68.50 GiB held by others",
        "pid 4211 (alice, python) 60.00 GiB",
        "pid 77 size unknown",
        "1.00 GiB kept as reserve",
        f"weights 7.49 GiB, KV cache 1.12 GiB (8,192 tokens), captured steps {gib(chat.captured)}, activations ",
        "bge-m3-local 1.09 GiB (weights 1.06 GiB, captured steps 11 MiB, activations 21 MiB (steps of 512 tokens))",
        f"worker process {gib(process(device, demands(device, wanted)))}",
    ]:
        assert part in said, part
    assert "\n" not in said


def test_first_a_smaller_context() -> None:
    hint = refused(gpu(free=14), trio(context_length=32_768)).hint or ""
    found = re.fullmatch(r"Set context_length of qwen3-4b-chat-local to (\d+)\.", hint)
    assert found
    longest = int(found[1])
    assert planned(gpu(free=14), trio(context_length=longest))
    assert not planned(gpu(free=14), trio(context_length=longest + 256))  # not smaller than it must be


def test_then_a_smaller_reserve() -> None:
    hint = refused(gpu(free=11.5), trio()).hint or ""
    found = re.fullmatch(r"Lower the reserve from 1.00 GiB to (.+)\.", hint)
    assert found
    assert planned(gpu(free=11.5), trio(), parse_size(found[1]))


def test_then_the_dtype_of_the_files_on_a_cpu() -> None:
    hint = refused(cpu(free=12, total=16), (candidate("chat", QWEN3_4B),)).hint
    assert hint == "Set dtype of chat to bfloat16, as the files store it."


def test_then_ranking_by_the_embedding_model() -> None:
    hint = refused(gpu(free=11), trio()).hint
    assert hint == (
        "Let bge-reranker-v2-m3-local rank by the vectors of bge-m3-local: kind rerank, with that model's folder."
    )


def test_then_several_of_these_together() -> None:
    hint = refused(gpu(free=11), trio(context_length=8192)).hint or ""
    assert re.fullmatch(r"Let bge-reranker-v2-m3-local rank by .*\. Set context_length of qwen\S+ to \d+\.", hint)


def test_then_fewer_models_or_waiting() -> None:
    chat, reranker = candidate("chat", QWEN3_4B), candidate("reranker", RERANKER)
    free = (least(gpu(free=0), chat) + GIB) / GIB + 0.1
    hint = refused(gpu(free=free), (chat, reranker)).hint or ""
    found = re.fullmatch(r"Leave out reranker \(1.09 GiB\)\. Or wait until (.+) more are free, then try again\.", hint)
    assert found
    assert planned(gpu(free=free), (chat,))
    assert planned(gpu(free=free + parse_size(found[1]) / GIB), (chat, reranker))


def test_then_waiting_while_others_hold_enough() -> None:
    chat = candidate("chat", QWEN3_4B)
    hint = refused(gpu(free=5), (chat,)).hint or ""
    found = re.fullmatch(r"Wait until (.+) more are free, then try again\.", hint)
    assert found
    more = parse_size(found[1]) / GIB
    assert planned(gpu(free=5 + more), (chat,))
    assert not planned(gpu(free=5 + more - 0.02), (chat,))


def test_at_last_a_larger_device() -> None:
    chat = candidate("chat", QWEN3_4B)
    hint = refused(gpu(free=8, total=8), (chat,), reserve=GIB).hint or ""
    found = re.fullmatch(r"Use smaller models or a device of at least (.+)\.", hint)
    assert found
    size = parse_size(found[1]) / GIB
    assert planned(gpu(free=size, total=size), (chat,))


def test_a_limit_of_the_users_own_is_named_and_raised() -> None:
    error = refused(gpu(free=80), trio(memory=31 * GIB // 4))
    assert re.search(
        r"qwen3-4b-chat-local needs at least 7.\d\d GiB, over its memory limit of 7.75 GiB\.", error.message
    )
    assert error.hint == "Raise memory of qwen3-4b-chat-local to 8.00 GiB."
    assert planned(gpu(free=80), trio(memory=parse_size("8.00 GiB")))


def test_encoders_without_a_chat_model_take_shorter_texts() -> None:
    encoders = (
        candidate("e", BGE_M3, context_length=8192),
        candidate("r", RERANKER, context_length=8192),
    )
    free = (least(gpu(free=0), *encoders) + GIB) / GIB - 0.02
    hint = refused(gpu(free=free), encoders).hint or ""
    assert re.fullmatch(r"Set context_length of e and r to \d+\.", hint)


def test_a_loaded_model_that_holds_all_is_asked_to_hold_less() -> None:
    chat, embedding, _ = trio()
    alone = plan(gpu(free=18), (chat,))
    loaded = msgspec.structs.replace(chat, held=alone.models[0])
    full = gpu(free=18 - alone.needed / GIB, ours=alone.needed / GIB)
    hint = refused(full, (loaded, embedding)).hint or ""
    found = re.fullmatch(
        r"Terminate qwen3-4b-chat-local, launch it again with a memory of (.+), then try this again\.", hint
    )
    assert found
    again = plan(gpu(free=18), (trio(memory=parse_size(found[1]))[0],))
    loaded = msgspec.structs.replace(chat, held=again.models[0])
    made = plan(gpu(free=18 - again.needed / GIB, ours=again.needed / GIB), (loaded, embedding))
    assert made.models[0] == again.models[0]
