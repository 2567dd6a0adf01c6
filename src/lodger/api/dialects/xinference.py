"""Xinference's REST: launch, list, describe, terminate, and what its clients and command line ask on the way.

Where Xinference has a convention of its own it is kept: an unknown uid is 400 on routes that manage models (and 404 on
those that use them), a model that is not ready is 503 with Retry-After, and failed models stay among the instances.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from lodger import __version__
from lodger.api.aborts import Name
from lodger.api.bodies import Body, json_response
from lodger.api.context import OptionsDep, RunningDep, ServiceDep
from lodger.api.describe import abilities, accelerators, description, listing, model_name
from lodger.api.errors import error_response
from lodger.api.launching import LaunchRequest
from lodger.api.security import AdminOnly, is_key
from lodger.errors import InvalidRequest, KeyRequired, ModelFailed, ModelLoading, UnknownModel, Unsupported
from lodger.service import ModelStatus, ReplicaStatus, Service

router = APIRouter(tags=["xinference"])


class AbortRequest(Body):
    """POST /v1/models/{uid}/requests/{request_id}/abort."""

    block_duration: float | None = Field(
        None, ge=0, le=3600, description="Seconds for which such a request is aborted as soon as it comes"
    )


class LoginRequest(Body):
    """POST /token."""

    username: str | None = None
    password: str


_STATUSES = {
    "loading": "CREATING",
    "ready": "READY",
    "asleep": "READY",
    "restarting": "UPDATING",
    "failed": "ERROR",
    "stopping": "TERMINATING",
}
_SERVING = ("ready", "asleep", "restarting")


@router.get("/v1/cluster/auth", summary="Whether a key is wanted")
async def cluster_auth(options: OptionsDep) -> Response:
    return json_response({"auth": options.api_key is not None})


@router.post("/token", summary="Xinference's login: the password is the API key, under any name")
async def login(body: LoginRequest, options: OptionsDep) -> Response:
    if options.api_key is None:
        raise Unsupported("This server wants no key, so there is nothing to log in to.")
    if not is_key(body.password.encode(), options.api_key):
        raise KeyRequired("Incorrect username or password.", hint="The password is Lodger's API key.")
    return json_response({"access_token": options.api_key, "refresh_token": None, "token_type": "bearer"})


@router.get("/v1/models", summary="Models that serve")
async def list_models(service: ServiceDep, options: OptionsDep) -> Response:
    rows = [listing(model, options.address) for model in service.models() if model.state in _SERVING]
    return json_response({"object": "list", "data": rows})


@router.post("/v1/models", summary="Launch a model", dependencies=[AdminOnly])
async def launch(body: LaunchRequest, service: ServiceDep, wait_ready: bool = True) -> Response:
    spec = body.spec({model.uid for model in service.models()})
    status = await service.launch(spec, wait=wait_ready)
    return json_response({"model_uid": status.uid, "notes": list(status.spec.notes)})


@router.get("/v1/models/instances", summary="Every model that was asked for, failed ones too")
async def instances(service: ServiceDep, options: OptionsDep, model_name: str = "", model_uid: str = "") -> Response:
    found = [model for model in service.models() if _matches(model, model_name, model_uid)]
    return json_response([_instance(model, options.address) for model in found])


@router.get("/v1/models/{uid}", summary="Describe a model")
async def describe(uid: str, service: ServiceDep, options: OptionsDep) -> Response:
    try:
        model = service.model(uid)
    except UnknownModel as error:
        return error_response(_unknown(uid, error), status=400)
    if model.state == "failed":
        reason = model.error.message if model.error else "its worker gave no reason"
        raise ModelFailed(f"Model {uid} failed: {reason}", hint=model.error.hint if model.error else None)
    if model.state not in _SERVING:
        raise ModelLoading(f"Model {uid} is {model.state} ({model.progress:.0%}).", retry_after=30)
    return json_response({"id": uid} | description(model, options.address))


@router.delete("/v1/models/{uid}", summary="Terminate a model", dependencies=[AdminOnly])
async def terminate(uid: str, service: ServiceDep) -> Response:
    try:
        await service.terminate(uid)
    except UnknownModel as error:
        return error_response(_unknown(uid, error), status=400)
    return json_response(None)


@router.post("/v1/models/{uid}/cancel", summary="Give up a launch", dependencies=[AdminOnly])
async def cancel(uid: str, service: ServiceDep) -> Response:
    if _state(service, uid) != "loading":
        raise InvalidRequest(f"Model {uid} is not being launched.")
    await service.terminate(uid)
    return json_response(None)


@router.post("/v1/models/{uid}/requests/{request_id}/abort", summary="Abort a request that carries a request_id")
async def abort(uid: str, request_id: str, service: ServiceDep, running: RunningDep, body: AbortRequest) -> Response:
    try:
        service.model(uid)
    except UnknownModel as error:
        return error_response(_unknown(uid, error), status=400)
    found = running.abort(Name(uid, request_id), body.block_duration or 0.0)
    return json_response({"msg": "DONE" if found else "NOT_FOUND"})


@router.get("/v1/models/{uid}/progress", summary="How far a launch is")
async def progress(uid: str, service: ServiceDep) -> Response:
    found = [model for model in service.models() if model.uid == uid]
    done = 1.0 if found and found[0].state in _SERVING else found[0].progress if found else 0.0
    stage = "launching" if found else "pending"
    return json_response({"progress": done, "stage": stage, "download_files": [], "replicas": []})


@router.get("/v1/models/{uid}/replicas", summary="The copies of a model")
async def replicas(uid: str, service: ServiceDep, options: OptionsDep) -> Response:
    found = [model for model in service.models() if model.uid == uid]
    rows = [row | {"model_address": options.address} for model in found for row in _replicas(model, options.address)]
    return json_response(rows)


@router.get("/v1/models/{uid}/events", summary="What happened to a model")
async def events(uid: str, service: ServiceDep) -> Response:
    return json_response([event for model in service.models() if model.uid == uid for event in _events(model)])


@router.get("/v1/address", summary="Where this is")
async def address(options: OptionsDep) -> Response:
    return json_response(options.address)


@router.get("/v1/supervisor", summary="Where this is")
async def supervisor(options: OptionsDep) -> Response:
    return json_response({"supervisor_ip": options.address})


@router.get("/v1/cluster/version", summary="Lodger's version")
async def version() -> Response:
    return json_response({"version": __version__, "full-revisionid": None})


@router.get("/v1/cluster/devices", summary="How many GPUs serve")
async def devices(service: ServiceDep) -> Response:
    return json_response(sum(plan.device.kind == "cuda" for plan in (await service.status()).plan))


@router.get("/v1/cluster/info", summary="Supervisor and worker, with the GPU's memory")
async def cluster_info(service: ServiceDep, options: OptionsDep, detailed: bool = False) -> Response:
    gpus = [plan.device for plan in (await service.status()).plan if plan.device.kind == "cuda"]
    node: dict[str, Any] = {
        "ip_address": options.address,
        "gpu_count": len(gpus),
        "gpu_vram_total": sum(gpu.total for gpu in gpus),
    }
    if detailed:
        node |= {"gpu_vram_available": sum(gpu.free for gpu in gpus), "software_version": __version__}
    return json_response([{"node_type": "Supervisor"} | node, {"node_type": "Worker"} | node])


@router.get("/v1/workers", summary="What runs")
async def workers(service: ServiceDep, options: OptionsDep) -> Response:
    models = {
        row["replica_model_uid"]: description(model, options.address)
        for model in service.models()
        if model.state in _SERVING
        for row in _replicas(model, options.address)
    }
    return json_response([{"work-ip": options.address, "models": models}])


@router.get("/status", summary="Uptime, and memory by device")
async def status(service: ServiceDep, options: OptionsDep) -> Response:
    now = await service.status()
    memory = {
        "cpu" if plan.device.kind == "cpu" else f"gpu-{plan.device.id.partition(':')[2]}": {
            "name": plan.device.name,
            "memory_total": plan.device.total,
            "memory_available": plan.device.free,
            "memory_used": plan.device.total - plan.device.free,
        }
        for plan in now.plan
    }
    uptime = int(time.time() - now.started)
    return json_response({"uptime": uptime, "workers": {options.address: {"status": memory}}})


def _matches(model: ModelStatus, name: str, uid: str) -> bool:
    """Clients send name and uid together, or one of them, or none; a uid is enough."""
    return model.uid == uid if uid else name in ("", model_name(model))


def _instance(model: ModelStatus, address: str) -> dict[str, Any]:
    return {
        "model_name": model_name(model),
        "model_uid": model.uid,
        "model_version": None,
        "model_ability": abilities(model),
        "replica": len(model.devices) or model.spec.replicas,
        "status": _STATUSES[model.state],
        "instance_created_ts": int(model.created),
        "n_worker": 1,
        "replica_statuses": _replicas(model, address),
    }


def _replicas(model: ModelStatus, address: str) -> list[dict[str, Any]]:
    """One row for each; one for the whole model before it has a place."""
    copies: tuple[ModelStatus | ReplicaStatus, ...] = model.replicas or (model,)
    return [
        {
            "replica_id": number,
            "replica_model_uid": f"{model.uid}-rep{number}",
            "worker_address": address,
            "accelerators": accelerators(one.device),
            "status": _STATUSES[one.state],
            "model_state": one.state,
            "created_ts": int(model.created),
            "error_message": _reason(one),
            "replica_uid": None,
            "gpu_idx": None,
        }
        for number, one in enumerate(copies)
    ]


def _events(model: ModelStatus) -> list[dict[str, Any]]:
    created = int(model.created)
    launched = {"event_type": "INFO", "event_ts": created, "event_content": "Launch model"}
    reason = _reason(model)
    failed = [{"event_type": "ERROR", "event_ts": created, "event_content": reason}] if reason else []
    return [launched, *failed]


def _reason(model: ModelStatus | ReplicaStatus) -> str | None:
    error = model.error
    return None if error is None else f"{error.message} {error.hint}" if error.hint else error.message


def _state(service: Service, uid: str) -> str | None:
    return next((model.state for model in service.models() if model.uid == uid), None)


def _unknown(uid: str, error: UnknownModel) -> UnknownModel:
    """In Xinference's words, which its users search for, with the uids that there are."""
    return UnknownModel(f"Model not found in the model list, uid: {uid}.", hint=error.text)
