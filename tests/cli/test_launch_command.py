"""`lodger launch` sends what `xinference launch` sends, for the guide's three lines and for every flag it knows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from scripted_http import Scripted

Run = Callable[..., "CompletedProcess[str]"]

EMBEDDING = """launch --model-name bge-m3 --model-uid bge-m3-local --model-type embedding --model-engine transformers
    --model-path /models/bge-m3 --size-in-billions 0.6 --disable-virtual-env"""
RERANK = """launch --model-name bge-reranker-v2-m3 --model-uid bge-reranker-local --model-type rerank
    --model-engine vllm --model-path /models/bge-reranker-v2-m3 --gpu-memory-utilization 0.2 --disable-virtual-env"""
CHAT = """launch --model-name Qwen3-Instruct --model-uid qwen3-local --model-type LLM --model-engine transformers
    --model-path /models/Qwen3-4B-Instruct-2507 --size-in-billions 4 --disable-virtual-env"""


def answer(server: Scripted, uid: str, *notes: str, state: str = "ready", **more: Any) -> None:
    """Have `server` accept a launch of `uid`, and list it in `state`."""
    accepted = {"model_uid": uid, "notes": notes}
    model = {"spec": {"uid": uid, "notes": notes}, "state": state, "created": 1.0, **more}
    server.replies["POST /v1/models?wait_ready=false"] = (200, {}, json.dumps(accepted).encode())
    server.replies["GET /lodger/models"] = (200, {}, json.dumps([model]).encode())


def sent(server: Scripted) -> dict[str, Any]:
    return next(json.loads(body) for method, _, _, body in server.seen if method == "POST")


@pytest.mark.parametrize(
    ("line", "body"),
    [
        (
            EMBEDDING,
            {"model_name": "bge-m3", "model_uid": "bge-m3-local", "model_type": "embedding"}
            | {"model_engine": "transformers", "model_path": "/models/bge-m3", "model_size_in_billions": "0.6"},
        ),
        (
            RERANK,
            {"model_name": "bge-reranker-v2-m3", "model_uid": "bge-reranker-local", "model_type": "rerank"}
            | {"model_engine": "vllm", "model_path": "/models/bge-reranker-v2-m3", "gpu_memory_utilization": 0.2},
        ),
        (
            CHAT,
            {"model_name": "Qwen3-Instruct", "model_uid": "qwen3-local", "model_type": "LLM"}
            | {"model_engine": "transformers", "model_path": "/models/Qwen3-4B-Instruct-2507"}
            | {"model_size_in_billions": "4"},
        ),
    ],
    ids=["embedding", "rerank", "chat"],
)
def test_the_guides_lines_work_with_another_first_word(
    lodger: Run, server: Scripted, line: str, body: dict[str, Any]
) -> None:
    answer(server, body["model_uid"])
    done = lodger(*shlex.split(line), "--endpoint", server.url)
    assert done.stdout == f"Model uid: {body['model_uid']}\n"
    assert sent(server) == body | {"enable_virtual_env": False}


def test_short_flags_and_unknown_options_go_along(lodger: Run, server: Scripted) -> None:
    answer(server, "q", "max-num-seqs has no effect")
    flags = "-n qwen3 -u q -t llm -en vLLM -mp sub/dir -s 0_6 -f pytorch -q none -r 2 --n-gpu auto --gpu-idx 0"
    more = (
        "--context-length 4096 --memory 6GiB --enable-virtual-env --max-num-seqs 8 --torch_dtype=half --some-flag TRUE"
    )
    done = lodger("launch", *flags.split(), *more.split(), "-e", server.url, "-ak", "s3cret")
    assert done.returncode == 0
    assert "note: max-num-seqs has no effect" in done.stderr
    body = sent(server)
    path = Path(body.pop("model_path"))
    assert path.is_absolute()
    assert path.parts[-2:] == ("sub", "dir")
    assert body == {
        "model_name": "qwen3", "model_uid": "q", "model_type": "LLM", "model_engine": "vLLM",
        "model_size_in_billions": "0_6", "model_format": "pytorch", "quantization": "none", "replica": 2,
        "n_gpu": "auto", "gpu_idx": 0, "context_length": 4096, "memory": "6GiB", "enable_virtual_env": True,
        "max_num_seqs": 8, "torch_dtype": "half", "some_flag": True,
    }  # fmt: skip
    assert server.seen[0][2]["authorization"] == "Bearer s3cret"


def test_a_model_that_fails_to_load_is_an_error_with_its_last_lines(lodger: Run, server: Scripted) -> None:
    error = {"code": "out_of_memory", "message": "ran out at 3.00 GiB", "hint": "Give it less context."}
    answer(server, "q", state="failed", error=error, log_tail=["reading", "tensor 7"])
    done = lodger("launch", "-mp", "/m", "-e", server.url)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-4:] == [
        "q: reading",
        "q: tensor 7",
        "Error: ran out at 3.00 GiB",
        "hint: Give it less context.",
    ]


def test_wrong_usage_exits_with_two_and_asks_nobody(lodger: Run, server: Scripted) -> None:
    for args in (["--model-uid", "x"], ["-n", "x", "--lonely"], ["-n", "x", "stray"], ["-n", "x", "--replica", "0"]):
        done = lodger("launch", *args, "-e", server.url)
        assert done.returncode == 2, args
        assert "Error: " in done.stderr
        assert "Traceback" not in done.stderr
    assert server.seen == []
