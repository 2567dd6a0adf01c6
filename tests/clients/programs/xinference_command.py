"""The `xinference` command of Xinference 4: launch, list, talk, register, ask for engines, terminate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CASE = json.loads(sys.argv[1])
HOME = os.environ["HOME"]


def xinference(*words: str, said: str = "", fails: bool = False) -> str:
    """What the command prints, with what is typed into it."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("xinference")), *words, "--endpoint", CASE["url"]],
        input=said,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"XINFERENCE_HOME": HOME},
        check=False,
    )
    assert (done.returncode != 0) == fails, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def lists() -> None:
    printed = xinference("list")
    for uid in (CASE["chat"], CASE["embedding"], CASE["rerank"]):
        assert uid in printed
    assert "Dimensions" in printed


def talks() -> None:
    """The command has no option for the temperature, so which words the demo's model draws is open."""
    asked, chat = "What is the capital of France?\n\n", ("chat", "--model-uid", CASE["chat"], "--max_tokens", "32")
    assert words_after("Assistant: ", xinference(*chat, said=asked))
    assert words_after("Assistant: ", xinference(*chat, "--stream", "False", said=asked))
    written = xinference(
        "generate", "--model-uid", CASE["chat"], "--max_tokens", "8", said="The capital of France is\n\n"
    )
    assert words_after("Completion: ", written)


def words_after(mark: str, printed: str) -> bool:
    return any(letter.isalpha() for letter in printed.partition(mark)[2].partition("User:")[0])


def launches_and_terminates() -> None:
    words = ("--model-type", "embedding", "--model-engine", "sentence_transformers", "--model-path", CASE["folder"])
    printed = xinference(
        "launch", "--model-name", "bge-m3", "--model-uid", "typed", *words, "--trust-remote-code", "true"
    )
    assert "Model uid: typed" in printed
    assert "typed" in xinference("list")
    taken = xinference("launch", "--model-name", "bge-m3", "--model-uid", "typed", *words, fails=True)
    assert "typed" in taken
    xinference("terminate", "--model-uid", "typed")
    assert "typed" not in xinference("list")
    assert "typed" in xinference("terminate", "--model-uid", "typed", fails=True)


def says_why_a_launch_failed() -> None:
    printed = xinference("launch", "-n", "nothing", "-t", "rerank", "-u", "lost", "-mp", "/no/such/folder", fails=True)
    assert "/no/such/folder" in printed
    xinference("terminate", "--model-uid", "lost")


def registers() -> None:
    file = Path(HOME) / "mine.json"
    spec = {"model_format": "pytorch", "quantization": "none", "model_uri": f"file://{CASE['folder']}"}
    file.write_text(json.dumps({"version": 2, "model_name": "mine", "language": ["en"], "model_specs": [spec]}))
    xinference("register", "-t", "embedding", "-f", str(file), "--persist")
    assert "mine" in xinference("registrations", "-t", "embedding")
    assert "Model uid: by-name" in xinference("launch", "-n", "mine", "-t", "embedding", "-u", "by-name")
    xinference("terminate", "--model-uid", "by-name")
    xinference("unregister", "-t", "embedding", "-n", "mine")
    assert "mine" not in xinference("registrations", "-t", "embedding")


def asks_what_there_is() -> None:
    assert "bge-reranker-v2-m3" in xinference("registrations", "-t", "rerank")
    assert "Qwen3-Instruct" in xinference("registrations")
    assert "vllm" in xinference("engine", "-n", "Qwen3-Instruct")
    assert "does not support" in xinference("engine", "-n", "nosuch")
    assert "Qwen3ForCausalLM" in xinference("vllm-models")
    assert "no cache files" in xinference("cached", "-n", "nosuch")
    assert "lodger down" in xinference("stop-cluster", "--check")


PARTS = (lists, talks, launches_and_terminates, says_why_a_launch_failed, registers, asks_what_there_is)
