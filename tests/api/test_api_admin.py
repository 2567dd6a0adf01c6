"""Our own routes, as the command line's client uses them."""

from __future__ import annotations

import msgspec
import pytest
from api_server import Served

from lodger import __version__
from lodger.client import Client
from lodger.errors import DoesNotFit, ErrorInfo, InvalidRequest, MalformedBody, UidTaken, UnknownModel
from lodger.service import ModelStatus
from lodger.spec import ModelSpec


@pytest.fixture
def client(served: Served) -> Client:
    return Client(served.url)


def test_the_command_lines_client_manages_models(client: Client, served: Served) -> None:
    assert client.healthy()
    assert [model.uid for model in client.status().models] == [model.uid for model in client.models()]
    spec = ModelSpec(uid="mine", path="/models/mine", kind="embedding", memory=2**30)
    assert client.launch(spec, wait=False).state == "loading"
    assert served.service.model("mine").spec == spec
    with pytest.raises(UidTaken):
        client.launch(spec)
    client.terminate("mine")
    with pytest.raises(UnknownModel):
        client.terminate("mine")


def test_models_sleep_and_wake(client: Client, served: Served) -> None:
    uid = "bge-m3-local"
    assert client.sleep(uid).state == "asleep"
    assert client.model(uid).memory == {"host": 2**29}
    assert served.ask("GET", "/readyz").status == 200
    assert served.ask("GET", "/v1/models/" + uid).status == 200
    assert uid in [row["id"] for row in served.ask("GET", "/v1/models").json["data"]]
    served.service.full.add(uid)
    with pytest.raises(DoesNotFit, match="1.00 GiB"):
        client.wake(uid)
    served.service.full.clear()
    assert client.wake(uid).state == "ready"
    for verb in (client.sleep, client.wake):
        with pytest.raises(UnknownModel):
            verb("nosuch")


def test_the_plan_comes_back_as_the_value_that_it_is(client: Client) -> None:
    [plan] = client.plan((ModelSpec(uid="a", name="x", kind="chat"), ModelSpec(uid="b", name="y", kind="rerank")))
    assert [model.uid for model in plan.models] == ["a", "b"]
    assert plan.left == plan.available - plan.needed


def test_logs_of_a_model_and_of_the_server(client: Client, served: Served) -> None:
    assert client.logs("bge-m3-local", 2) == ["line of bge-m3-local"] * 2
    assert client.logs(None, 100) == ["line of the server"] * 3
    assert served.ask("GET", "/lodger/logs?lines=many").status == 400


def test_a_model_by_its_uid(served: Served) -> None:
    answer = served.ask("GET", "/lodger/models/bge-m3-local")
    assert msgspec.json.decode(answer.body, type=ModelStatus) == served.service.model("bge-m3-local")
    assert served.ask("GET", "/lodger/models/nosuch").status == 404


def test_a_spec_that_is_none_is_named(client: Client) -> None:
    with pytest.raises(MalformedBody, match="uid"):
        client.post("/lodger/models", {"name": "x"})
    with pytest.raises(MalformedBody, match="context_length"):
        client.post("/lodger/models", {"uid": "a", "name": "x", "context_length": "long"})
    with pytest.raises(InvalidRequest, match="cannot be used"):
        client.post("/lodger/models", {"uid": "a b", "name": "x"})
    with pytest.raises(InvalidRequest, match="name or a path"):
        client.post("/lodger/models", {"uid": "a"})
    with pytest.raises(MalformedBody, match="models"):
        client.post("/lodger/plan", {"models": "all"})


def test_health_says_that_the_server_lives_whatever_its_models_do(served: Served) -> None:
    served.service.add(ModelSpec(uid="bad", name="x"), "failed", ErrorInfo(code="model_failed", message="no"))
    assert served.ask("GET", "/healthz").json == {"status": "ok", "version": __version__}


@pytest.mark.parametrize("state", ["loading", "failed", "restarting"])
def test_ready_means_every_model_is(served: Served, state: str) -> None:
    assert served.ask("GET", "/readyz").status == 200
    served.service.add(ModelSpec(uid="late", name="x"), state)
    answer = served.ask("GET", "/readyz")
    assert (answer.status, answer.json["ready"], answer.json["models"]["late"]) == (503, False, state)
    served.service.finish("late")
    assert served.ask("GET", "/readyz").status == 200


def sample(text: str, line: str) -> float:
    return sum(float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(line + " "))


def test_metrics_count_each_request_once_with_its_outcome(served: Served) -> None:
    def scrape() -> str:
        return served.ask("GET", "/metrics").body.decode()

    before = scrape()
    chat = {"model": "qwen3-4b-chat-local", "messages": [{"role": "user", "content": "one two three"}]}
    served.ask("POST", "/v1/chat/completions", chat)
    served.ask("POST", "/v1/chat/completions", {**chat, "stream": True})
    served.ask("POST", "/v1/embeddings", {"model": "bge-m3-local", "input": ["a b", "c"]})
    served.ask("POST", "/v1/embeddings", {"model": "surely-not-a-model", "input": "a"})
    after = scrape()

    def grown(line: str) -> float:
        return sample(after, line) - sample(before, line)

    assert grown('lodger_requests_total{model="qwen3-4b-chat-local",outcome="ok",verb="chat"}') == 2
    assert grown('lodger_completion_tokens_total{model="qwen3-4b-chat-local"}') == 6
    assert grown('lodger_first_token_seconds_count{model="qwen3-4b-chat-local"}') == 2
    assert grown('lodger_prompt_tokens_total{model="bge-m3-local"}') == 3
    assert grown('lodger_requests_total{model="",outcome="model_not_found",verb="embed"}') == 1
    assert "surely-not-a-model" not in after
    assert sample(after, 'lodger_model_state{model="bge-m3-local",state="ready"}') == 1
