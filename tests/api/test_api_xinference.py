"""Xinference's own client, and the requests that its command line was seen to send, against the app."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import pytest
from api_server import Served
from xinference_client import RESTfulClient

from lodger.api.describe import size_in_billions
from lodger.errors import ErrorInfo
from lodger.service import ReplicaStatus
from lodger.spec import ModelSpec

# What `xinference launch` 4.1.0 posts for the guide's line of the embedding model.
CLI_BODY = {
    "model_uid": "bge",
    "model_name": "bge-m3",
    "model_engine": "transformers",
    "peft_model_config": None,
    "model_type": "embedding",
    "model_size_in_billions": "0.6",
    "model_format": None,
    "quantization": None,
    "replica": 1,
    "n_worker": 1,
    "n_gpu": "auto",
    "request_limits": None,
    "worker_ip": None,
    "gpu_idx": None,
    "replica_config": None,
    "model_path": "/models/bge-m3",
    "enable_thinking": False,
    "enable_virtual_env": False,
    "virtual_env_packages": None,
    "virtual_env_find_links": None,
    "envs": None,
    "trust_remote_code": True,
}


@pytest.fixture
def client(served: Served) -> Iterator[RESTfulClient]:
    client = RESTfulClient(served.url)
    yield client
    client.close()


def test_the_guides_three_requests_through_xinferences_client(client: RESTfulClient) -> None:
    vectors = client.get_model("bge-m3-local").create_embedding("你好，Xinference")
    assert len(vectors["data"][0]["embedding"]) == 1024
    best = client.get_model("bge-reranker-v2-m3-local").rerank(
        ["上海是中国最大的城市", "中国的首都是北京"], "中国的首都是哪里？", return_documents=True
    )["results"][0]
    assert (best["index"], best["document"]["text"]) == (1, "中国的首都是北京")
    chat = client.get_model("qwen3-4b-chat-local")
    said = [{"role": "user", "content": "请用中文介绍一下你自己"}]
    assert chat.chat(said)["choices"][0]["message"]["content"] == "请用中文介绍一下你自己"
    chunks = chat.chat(said, generate_config={"stream": True, "max_tokens": 512})
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "请用中文介绍一下你自己"


def test_xinferences_client_launches_lists_describes_and_terminates(client: RESTfulClient, served: Served) -> None:
    uid = client.launch_model(
        "Qwen3-Instruct",
        model_type="LLM",
        model_engine="vllm",
        model_size_in_billions=4,
        model_path="/models/q",
        gpu_memory_utilization=0.2,
        max_model_len=4096,
    )
    assert uid == "Qwen3-Instruct"
    listed = client.list_models()[uid]
    assert (listed["model_type"], listed["model_ability"], listed["context_length"]) == ("LLM", ["chat", "tools"], 4096)
    assert client.describe_model(uid)["model_size_in_billions"] == "4"
    assert client.get_instance_info("Qwen3-Instruct", uid)[0]["status"] == "READY"
    assert client.get_launch_model_progress(uid)["progress"] == 1.0
    client.terminate_model(uid)
    assert uid not in client.list_models()
    with pytest.raises(RuntimeError, match="Model not found in the model list, uid: Qwen3-Instruct"):
        client.terminate_model(uid)
    with pytest.raises(RuntimeError, match="There is no folder /missing/x"):
        client.launch_model("x", model_type="embedding", model_path="/missing/x")


def test_the_command_lines_launch_polls_until_ready(served: Served) -> None:
    assert served.ask("GET", "/v1/cluster/auth").json == {"auth": False}
    launched = served.ask("POST", "/v1/models?wait_ready=False", CLI_BODY)
    assert launched.json == {"model_uid": "bge", "notes": []}
    (spec,) = [model.spec for model in served.service.models() if model.uid == "bge"]
    assert spec == ModelSpec(
        uid="bge",
        name="bge-m3",
        path="/models/bge-m3",
        kind="embedding",
        size_in_billions="0.6",
        engine="transformers",
    )
    poll = "/v1/models/instances?model_name=bge-m3&model_uid=bge"
    assert served.ask("GET", poll).json[0]["status"] == "CREATING"
    assert served.ask("GET", "/v1/models/bge/progress").json["progress"] == 0.25
    loading = served.ask("GET", "/v1/models/bge")
    assert (loading.status, loading.headers["retry-after"]) == (503, "30")
    assert "bge" not in [row["id"] for row in served.ask("GET", "/v1/models").json["data"]]
    served.service.finish("bge")
    assert served.ask("GET", poll).json[0]["status"] == "READY"
    assert served.ask("GET", "/v1/models/bge").json["dimensions"] == 1024


def test_a_launch_can_be_given_up(served: Served) -> None:
    served.ask("POST", "/v1/models?wait_ready=false", CLI_BODY)
    assert served.ask("POST", "/v1/models/bge/cancel").body == b"null"
    assert served.ask("GET", "/v1/models/instances?model_uid=bge").json == []
    assert served.ask("POST", "/v1/models/bge/cancel").status == 400


def test_a_failed_model_stays_among_the_instances_with_its_reason(served: Served) -> None:
    error = ErrorInfo(code="out_of_memory", message="Loading needs 7.60 GiB; 3.10 GiB are free.", hint="Use int8.")
    served.service.add(ModelSpec(uid="big", name="Qwen3-Instruct", kind="chat"), "failed", error)
    (instance,) = served.ask("GET", "/v1/models/instances?model_uid=big").json
    assert instance["status"] == "ERROR"
    assert instance["replica_statuses"][0]["error_message"] == "Loading needs 7.60 GiB; 3.10 GiB are free. Use int8."
    events = served.ask("GET", "/v1/models/big/events").json
    assert [event["event_type"] for event in events] == ["INFO", "ERROR"]
    described = served.ask("GET", "/v1/models/big")
    assert described.status == 503
    assert "3.10 GiB are free" in described.json["detail"]
    assert "big" not in [row["id"] for row in served.ask("GET", "/v1/models").json["data"]]


def test_an_unknown_uid_is_400_to_manage_and_404_to_use(served: Served) -> None:
    for method in ("GET", "DELETE"):
        answer = served.ask(method, "/v1/models/nosuch")
        assert answer.status == 400
        assert answer.json["detail"].startswith("Model not found in the model list, uid: nosuch")
    used = served.ask("POST", "/v1/embeddings", {"model": "nosuch", "input": "hi"})
    assert used.status == 404
    assert "bge-m3-local" in used.json["detail"]


def test_a_model_that_loads_asks_to_come_back(served: Served) -> None:
    served.service.add(ModelSpec(uid="slow", kind="embedding"), "loading")
    answer = served.ask("POST", "/v1/embeddings", {"model": "slow", "input": "hi"})
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("uid", ["qwen3-4b-chat-local", "bge-m3-local", "bge-reranker-v2-m3-local"])
def test_descriptions_have_what_clients_read(served: Served, uid: str) -> None:
    about = served.ask("GET", f"/v1/models/{uid}").json
    (row,) = [row for row in served.ask("GET", "/v1/models").json["data"] if row["id"] == uid]
    assert about.items() <= row.items()
    assert (row["object"], row["owned_by"]) == ("model", "xinference")
    common = {"model_type", "address", "accelerators", "model_name", "model_engine", "model_format", "quantization"}
    more = {
        "LLM": {"model_lang", "model_ability", "model_description", "model_size_in_billions", "model_family"}
        | {"multimodal_projector", "model_hub", "revision"},
        "embedding": {"dimensions", "language", "model_hub", "model_revision"},
        "rerank": {"type", "language", "model_revision"},
    }
    assert common | more[about["model_type"]] | {"replica", "context_length", "max_tokens"} <= about.keys()
    assert about["context_length"] == about["max_tokens"] == 8192
    assert "generate" not in about["model_ability"]


def test_foreign_options_are_translated_or_answered_by_a_note(served: Served) -> None:
    body = {"model_name": "m", "model_type": "LLM", "max_model_len": "8192", "torch_dtype": "half", "memory": "6GiB"}
    told = {
        "gpu-memory-utilization": 0.2,
        "enable_virtual_env": True,
        "n_gpu": 2,
        "max_num_seqs": 8,
        "replica_config": [],
    }
    notes = served.ask("POST", "/v1/models", body | told).json["notes"]
    spec = served.service.model("m").spec
    assert (spec.context_length, spec.dtype, spec.memory, spec.memory_fraction) == (8192, "float16", 6 * 2**30, 0.2)
    assert spec.notes == tuple(notes)
    for option in ("enable_virtual_env", "n_gpu", "max_num_seqs"):
        assert [note for note in notes if note.startswith(option)], option
    assert served.ask("GET", "/v1/models/m").json["notes"] == notes


@pytest.mark.parametrize("asked", [[1, 0], "0, 1"])
def test_replicas_and_gpus_mean_what_they_say(served: Served, client: RESTfulClient, asked: object) -> None:
    body = {"model_name": "m", "model_type": "LLM", "replica": 2, "gpu_idx": asked, "n_gpu": "auto"}
    assert served.ask("POST", "/v1/models", body).json["notes"] == []
    status = served.service.model("m")
    assert (status.spec.gpu, status.spec.replicas) == ((0, 1), 2)
    down = ErrorInfo(code="worker_down", message="It died.")
    copies = (
        ReplicaStatus(device="cuda:0", state="ready"),
        ReplicaStatus(device="cuda:1", state="restarting", error=down),
    )
    served.service.put(msgspec.structs.replace(status, replicas=copies))
    about = client.describe_model("m")
    assert (about["replica"], about["accelerators"]) == (2, ["0", "1"])
    rows = served.ask("GET", "/v1/models/m/replicas").json
    assert [(row["replica_model_uid"], row["accelerators"]) for row in rows] == [("m-rep0", ["0"]), ("m-rep1", ["1"])]
    assert [(row["model_state"], row["error_message"]) for row in rows] == [("ready", None), ("restarting", "It died.")]
    [instance] = served.ask("GET", "/v1/models/instances?model_uid=m").json
    assert instance["replica"] == len(instance["replica_statuses"]) == 2
    assert {"m-rep0", "m-rep1"} <= served.ask("GET", "/v1/workers").json[0]["models"].keys()


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model_type": "LLM"}, 400, "model_name"),
        ({"model_name": "x", "model_type": "image"}, 400, "Unsupported model type: image"),
        ({"model_name": "x", "model_uid": "a/b"}, 400, "'a/b' cannot be used"),
        ({"model_name": "x", "model_uid": "bge-m3-local"}, 400, "taken"),
        ({"model_name": "x", "replica": 0}, 400, "replica"),
        ({"model_name": "x", "gpu_idx": "0,one"}, 400, "'one' is no GPU's number."),
        ({"model_name": "x", "gpu_idx": [-1]}, 400, "'-1' is no GPU's number."),
        ({"model_name": "x", "memory": "much"}, 400, "not a size"),
        ({"model_name": "x", "context_length": -1}, 400, "context_length"),
        ({"model_name": "x", "peft_model_config": {"lora_list": [{"lora_name": "a"}]}}, 400, "LoRA"),
    ],
)
def test_launches_that_cannot_be(served: Served, body: dict[str, object], status: int, said: str) -> None:
    answer = served.ask("POST", "/v1/models", body)
    assert answer.status == status
    assert said in answer.json["detail"]


def test_a_launch_without_uid_gets_the_name_or_a_fresh_one(served: Served) -> None:
    body = {"model_name": "Qwen/Qwen3-4B", "model_type": "LLM"}
    first, second = (served.ask("POST", "/v1/models", body).json["model_uid"] for _ in range(2))
    assert first == "Qwen3-4B"
    assert second.startswith("Qwen3-4B-")
    assert len(second) == len("Qwen3-4B-") + 8


def test_login_takes_the_key_for_a_password(serve: Callable[..., Served], client: RESTfulClient) -> None:
    keyed = serve(api_key="s3same")
    theirs = RESTfulClient(keyed.url)
    with pytest.raises(RuntimeError, match="Incorrect username or password"):
        theirs.login("me", "wrong")
    with pytest.raises(RuntimeError, match="wants an API key"):
        theirs.list_models()
    theirs.login("me", "s3same")
    assert "bge-m3-local" in theirs.list_models()
    theirs.close()
    client.login("me", "x")  # asks for nothing where no key is wanted
    assert client.list_models()


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("DELETE", "/v1/clusters", "lodger down"),
        ("GET", "/v1/virtualenvs", "no virtual environments"),
        ("GET", "/v1/autostart/models", "lodger.yaml"),
        ("POST", "/v1/admin/keys", "no users"),
        ("POST", "/v1/flexible/infers", "serves chat, embeddings and rerank"),
        ("POST", "/v1/images/generations", "serves chat, embeddings and rerank"),
        ("POST", "/v1/models/bge-m3-local/reload", "serves chat, embeddings and rerank"),
    ],
)
def test_what_is_not_here_is_said(served: Served, method: str, path: str, said: str) -> None:
    answer = served.ask(method, path, {} if method == "POST" else None)
    assert (answer.status, answer.json["error"]["code"]) == (404, "route_not_found")
    assert said in answer.json["detail"]


def test_what_the_cluster_says_of_itself(served: Served) -> None:
    address = f"127.0.0.1:{served.port}"
    assert served.ask("GET", "/v1/address").json == address
    assert served.ask("GET", "/v1/supervisor").json == {"supervisor_ip": address}
    assert served.ask("GET", "/v1/cluster/devices").json == 1
    assert "version" in served.ask("GET", "/v1/cluster/version").json
    assert [node["node_type"] for node in served.ask("GET", "/v1/cluster/info").json] == ["Supervisor", "Worker"]
    assert served.ask("GET", "/v1/cluster/info?detailed=true").json[1]["gpu_vram_available"] == 14 * 2**30
    assert "bge-m3-local-rep0" in served.ask("GET", "/v1/workers").json[0]["models"]
    assert served.ask("GET", "/v1/models/bge-m3-local/replicas").json[0]["status"] == "READY"
    assert served.ask("GET", "/v1/models/nosuch/progress").json["progress"] == 0.0
    (worker,) = served.ask("GET", "/status").json["workers"].values()
    assert worker["status"]["gpu-0"]["memory_available"] == 14 * 2**30


@pytest.mark.parametrize(
    ("parameters", "size"),
    [(4_022_468_096, 4), (596_049_920, "0_6"), (134_515_008, "0_135"), (1_720_574_976, "1_7"), (7_615_616_512, "7_6")],
)
def test_sizes_are_written_as_xinference_writes_them(parameters: int, size: int | str) -> None:
    assert size_in_billions(parameters) == size
