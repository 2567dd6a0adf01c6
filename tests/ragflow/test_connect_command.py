"""`lodger ragflow connect` as it is typed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator

import pytest
from api_server import Served, serving
from fake_ragflow import API_KEY, FakeRagflow
from fake_ragflow import serving as ragflow_serving
from fake_service import FakeService

from lodger.api.app import ApiOptions
from lodger.cli.ragflow import seen_from_docker

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(FakeService(), ApiOptions()) as made:
        yield made


def test_dry_then_real_then_again(served: Served, lodger: Run) -> None:
    base = f"http://host.docker.internal:{served.port}"
    with ragflow_serving(FakeRagflow((0, 27, 0), {base})) as fake:
        words = ("ragflow", "connect", "--url", fake.url, "-e", served.url, "--api-key", API_KEY)
        dry = lodger(*words, "--dry-run")
        assert dry.returncode == 0, dry.stderr
        assert fake.changes == []
        create = next(line for line in dry.stdout.splitlines() if line.startswith("POST"))
        body = json.loads(create.partition(" {")[2].join(("{", "")))
        assert body["base_url"] == base
        assert body["api_key"] == "x"
        done = lodger(*words)
        assert done.returncode == 0, done.stderr
        assert {row["model_name"] for row in fake.defaults.values()} == {
            "qwen3-4b-chat-local", "bge-m3-local", "bge-reranker-v2-m3-local",
        }  # fmt: skip
        assert "already" in lodger(*words).stdout
        assert list(fake.instances) == ["lodger"]


def test_without_a_key_the_way_to_get_one_is_told(served: Served, lodger: Run) -> None:
    done = lodger("ragflow", "connect", "-e", served.url)
    assert done.returncode == 1
    assert "avatar > API" in done.stderr


def test_containers_know_this_machine_by_another_name() -> None:
    assert seen_from_docker("http://127.0.0.1:9997") == "http://host.docker.internal:9997"
    assert seen_from_docker("http://172.17.0.1:9997") == "http://172.17.0.1:9997"
