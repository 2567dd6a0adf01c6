"""Xinference's registry: names that models can be launched by, what they can be launched with, and what is here."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from lodger.api.bodies import Body, json_response
from lodger.api.context import OptionsDep, ServiceDep
from lodger.api.launching import KINDS
from lodger.api.limits import parse_json
from lodger.api.security import AdminOnly
from lodger.errors import InvalidRequest, Unsupported
from lodger.service import Service
from lodger.spec import Registration
from lodger.tasks import Kind

router = APIRouter(tags=["xinference"])

# What may be written as `model_engine`: all of them mean Lodger's own runtime (`lodger.engines`).
ENGINES: dict[Kind, tuple[str, ...]] = {
    "chat": ("native", "transformers", "vllm", "sglang"),
    "embedding": ("native", "sentence_transformers", "flag", "vllm"),
    "rerank": ("native", "sentence_transformers", "flag", "vllm"),
}


class RegisterRequest(Body):
    """POST /v1/model_registrations/{model_type}."""

    model: str = Field(description="Xinference's JSON of a custom model, whose model_uri is a folder of this machine")
    persist: bool | None = Field(None, description="Whether a restart keeps it")


@router.get("/v1/model_registrations/{model_type}", summary="Names that models can be launched by")
async def registrations(model_type: str, service: ServiceDep, detailed: bool = False) -> Response:
    known = await service.registrations(_kind(model_type))
    return json_response([_row(one, detailed) for one in known])


@router.post("/v1/model_registrations/{model_type}", summary="Give a folder a name", dependencies=[AdminOnly])
async def register(model_type: str, body: RegisterRequest, service: ServiceDep) -> Response:
    parse_json(body.model.encode())  # as deep and as wide as any body may be
    await service.register(_kind(model_type), body.model, persist=bool(body.persist))
    return json_response(None)


@router.get("/v1/model_registrations/{model_type}/{name}", summary="What a name means")
async def registration(model_type: str, name: str, service: ServiceDep) -> Response:
    found = await _named(service, _kind(model_type), name)
    if found is None:
        raise InvalidRequest(f"Model {name[:100]} not found", param="model_name")
    return json_response(found.family)


@router.delete("/v1/model_registrations/{model_type}/{name}", summary="Forget a name", dependencies=[AdminOnly])
async def unregister(model_type: str, name: str, service: ServiceDep) -> Response:
    await service.unregister(_kind(model_type), name)
    return json_response(None)


@router.get("/v1/engines/{model_name}", summary="What a chat model can be launched with")
async def engines_of_chat(model_name: str, service: ServiceDep) -> Response:
    return json_response(_engines(await _named(service, "chat", model_name)))


@router.get("/v1/engines/{model_type}/{model_name}", summary="What a model can be launched with")
async def engines(model_type: str, model_name: str, service: ServiceDep) -> Response:
    return json_response(_engines(await _named(service, _kind(model_type), model_name)))


@router.get("/v1/models/families", summary="Names of chat models by what they can do")
async def families(service: ServiceDep) -> Response:
    known = await service.registrations("chat")
    abilities = ("chat", "generate", "tools", "vision", "reasoning")
    return json_response({one: [each.name for each in known if one in _abilities(each)] for one in abilities})


@router.get("/v1/models/prompts", summary="Nothing: each model's own chat template is used")
async def prompts() -> Response:
    return json_response({})


@router.get("/v1/models/vllm-supported", summary="Architectures that chat, whatever engine is named")
async def vllm_supported(service: ServiceDep) -> Response:
    known = await service.registrations("chat")
    chat = {str(architecture) for one in known for architecture in one.family.get("architectures") or []}
    return json_response({"chat": sorted(chat), "generate": []})


@router.get("/v1/cache/models", summary="Models of known names that are on this machine", dependencies=[AdminOnly])
async def cached(service: ServiceDep, options: OptionsDep, model_name: str = "") -> Response:
    rows = [
        _cached(one, spec, options.address)
        for model_type, kind in KINDS.items()
        for one in await service.registrations(kind)
        for spec in _specs(one)
        if spec.get("cache_status") and model_name in ("", one.name)
    ]
    return json_response({"list": rows})


@router.get("/v1/cache/models/files", summary="Nothing: Lodger deletes no models", dependencies=[AdminOnly])
async def deletable() -> Response:
    return json_response({"paths": []})


@router.delete("/v1/cache/models", summary="Refused: Lodger deletes no models", dependencies=[AdminOnly])
async def remove_cached() -> Response:
    raise Unsupported("Lodger deletes no models.", hint="Remove the model's folder on its machine.")


def _kind(model_type: str) -> Kind:
    if model_type not in KINDS:
        raise InvalidRequest(f"Unsupported model type: {model_type[:50]}", param="model_type")
    return KINDS[model_type]


async def _named(service: Service, kind: Kind, name: str) -> Registration | None:
    return next((one for one in await service.registrations(kind) if one.name == name), None)


def _row(one: Registration, detailed: bool) -> dict[str, Any]:
    about = one.family if detailed else {"model_name": one.name}
    return about | {"is_builtin": one.builtin}


def _abilities(one: Registration) -> list[Any]:
    said = one.family.get("model_ability")
    return said if isinstance(said, list) else []


def _specs(one: Registration) -> list[dict[str, Any]]:
    specs: list[dict[str, Any]] = one.family.get("model_specs") or [one.family]
    return specs


def _engines(one: Registration | None) -> dict[str, list[dict[str, Any]]]:
    """Nothing for an unknown name, which Xinference's command line says in its own words."""
    if one is None:
        return {}
    rows = [_parameters(one, spec) for spec in _specs(one)]
    return dict.fromkeys(ENGINES[one.kind], rows)


def _parameters(one: Registration, spec: dict[str, Any]) -> dict[str, Any]:
    """What `xinference engine` shows of one size and format. Chat models that are not quantised can be, at launch."""
    kept = str(spec.get("quantization") or "none")
    row = {"model_name": one.name, "model_format": spec.get("model_format") or "pytorch", "quantization": kept}
    if one.kind != "chat":
        return row
    quantizations = [kept, "int8"] if kept == "none" else [kept]
    return row | {"model_size_in_billions": spec.get("model_size_in_billions"), "quantizations": quantizations}


def _cached(one: Registration, spec: dict[str, Any], address: str) -> dict[str, Any]:
    model_types = {kind: model_type for model_type, kind in KINDS.items()}
    return {
        "model_name": one.name,
        "model_type": model_types[one.kind],
        "model_engine": list(ENGINES[one.kind]),
        "model_size_in_billions": spec.get("model_size_in_billions"),
        "model_format": spec.get("model_format"),
        "quantization": spec.get("quantization"),
        "model_version": None,
        "actor_ip_address": address,
    }
