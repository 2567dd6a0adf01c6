"""From a name to answers with the real command: fetched from a hub, converted, planned, served; then without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_pytorch
from hub_servers import HubServer
from installed import Installed, installed

TEXTS = ["你好，Xinference", "The capital of France is Paris."]
HERE = "All models are on this disk; nothing is downloaded."


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer() as server:
        server.add("BAAI/bge-m3", tiny_pytorch.make_bge_m3(tmp_path_factory.mktemp("published")))
        server.add("BAAI/bge-reranker-v2-m3", tiny.make_bge_reranker(tmp_path_factory.mktemp("published")))
        yield server


@pytest.fixture(scope="module")
def lodger(tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("hub")
    with installed(folder) as command:
        command.env |= hub.environment(folder)
        (folder / "lodger.yaml").write_text("models:\n  bge-m3-local: {name: bge-m3}\n")
        yield command


def embed(lodger: Installed, model: str) -> list[list[float]]:
    answer: Any = lodger.client.post("/v1/embeddings", {"model": model, "input": TEXTS})
    return [row["embedding"] for row in answer["data"]]


def test_a_plan_fetches_nothing_and_says_what_would(lodger: Installed, hub: HubServer) -> None:
    done = lodger("plan")
    assert done.returncode == 1
    assert "bge-m3 is not on this machine" in done.stderr
    assert "lodger pull bge-m3" in done.stderr
    assert hub.requests == []


def test_up_goes_from_nothing_to_answers(lodger: Installed, hub: HubServer) -> None:
    done = lodger.ok("up", "-d", "--port", "0", timeout=300)
    assert HERE not in done.stderr
    assert "bge-m3-local: ready" in done.stderr
    assert "ok     bge-m3-local" in done.stdout
    assert len(hub.served("pytorch_model.bin")) == 1


def test_a_folder_from_the_guide_answers_as_its_safetensors_twin(lodger: Installed, tmp_path: Path) -> None:
    """`xinference launch` with --model-path: only pytorch_model.bin is there, and the server converts."""
    folders = {
        "pickles": tiny_pytorch.make_bge_m3(tmp_path / "a/bge-m3"),
        "twin": tiny.make_bge_m3(tmp_path / "b/bge-m3"),
    }
    for uid, folder in folders.items():
        lodger.ok("launch", "--model-name", "bge-m3", "--model-uid", uid, "--model-type", "embedding",
                  "--model-engine", "transformers", "--model-path", str(folder), timeout=300)  # fmt: skip
    assert embed(lodger, "pickles") == embed(lodger, "twin") == embed(lodger, "bge-m3-local")


def test_a_launch_fetches_what_it_names_and_a_request_does_not(lodger: Installed, hub: HubServer) -> None:
    again = lodger.ok("launch", "--model-name", "bge-m3", "--model-uid", "again", timeout=300)
    assert "bge-m3 is on this disk; nothing is downloaded." in again.stderr
    before = len(hub.requests)
    rerank = ("launch", "--model-name", "BAAI/bge-reranker-v2-m3", "--model-uid", "rerank")
    elsewhere = lodger.address.replace("127.0.0.1", "localhost")  # might be another home's server
    refused = lodger(*rerank, "--endpoint", elsewhere)
    assert refused.returncode == 1
    assert "lodger pull" in refused.stderr
    assert len(hub.requests) == before
    lodger.ok(*rerank, "--hub", "huggingface", timeout=300)
    assert lodger.states()["rerank"] == "ready"
    assert all(
        request.url.startswith("/api/models/") for request in hub.requests[before:] if request.stage == "listing"
    )
    assert hub.served("model.safetensors")


def test_everything_on_disk_starts_without_a_request(lodger: Installed, hub: HubServer) -> None:
    lodger.ok("down")
    before = len(hub.requests)
    done = lodger.ok("up", "-d", "--port", "0", timeout=300)
    assert HERE in done.stderr.splitlines()
    assert lodger.ok("up", "-d").stderr.count(HERE) == 1
    lodger.ok("plan")
    assert len(hub.requests) == before
