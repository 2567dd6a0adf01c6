"""Serve the same three folders with Xinference, as its guide does: start it, register, launch one after the other.

    python -m bench.peer_xinference --venv VENV --models FOLDER --port 9998

runs until Ctrl-C. VENV is an environment of its own with Xinference in it (bench/README.md has the commands).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

START_SECONDS = 300


def _call(url: str, body: dict[str, Any] | None = None) -> Any:
    request = urllib.request.Request(
        url, data=None if body is None else json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url}: {error.code} {error.read().decode()[:500]}") from None


def environment(home: Path) -> dict[str, str]:
    """Its own home, no login (it has one by default since 4.0), and no network."""
    return {**os.environ, "XINFERENCE_HOME": str(home), "XINFERENCE_AUTH_ADVANCED": "0", "HF_HUB_OFFLINE": "1"}


def command(venv: Path, port: int) -> list[str]:
    return [str(venv / "bin" / "xinference-local"), "--host", "127.0.0.1", "--port", str(port)]


def prepare(url: str, models: Path) -> None:
    """Wait until it answers, then register and launch the three models."""
    _wait(url)
    for kind, family, options in _families(models):
        body = {"model": json.dumps(family), "persist": False}
        _call(f"{url}/v1/model_registrations/{kind}", body)
        launch = {"model_name": family["model_name"], "model_type": kind, "enable_virtual_env": False, **options}
        _call(f"{url}/v1/models", launch)


def _wait(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            _call(f"{url}/v1/models")
            return
        except (OSError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _families(models: Path) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Type, registration and launch options of each model: its custom model format, version 2."""

    def spec(name: str) -> dict[str, Any]:
        place = {"model_hub": "huggingface", "model_id": f"bench/{name}", "model_uri": f"file://{models / name}"}
        return {"model_format": "pytorch", "quantization": "none", **place}

    template = json.loads((models / "chat" / "tokenizer_config.json").read_text())["chat_template"]
    chat = {
        "version": 2,
        "model_name": "bench-chat",
        "model_family": "smollm2",
        "model_lang": ["en"],
        "model_ability": ["chat"],
        "model_description": "SmolLM2-135M-Instruct",
        "architectures": ["LlamaForCausalLM"],
        "context_length": 8192,
        "chat_template": template,
        "stop_token_ids": [2],
        "stop": ["<|im_end|>"],
        "model_specs": [{**spec("chat"), "model_size_in_billions": "0_135"}],
    }
    shared = {"version": 2, "language": ["en"]}
    embedding = {
        **shared,
        "model_name": "bench-emb",
        "dimensions": 384,
        "max_tokens": 256,
        "model_specs": [spec("emb")],
    }
    rerank = {
        **shared,
        "model_name": "bench-rerank",
        "type": "normal",
        "max_tokens": 512,
        "model_specs": [spec("rerank")],
    }
    return [
        ("embedding", embedding, {"model_uid": "emb", "model_engine": "sentence_transformers"}),
        ("rerank", rerank, {"model_uid": "rerank", "model_engine": "sentence_transformers"}),
        (
            "LLM",
            chat,
            {
                "model_uid": "chat",
                "model_engine": "transformers",
                "model_size_in_billions": "0_135",
                "model_format": "pytorch",
                "quantization": "none",
            },
        ),
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--venv", type=Path, required=True)
    options.add_argument("--models", type=Path, required=True)
    options.add_argument("--port", type=int, default=9998)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as home:
        started = time.monotonic()
        server = subprocess.Popen(
            command(given.venv, given.port), env=environment(Path(home)), stdout=sys.stderr, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{given.port}"
            prepare(url, given.models.absolute())
            print(f"{url} serves chat, emb and rerank after {time.monotonic() - started:.1f} s; pid {server.pid}")
            server.wait()
        except KeyboardInterrupt:
            pass
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


if __name__ == "__main__":
    main()
