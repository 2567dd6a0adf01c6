"""The table says everything that the plan decided."""

from __future__ import annotations

import io
import json

import msgspec
from model_facts import candidate, trio
from rich.console import Console
from test_planner import BI_ENCODER, MINILM, SMOLLM2, cpu

from lodger.device.fake import parse_device
from lodger.device.view import DeviceView, Neighbour
from lodger.plan.explain import plan_json, plan_table, plan_text, rows
from lodger.plan.planner import plan
from lodger.units import GIB, gib

DEVICE = DeviceView(
    id="cuda:0",
    kind="cuda",
    name="NVIDIA A100",
    total=80 * GIB,
    free=10 * GIB,
    ours=4 * GIB,
    neighbours=(Neighbour(4211, 60 * GIB, "alice", "python"), Neighbour(77, None)),
    driver="580.65",
)
PLAN = plan(DEVICE, trio())
CHAT = PLAN.models[0]


def test_the_text_names_device_neighbours_parts_and_rest() -> None:
    lines = [" ".join(line.split()) for line in plan_text(PLAN).splitlines()]
    for line in [
        "NVIDIA A100 80.00 GiB cuda:0, driver 580.65",
        "free 10.00 GiB",
        "held by Lodger 4.00 GiB",
        "held by others 66.00 GiB",
        "pid 4211 60.00 GiB alice, python",
        "pid 77 unknown",
        "reserve 1.00 GiB stays free for others",
        f"worker process {gib(PLAN.process)} CUDA context, kernels and cuBLAS",
        "weights 7.49 GiB",
        f"KV cache {gib(CHAT.budget.kv_cache)} {CHAT.kv_tokens:,} tokens",
        f"captured steps {gib(CHAT.budget.captured)} of up to {CHAT.budget.sequences} chats",
    ]:
        assert line in lines, line
    largest = max(PLAN.models, key=lambda model: model.budget.activations)
    step = f"the largest of {largest.budget.step_tokens:,} tokens by {largest.uid}"
    assert f"activations {gib(PLAN.steps)} one step at a time, {step}" in lines
    assert any(line.endswith(f"chat, bfloat16, context {CHAT.kv_tokens:,} tokens") for line in lines)
    assert any(line.startswith(f"note serves {CHAT.kv_tokens:,} of the 262,144 tokens") for line in lines)


def test_the_rows_add_up() -> None:
    top = {row.name: row.size for row in rows(PLAN) if row.depth == 0}
    held = sum(size for name, size in top.items() if name != "NVIDIA A100" and size)
    assert held == DEVICE.free + DEVICE.ours
    for model in PLAN.models:
        assert top[model.uid] == model.budget.kept
    steps = [model.budget for model in PLAN.models]
    largest = max(own.activations - own.resumed for own in steps) + max(own.graphs for own in steps)
    largest += max(own.gaps for own in steps)
    assert top["activations"] == largest + sum(own.unfinished for own in steps)


def test_a_plan_with_room_says_that_texts_run_beside_chats() -> None:
    roomy = plan(msgspec.structs.replace(DEVICE, free=70 * GIB, ours=0, neighbours=()), trio())
    assert any(
        line.endswith("by qwen3-4b-chat-local, and texts beside chats") for line in plan_text(roomy).splitlines()
    )


def test_the_table_has_the_same_words() -> None:
    out = io.StringIO()
    Console(file=out, width=200).print(plan_table(PLAN))
    assert out.getvalue().split() == plan_text(PLAN).split()


def test_json_is_in_bytes() -> None:
    found = json.loads(json.dumps(plan_json(PLAN)))
    assert found["device"]["free"] == DEVICE.free
    assert found["reserve"] == GIB
    assert found["needed"] + found["left"] == found["available"] == 13 * GIB
    chat = found["models"][0]
    assert chat["uid"] == "qwen3-4b-chat-local"
    assert chat["total"] == chat["weights"] + chat["kv_cache"] + chat["captured"]
    assert found["activations"] == PLAN.steps


def test_a_card_that_is_not_here_is_said_to_be_described() -> None:
    text = plan_text(plan(parse_device("A100:80GiB,free=14GiB,neighbour=60GiB"), trio()))
    assert "as described" in text
    assert "pid" not in text
    assert "neighbour" in text


def test_without_models_and_over_the_reserve() -> None:
    full = msgspec.structs.replace(DEVICE, free=0, ours=0)
    text = " ".join(plan_text(plan(full, ())).split())
    assert "left -1.00 GiB" in text
    assert "worker process" not in text


def test_weights_that_are_used_twice_are_shown_once() -> None:
    made = plan(cpu(free=8), (candidate("e", MINILM), candidate("r", BI_ENCODER)))
    lines = [" ".join(line.split()) for line in plan_text(made).splitlines()]
    assert "weights 87 MiB" in lines
    assert "weights 0 B those of e" in lines
    embedding, reranker = plan_json(made)["models"]
    assert embedding["total"] - reranker["total"] == reranker["weights"]
    assert reranker["shares"] == "e"


def test_on_a_cpu() -> None:
    text = plan_text(plan(cpu(free=8), (candidate("chat", SMOLLM2),)))
    assert "libraries and tokenizers" in text
