"""Register Lodger's models in RAGFlow and make them its defaults, for the two generations of its API.

Versions up to 0.25 know a provider with its models (`add_llm`, which replaces what has the same name). From 0.26 a
provider has instances, each with a base URL and models, and creating one that is there makes a renamed copy, so we look
first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec

from lodger.errors import ConfigProblem, RagflowProblem
from lodger.ragflow.api import Answer, Ragflow, refusal, refused

PROVIDER = "Xinference"
ModelType = Literal["chat", "embedding", "rerank"]
_TYPES: dict[str, ModelType] = {"LLM": "chat", "embedding": "embedding", "rerank": "rerank"}
_FIELDS: dict[ModelType, str] = {"chat": "llm_id", "embedding": "embd_id", "rerank": "rerank_id"}  # of a tenant
_KEPT = ("asr_id", "img2txt_id", "tts_id")  # what else is written with them
_UNASKED = 8192  # tokens, as RAGFlow assumes where a server says nothing


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One model as RAGFlow registers it."""

    name: str
    type: ModelType
    max_tokens: int
    tools: bool = False


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """What should be known to RAGFlow.

    Attributes:
        base_url: of Lodger as RAGFlow sees it; the root, which every version can use.
        api_key: Lodger's; "x" where it has none, because an empty one fails inside RAGFlow from 0.27 on.
        defaults: the model that becomes RAGFlow's default, one of each type at most.
    """

    base_url: str
    api_key: str
    instance: str
    models: tuple[Offer, ...]
    defaults: tuple[Offer, ...]


def offers(listed: Sequence[dict[str, Any]]) -> tuple[Offer, ...]:
    """The rows of ``GET /v1/models`` that RAGFlow can use."""
    return tuple(
        Offer(
            name=row["id"],
            type=_TYPES[row["model_type"]],
            max_tokens=row.get("context_length") or row.get("max_tokens") or _UNASKED,
            tools="tools" in (row.get("model_ability") or ()),
        )
        for row in listed
        if row.get("model_type") in _TYPES
    )


def chosen(models: Sequence[Offer], names: Sequence[str]) -> tuple[Offer, ...]:
    """One default of each type: those in `names`, else the first.

    Raises:
        ConfigProblem: a name that no model has, or two of one type.
    """
    by_name = {model.name: model for model in models}
    picked: dict[ModelType, Offer] = {}
    for name in names:
        if name not in by_name:
            raise ConfigProblem(f"Lodger serves no model {name!r}.", hint=f"It serves {', '.join(by_name) or 'none'}.")
        model = by_name[name]
        if model.type in picked:
            raise ConfigProblem(f"{name} and {picked[model.type].name} are both for {model.type}.", hint="Name one.")
        picked[model.type] = model
    for model in models:
        picked.setdefault(model.type, model)
    return tuple(picked[kind] for kind in _FIELDS if kind in picked)


def connect(ragflow: Ragflow, wanted: Registration) -> Iterator[str]:
    """Bring RAGFlow to know what is wanted. Yields one line for each thing done, or found as it should be.

    Raises:
        RagflowProblem: it refuses, with its words.
    """
    known = ragflow.get("/api/v1/providers")
    if known.code == 404:
        yield from _older(ragflow, wanted)
    elif known.code:
        raise refusal("GET /api/v1/providers", known)
    else:
        yield from _instances(ragflow, wanted, known)


def _instances(ragflow: Ragflow, wanted: Registration, known: Answer) -> Iterator[str]:
    """From 0.26."""
    path = f"/api/v1/providers/{PROVIDER}/instances"
    there = PROVIDER in [row.get("name") or row.get("provider_name") for row in known.rows("providers")]
    if not there:
        answer = ragflow.change("PUT", "/api/v1/providers", {"provider_name": PROVIDER})
        if answer.code and "already exist" not in answer.message:
            raise refusal("PUT /api/v1/providers", answer)
    found = ragflow.get(path) if there or not ragflow.dry else Answer(code=0)
    if found.code:
        raise refusal(f"GET {path}", found)
    names = [row.get("instance_name") for row in found.rows("instances")]
    body = _instance(wanted)
    if wanted.instance in names:
        ragflow.must("PUT", f"{path}/{wanted.instance}", body | {"verify": True})
        yield f"{PROVIDER}/{wanted.instance}: updated, {_listed(wanted.models)}"
    else:
        _create(ragflow, path, body)
        yield f"{PROVIDER}/{wanted.instance}: added, {_listed(wanted.models)}"
    yield from _defaults(ragflow, wanted)


