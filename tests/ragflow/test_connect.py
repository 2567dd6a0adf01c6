"""`lodger ragflow connect` against a RAGFlow of each generation that refuses what RAGFlow refuses."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from fake_ragflow import API_KEY, EMAIL, PASSWORD, FakeRagflow, serving

from lodger.errors import ConfigProblem, RagflowProblem
from lodger.ragflow.api import Ragflow
from lodger.ragflow.connect import Registration, chosen, connect, offers
from lodger.ragflow.login import PUBLIC_KEY, encrypted, login

BASE = "http://host.docker.internal:9997"
LISTED = [
    {"id": "qwen", "model_type": "LLM", "context_length": 15872, "model_ability": ["chat", "tools"]},
    {"id": "bge", "model_type": "embedding", "max_tokens": 8192},
    {"id": "second-bge", "model_type": "embedding", "max_tokens": 512},
    {"id": "rerank", "model_type": "rerank", "context_length": None},
    {"id": "whisper", "model_type": "audio"},
]
MODELS = offers(LISTED)
WANTED = Registration(base_url=BASE, api_key="x", instance="lodger", models=MODELS, defaults=chosen(MODELS, ()))
OLD, NEW = ((0, 17, 2), (0, 22, 1), (0, 23, 0), (0, 25, 2)), ((0, 26, 0), (0, 27, 0))

Version = tuple[int, int, int]


@pytest.fixture(params=[*OLD, *NEW], ids=lambda version: ".".join(map(str, version)))
def ragflow(request: pytest.FixtureRequest) -> Iterator[FakeRagflow]:
    with serving(FakeRagflow(request.param, {BASE})) as fake:
        yield fake


def let_in(fake: FakeRagflow, *, dry: bool = False) -> Ragflow:
    """With an API key where that is enough, else as after a login."""
    key = f"Bearer {API_KEY}" if fake.version >= (0, 23) else "a-login-token"
    return Ragflow(fake.url, authorization=key, dry=dry)


def test_models_are_registered_with_the_limits_that_are_served_and_made_defaults(ragflow: FakeRagflow) -> None:
    said = list(connect(let_in(ragflow), WANTED))
    assert any("qwen" in line for line in said)
    if ragflow.version >= (0, 26):
        info = {one["model_name"]: one for one in ragflow.instances["lodger"]["model_info"]}
        assert {name: one["max_tokens"] for name, one in info.items()} == {
            "qwen": 15872, "bge": 8192, "second-bge": 512, "rerank": 8192,
        }  # fmt: skip
        assert info["qwen"]["extra"] == {"is_tools": True}
        assert {kind: row["model_name"] for kind, row in ragflow.defaults.items()} == {
            "chat": "qwen", "embedding": "bge", "rerank": "rerank",
        }  # fmt: skip
    else:
        assert ragflow.models["Xinference", "qwen"]["max_tokens"] == 15872
        assert len(ragflow.models) == 4
        assert ragflow.tenant["llm_id"] == "qwen@Xinference"
        assert ragflow.tenant["embd_id"] == "bge@Xinference"
        assert ragflow.tenant["rerank_id"] == "rerank@Xinference"
        assert ragflow.tenant["asr_id"] == "paraformer@Tongyi-Qianwen", "what is not ours stays"


def test_a_second_time_updates_and_makes_no_copy(ragflow: FakeRagflow) -> None:
    list(connect(let_in(ragflow), WANTED))
    models = tuple(msgspec.structs.replace(model, max_tokens=4096) for model in MODELS)
    again = msgspec.structs.replace(WANTED, models=models)
    ragflow.changes.clear()
    said = list(connect(let_in(ragflow), again))
    assert any("already" in line for line in said)
    if ragflow.version >= (0, 26):
        assert list(ragflow.instances) == ["lodger"]
        assert ragflow.instances["lodger"]["model_info"][0]["max_tokens"] == 4096
        assert ragflow.changes == ["PUT /api/v1/providers/Xinference/instances/lodger"]
    else:
        assert ragflow.models["Xinference", "qwen"]["max_tokens"] == 4096
        assert set(ragflow.changes) == {"POST /v1/llm/add_llm"}


def test_dry_shows_every_call_and_changes_nothing(ragflow: FakeRagflow) -> None:
    wanted = msgspec.structs.replace(WANTED, api_key="s3cret")
    asking = let_in(ragflow, dry=True)
    list(connect(asking, wanted))
    assert ragflow.changes == []
    shown = "\n".join(call.shown() for call in asking.calls)
    assert "qwen" in shown
    assert "s3cret" not in shown
    asking = let_in(ragflow)
    list(connect(asking, wanted))
    assert "\n".join(call.shown() for call in asking.calls) == shown, "what dry shows is what is sent"


def test_a_base_url_that_ragflow_cannot_reach_is_said_in_its_words_with_what_to_do(ragflow: FakeRagflow) -> None:
    wanted = msgspec.structs.replace(WANTED, base_url="http://localhost:9997")
    with pytest.raises(RagflowProblem, match=r"Fail to access model") as caught:
        list(connect(let_in(ragflow), wanted))
    assert "ragflow check" in (caught.value.hint or "")


def test_a_wrong_key_is_said_as_one(ragflow: FakeRagflow) -> None:
    with pytest.raises(RagflowProblem, match="does not take this key"):
        list(connect(Ragflow(ragflow.url, authorization="Bearer nonsense"), WANTED))
    assert ragflow.changes == []


def test_one_key_has_one_instance_and_its_name_is_told() -> None:
    with serving(FakeRagflow((0, 27, 0), {BASE})) as fake:
        list(connect(let_in(fake), WANTED))
        other = msgspec.structs.replace(WANTED, instance="gpu0")
        with pytest.raises(RagflowProblem, match="Already exist instance: lodger") as caught:
            list(connect(let_in(fake), other))
        assert "--instance" in (caught.value.hint or "")


@pytest.mark.parametrize("version", [(0, 17, 2), (0, 22, 1), (0, 25, 2)])
def test_a_login_by_password_is_what_ragflow_decrypts(version: Version) -> None:
    private = rsa.generate_private_key(65537, 2048)
    public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key = base64.b64encode(public).decode()

    def read(cipher: bytes) -> bytes:
        return private.decrypt(cipher, padding.PKCS1v15())

    with serving(FakeRagflow(version, {BASE}, read)) as fake:
        asking = Ragflow(fake.url)
        with pytest.raises(RagflowProblem, match="do not match"):
            login(asking, EMAIL, "wrong", key=key)
        login(asking, EMAIL, PASSWORD, key=key)
        list(connect(asking, WANTED))
        assert fake.tenant["llm_id"] == "qwen@Xinference"


def test_two_logins_look_different_and_a_password_that_is_too_long_is_said() -> None:
    assert encrypted("same") != encrypted("same")
    with pytest.raises(RagflowProblem, match="200 characters"):
        encrypted("x" * 200)


def test_the_key_that_is_shipped_is_one_of_2048_bits() -> None:
    key = load_der_public_key(base64.b64decode(PUBLIC_KEY))
    assert isinstance(key, rsa.RSAPublicKey)
    assert (key.key_size, key.public_numbers().e) == (2048, 65537)


def test_what_is_not_ragflow_is_said() -> None:
    with pytest.raises(RagflowProblem, match="does not answer"):
        list(connect(Ragflow("http://127.0.0.1:9", authorization="Bearer k"), WANTED))
    with pytest.raises(ConfigProblem):
        Ragflow("localhost:80")


def test_defaults_are_those_named_else_the_first_of_each_type() -> None:
    assert [model.name for model in chosen(MODELS, ())] == ["qwen", "bge", "rerank"]
    assert [model.name for model in chosen(MODELS, ["second-bge"])] == ["qwen", "second-bge", "rerank"]
    with pytest.raises(ConfigProblem, match="no model 'bgee'"):
        chosen(MODELS, ["bgee"])
    with pytest.raises(ConfigProblem, match="both for embedding"):
        chosen(MODELS, ["bge", "second-bge"])
