"""The options of lodger.yaml, and mistakes in them said so that they can be mended."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from lodger.catalogue.repository import HubName
from lodger.config.document import Document, Place
from lodger.errors import ConfigProblem
from lodger.settings import DEFAULT_HOST, DEFAULT_PORT
from lodger.tasks import Kind
from lodger.units import parse_duration, parse_size


def _size(value: object) -> object:
    """Bytes; sizes are written like 14GiB."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError("should be a size such as 14GiB or 512MiB")
    try:
        return parse_size(value)
    except ConfigProblem:
        raise ValueError("should be a size such as 14GiB or 512MiB") from None


def _duration(value: object) -> object:
    """Seconds; times are written like 10m."""
    mistake = "should be a time such as 10m, 90s or 2h"
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(mistake)
    try:
        return parse_duration(value)
    except ConfigProblem:
        raise ValueError(mistake) from None


def _gpus(value: object) -> object:
    """The numbers in ``0``, ``[0, 1]`` or ``auto``, which is none in particular."""
    numbers = [] if value == "auto" else value if isinstance(value, list) and value else [value]
    if any(isinstance(number, bool) or not isinstance(number, int) or number < 0 for number in numbers):
        raise ValueError("should be auto, a GPU's number such as 0, or several such as [0, 1]")
    return tuple(sorted(set(numbers)))


def _text(value: object) -> object:
    """A number where text is meant, as in ``size_in_billions: 4``."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Size = Annotated[int, BeforeValidator(_size), Field(ge=0)]
Duration = Annotated[float, BeforeValidator(_duration), Field(gt=0)]
Gpus = Annotated[tuple[int, ...], BeforeValidator(_gpus)]
Text = Annotated[str, BeforeValidator(_text), Field(min_length=1)]
Device = Annotated[str, StringConstraints(pattern=r"^(cpu|cuda(:\d+)?)$")]
Dtype = Annotated[str, StringConstraints(pattern=r"^(float32|bfloat16|float16)$")]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelOptions(_Options):
    """One model; the fields of `ModelSpec`."""

    path: Text | None = None
    name: Text | None = None
    kind: Kind | None = None
    size_in_billions: Text | None = None
    context_length: Annotated[int, Field(ge=1)] | None = None
    memory: Size | None = None
    dtype: Dtype | None = None
    quantization: Literal["int8"] | None = None
    engine: Text | None = None
    gpu: Gpus = ()
    replicas: Annotated[int, Field(ge=1)] = 1
    description: Text | None = None
    sleep_after: Duration | None = None


class FileOptions(_Options):
    """The whole file."""

    models: Annotated[dict[str, ModelOptions], Field(min_length=1)]
    host: Text = DEFAULT_HOST
    port: Annotated[int, Field(ge=0, le=65535)] = DEFAULT_PORT  # 0: any free one
    api_key: Text | None = None
    reserve: Size | None = None
    device: Device | None = None
    home: Text | None = None
    hub: HubName | None = None


def validate(document: Document) -> FileOptions:
    """The options in `document`.

    Raises:
        ConfigProblem: all mistakes, in the order of their lines.
    """
    try:
        return FileOptions.model_validate(_normal(document.value))
    except ValidationError as error:
        found = sorted(error.errors(), key=lambda one: document.lines.get(one["loc"], 1))
        raise ConfigProblem(
            " ".join(f"{document.where(one['loc'])}: {_said(one)}" for one in found), hint=_hint(found[0])
        ) from None


def _normal(value: dict[str, Any]) -> dict[str, Any]:
    """``uid: folder`` and ``uid:`` (a name that the catalogue knows) as options."""
    models = value.get("models")
    if not isinstance(models, dict):
        return value
    return {**value, "models": {uid: _model(model) for uid, model in models.items()}}


def _model(model: object) -> object:
    return {"path": model} if isinstance(model, str) else {} if model is None else model


def _said(error: ErrorDetails) -> str:
    place = error["loc"]
    name = ".".join(map(str, place))
    match error["type"]:
        case "extra_forbidden":
            return f"unknown option {name!r}."
        case "missing" | "too_short" if place == ("models",):
            return "no models are named."
        case "value_error":
            said = str(error["ctx"]["error"])
        case "string_pattern_mismatch":
            said = f"should be one of {', '.join(_CHOICES[str(place[-1])])}"
        case _:
            said = error["msg"].removeprefix("Input ")
    shown = "" if place[-1] == "api_key" else f", not {_short(error['input'])}"
    return f"{name} {said}{shown}."


_CHOICES = {"device": ("cpu", "cuda", "cuda:0"), "dtype": ("float32", "bfloat16", "float16")}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hint(error: ErrorDetails) -> str:
    place: Place = error["loc"]
    if place == ("models",):
        return "Write 'models:', and below it 'UID: FOLDER' for each model."
    known = FileOptions.model_fields if len(place) == 1 else ModelOptions.model_fields
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), known, n=1)
        return f"Did you mean {near[0]!r}?" if near else f"Options here: {', '.join(known)}."
    if len(place) == 2:
        return f"Write a folder, or options: {', '.join(ModelOptions.model_fields)}."
    return "Mend it there, or take the line out for the default."
