"""`lodger compare`: what two servers answer alike, and what not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_server import Served, serving
from fake_service import FakeService
from scripted_http import Scripted, scripted

from lodger.api.app import ApiOptions
from lodger.checks.compare import TEXTS, compare, cosine, paired, same_order
from lodger.client import Client


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(FakeService(), ApiOptions()) as made:
        yield made


@pytest.fixture
def other() -> Iterator[Scripted]:
    with scripted() as made:
        yield made


def test_a_server_agrees_with_itself(served: Served) -> None:
    client = Client(served.url)
    rows = client.get("/v1/models")["data"]
    found = {one.kind: one for one in compare(client, client, paired(rows, rows))}
    assert not any(one.problem for one in found.values())
    assert found["embedding"].agreement["cosine_least"] == pytest.approx(1)
    assert found["rerank"].agreement == {"same_order": 1.0, "score_difference": 0.0}
    assert found["LLM"].agreement["same_text"] == 1.0
    assert found["LLM"].ours["characters"] > 0


def test_other_vectors_scores_and_refusals_are_shown(served: Served, other: Scripted) -> None:
    client = Client(served.url)
    own = client.post("/v1/embeddings", {"model": "bge-m3-local", "input": list(TEXTS)})["data"]
    turned = [row | {"embedding": [-x for x in row["embedding"]]} for row in own]
    other.replies["POST /v1/embeddings"] = (200, {}, json.dumps({"data": turned}).encode())
    other.replies["POST /v1/rerank"] = (500, {}, b'{"detail": "CUDA out of memory"}')
    pairs = [("bge-m3-local", "b", "embedding"), ("bge-reranker-v2-m3-local", "r", "rerank")]
    embedding, rerank = compare(client, Client(other.url), pairs)
    assert embedding.agreement["cosine_mean"] == pytest.approx(-1)
    assert "CUDA out of memory" in (rerank.problem or "")


def test_models_are_paired_by_uid_else_by_being_the_only_one_of_their_type() -> None:
    ours = [
        {"id": "a", "model_type": "LLM"},
        {"id": "b", "model_type": "embedding"},
        {"id": "c", "model_type": "audio"},
    ]
    theirs = [{"id": "x", "model_type": "LLM"}, {"id": "b", "model_type": "embedding"}]
    assert paired(ours, theirs) == [("a", "x", "LLM"), ("b", "b", "embedding")]
    two = [*theirs, {"id": "y", "model_type": "LLM"}]
    assert paired(ours, two) == [("b", "b", "embedding")], "which of two is meant nobody knows"


def test_orders_and_cosines_are_what_they_say() -> None:
    assert same_order([3, 2, 1], [30, 20, 10]) == 1
    assert same_order([3, 2, 1], [1, 2, 3]) == 0
    assert same_order([3, 2, 1], [3, 1, 2]) == pytest.approx(2 / 3)
    assert same_order([1, 1], [1, 1]) == 1
    assert cosine([1, 0], [0, 2]) == 0
    with pytest.raises(ValueError, match="1 and of 2"):
        cosine([1], [1, 2])


def test_the_command_shows_a_table_and_ends_with_1_when_one_could_not_be_compared(
    served: Served, other: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LODGER_HOME", str(tmp_path))
    command = [str(Path(sys.executable).with_name("lodger")), "compare", "-e", served.url]
    done = subprocess.run([*command, served.url], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "cosine 1.00000" in done.stdout
    other.replies["GET /v1/models"] = (200, {}, b'{"data": [{"id": "e", "model_type": "embedding"}]}')
    other.reply = (400, {}, b'{"detail": "no"}')
    done = subprocess.run([*command, other.url, "--json"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "no" in json.loads(done.stdout)[0]["problem"]
