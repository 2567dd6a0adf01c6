"""Lodger's own API: health, metrics, status, launch and terminate by `ModelSpec`, sleep and wake, plan, logs.

It speaks the values of `lodger.service` as JSON; the command line is its client.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from pydantic import WithJsonSchema
from starlette.responses import Response

from lodger import __version__, metrics
from lodger.api.bodies import Body, json_response
from lodger.api.context import ServiceDep
from lodger.api.security import AdminOnly
from lodger.errors import InvalidRequest, MalformedBody
from lodger.spec import ModelSpec, check_uid

router = APIRouter(tags=["lodger"])

Spec = Annotated[dict[str, Any], WithJsonSchema(msgspec.json.schema_components([ModelSpec])[1]["ModelSpec"])]


class PlanRequest(Body):
    """POST /lodger/plan."""

    models: list[Spec]


@router.get("/healthz", summary="Whether the server answers at all")
async def healthz() -> Response:
    return json_response({"status": "ok", "version": __version__})


@router.get("/readyz", summary="200 when every model that was asked for serves, else 503")
async def readyz(service: ServiceDep) -> Response:
    states = {model.uid: model.state for model in service.models()}
    ready = all(model.serves for model in service.models())
    return json_response({"ready": ready, "models": states}, status=200 if ready else 503)


@router.get("/metrics", summary="Prometheus metrics")
async def prometheus(service: ServiceDep) -> Response:
    return Response(metrics.render(service.models()), media_type=metrics.CONTENT_TYPE)


@router.get("/lodger/status", summary="The whole server", dependencies=[AdminOnly])
async def status(service: ServiceDep) -> Response:
    return json_response(await service.status())


@router.get("/lodger/models", summary="Every model, whatever its state", dependencies=[AdminOnly])
async def models(service: ServiceDep) -> Response:
    return json_response(service.models())


@router.get("/lodger/models/{uid}", summary="One model, whatever its state", dependencies=[AdminOnly])
async def model(uid: str, service: ServiceDep) -> Response:
    return json_response(service.model(uid))


@router.post("/lodger/models", summary="Launch a model", dependencies=[AdminOnly])
async def launch(body: Spec, service: ServiceDep, wait: bool = True) -> Response:
    return json_response(await service.launch(_spec(body), wait=wait))


@router.delete("/lodger/models/{uid}", summary="Terminate a model, or forget a failed one", dependencies=[AdminOnly])
async def terminate(uid: str, service: ServiceDep) -> Response:
    await service.terminate(uid)
    return json_response(None)


@router.post(
    "/lodger/models/{uid}/sleep", summary="Give a model's memory back until it is asked", dependencies=[AdminOnly]
)
async def sleep(uid: str, service: ServiceDep) -> Response:
    return json_response(await service.sleep(uid))


@router.post("/lodger/models/{uid}/wake", summary="Have a model that sleeps serve again", dependencies=[AdminOnly])
async def wake(uid: str, service: ServiceDep) -> Response:
    return json_response(await service.wake(uid))


@router.post("/lodger/plan", summary="What would happen if these were launched", dependencies=[AdminOnly])
async def plan(body: PlanRequest, service: ServiceDep) -> Response:
    return json_response(await service.plan(tuple(map(_spec, body.models))))


@router.get("/lodger/logs", summary="Last log lines of one model, or of the server", dependencies=[AdminOnly])
async def logs(
    service: ServiceDep, uid: str | None = None, lines: Annotated[int, Query(ge=0, le=100_000)] = 100
) -> Response:
    return json_response(service.logs(uid, lines))


def _spec(value: dict[str, Any]) -> ModelSpec:
    """
    Raises:
        MalformedBody: a field is missing or has the wrong type; names it.
        InvalidRequest: the uid cannot be used, or there is neither name nor path.
    """
    try:
        spec = msgspec.convert(value, ModelSpec)
    except msgspec.ValidationError as error:
        raise MalformedBody(f"Not a model: {error}.") from None
    if not (spec.name or spec.path):
        raise InvalidRequest("A model needs a name or a path.", param="name")
    check_uid(spec.uid)
    return spec
