"""What should run: one `ModelSpec` per model, from lodger.yaml, the command line or the API."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from lodger.errors import InvalidRequest
from lodger.tasks import Kind

_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A model that someone wants served. Unset fields are read from the folder or decided by the plan."""

    uid: str
    name: str | None = None  # a catalogue or hub name; resolved to a folder when `path` is unset
    path: str | None = None  # a model folder
    kind: Kind | None = None
    size_in_billions: str | None = None  # picks among the sizes of one name, as Xinference's flag does
    context_length: int | None = None  # tokens of prompt and answer together
    memory: int | None = None  # most bytes this model may hold; None: what the plan gives
    memory_fraction: float | None = None  # vLLM's way to say it: of the whole device, in 0..1; the plan makes it bytes
    dtype: str | None = None  # "float32", "bfloat16", "float16"; None: what the device does best
    quantization: Literal["int8"] | None = None  # of the weights of decoders, made while loading; None: as they are
    engine: str | None = None  # any known name; see `lodger.engines`
    gpu: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()  # the GPUs it may go on, by number; none: any
    replicas: Annotated[int, msgspec.Meta(ge=1)] = 1  # copies, each on a GPU of its own
    description: str | None = None
    sleep_after: float | None = None  # seconds without a request after which it sleeps by itself; None: never
    notes: tuple[str, ...] = ()  # options understood but without effect here, said back to the caller


def check_uid(uid: str) -> str:
    """`uid` if every client can carry it (1 to 100 of A-Z a-z 0-9 . _ -, no ``___``).

    Raises:
        InvalidRequest: otherwise.
    """
    if not _UID.fullmatch(uid) or "___" in uid:
        raise InvalidRequest(
            f"model uid {uid!r} cannot be used: clients put it into URLs.",
            hint="Use 1 to 100 letters, digits, '.', '_' or '-', starting with a letter or digit.",
            param="model_uid",
        )
    return uid


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """A name that a model can be launched by: one of the catalogue's, or one that a user has registered."""

    kind: Kind
    family: dict[str, Any]  # Xinference's description of it: `model_name`, `model_specs` and more
    builtin: bool = False

    @property
    def name(self) -> str:
        return str(self.family["model_name"])