def _create(ragflow: Ragflow, path: str, body: dict[str, Any]) -> None:
    answer = ragflow.change("POST", path, body)
    if answer.code and "already exist instance" in answer.message.lower():
        raise RagflowProblem(
            f"RAGFlow refused POST {path}: {answer.message}.",
            hint="It keeps one instance for one API key: name that one with --instance, and it is updated.",
        )
    if answer.code:
        raise refusal(f"POST {path}", answer)


def _instance(wanted: Registration) -> dict[str, Any]:
    return {
        "instance_name": wanted.instance,
        "api_key": wanted.api_key,
        "base_url": wanted.base_url,
        "region": "default",
        "model_info": [
            {"model_name": model.name, "model_type": [model.type], "max_tokens": model.max_tokens}
            | ({"extra": {"is_tools": model.tools}} if model.type == "chat" else {})
            for model in wanted.models
        ],
    }


def _defaults(ragflow: Ragflow, wanted: Registration) -> Iterator[str]:
    now = {row.get("model_type"): row for row in ragflow.get("/api/v1/models/default").rows("models")}
    for model in wanted.defaults:
        row = {
            "model_provider": PROVIDER,
            "model_instance": wanted.instance,
            "model_name": model.name,
            "model_type": model.type,
        }
        if all(now.get(model.type, {}).get(key) == value for key, value in row.items()):
            yield f"default {model.type}: {model.name} already"
        else:
            ragflow.must("PATCH", "/api/v1/models/default", row)
            yield f"default {model.type}: {model.name}"


def _older(ragflow: Ragflow, wanted: Registration) -> Iterator[str]:
    """0.17 to 0.25. RAGFlow asks each model something before it keeps it, and replaces one of the same name."""
    tenant, path, method = _tenant(ragflow)
    for model in wanted.models:
        ragflow.must(
            "POST",
            "/v1/llm/add_llm",
            {
                "llm_factory": PROVIDER,
                "model_type": model.type,
                "llm_name": model.name,
                "api_base": wanted.base_url,
                "api_key": wanted.api_key,
                "max_tokens": model.max_tokens,
            },
        )
        yield f"{model.name}@{PROVIDER}: registered for {model.type}"
    ids = {_FIELDS[model.type]: f"{model.name}@{PROVIDER}" for model in wanted.defaults}
    if all(tenant.get(field) == value for field, value in ids.items()):
        yield "defaults: as they should be already"
        return
    # What is not ours goes back as it was: the route wants these fields and writes whatever it gets.
    kept = {field: tenant.get(field) or "" for field in (*_FIELDS.values(), *_KEPT) if field != "tts_id"}
    if tenant.get("tts_id"):
        kept["tts_id"] = tenant["tts_id"]
    ragflow.must(method, path, {"tenant_id": tenant["tenant_id"]} | kept | ids)
    yield f"defaults: {', '.join(model.name for model in wanted.defaults)}"


def _tenant(ragflow: Ragflow) -> tuple[dict[str, Any], str, str]:
    """The tenant's defaults as they are, and where they are written."""
    routes = (
        ("/v1/user/tenant_info", "/v1/user/set_tenant_info", "POST"),
        ("/api/v1/users/me/models", "/api/v1/users/me/models", "PATCH"),  # from 0.25.1
    )
    answer = Answer(code=404)
    for read, write, method in routes:
        answer = ragflow.get(read)
        if not answer.code and isinstance(answer.data, dict) and answer.data.get("tenant_id"):
            return answer.data, write, method
        if refused(answer):
            raise refusal(f"GET {read}", answer)
    raise RagflowProblem(
        f"This RAGFlow has neither the routes of 0.26 nor those of 0.17 to 0.25: {answer.message or 'no tenant'}.",
        hint="Add the models by hand: docs/ragflow.md says what to type.",
    )


def _listed(models: Sequence[Offer]) -> str:
    return ", ".join(f"{model.name} ({model.type}, {model.max_tokens:,} tokens)" for model in models)
