"""Every message between the gateway and a worker, in one file.

A frame is a 4-byte big-endian length and one msgpack map tagged by `type`. `id` ties answers to their request; a worker
answers each `Load`, `Unload`, `Sleep`, `Wake`, `Embed`, `Rerank`, `Spell` with exactly one `Loaded`, `Done`, `Held`,
`Vectors`, `Scores`, `Spelt` or `Failed`, and each `Generate` with any number of deltas, of which the last of each
choice carries a finish reason and the last of all the usage, or with one `Failed`. Deltas of all requests that came
together are one `Tokens`: a message for each would cost both processes more than the tokens. A `Cancel` is answered by
nothing: the request just ends.
"""

from __future__ import annotations

import msgspec

from lodger.engines.base import LoadedInfo, LoadRequest
from lodger.errors import ErrorInfo
from lodger.tasks import Delta, EmbedResult, EmbedTask, GenerateTask, RerankResult, RerankTask, TokensTask

VERSION = 3  # gateway and worker of one Lodger only ever meet their own version; a difference is refused at Hello


# gateway -> worker
class Load(msgspec.Struct, frozen=True, tag="load"):
    id: int
    request: LoadRequest


class Unload(msgspec.Struct, frozen=True, tag="unload"):
    id: int
    uid: str


class Sleep(msgspec.Struct, frozen=True, tag="sleep"):
    id: int
    uid: str
    keep: bool  # the weights may stay in RAM


class Wake(msgspec.Struct, frozen=True, tag="wake"):
    id: int
    uid: str


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    id: int
    task: GenerateTask


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    id: int
    task: EmbedTask


class Rerank(msgspec.Struct, frozen=True, tag="rerank"):
    id: int
    task: RerankTask


class Spell(msgspec.Struct, frozen=True, tag="spell"):
    id: int
    task: TokensTask


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    id: int


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Finish nothing more, give everything back and exit 0."""


# worker -> gateway
class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First frame of a worker: it has its libraries loaded and takes requests."""

    version: int
    pid: int


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    id: int  # of the Load
    fraction: float


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    id: int
    info: LoadedInfo


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """In the order in which they came."""

    deltas: tuple[tuple[int, Delta], ...]  # each with the id of its request


class Vectors(msgspec.Struct, frozen=True, tag="vectors"):
    id: int
    result: EmbedResult


class Scores(msgspec.Struct, frozen=True, tag="scores"):
    id: int
    result: RerankResult


class Spelt(msgspec.Struct, frozen=True, tag="spelt"):
    id: int
    tokens: tuple[tuple[str, ...], ...]


class Done(msgspec.Struct, frozen=True, tag="done"):
    """An Unload is finished; its bytes are back."""

    id: int


class Held(msgspec.Struct, frozen=True, tag="held"):
    """A Sleep or Wake is finished."""

    id: int
    memory: dict[str, dict[str, int]]  # uid -> bytes by part, of every model of the worker: some share their weights


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    id: int
    error: ErrorInfo


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """Every second: bytes held, requests in work by uid. Sent by the loop that serves, so silence means it hangs."""

    used: int
    running: dict[str, int]


ToWorker = Load | Unload | Sleep | Wake | Generate | Embed | Rerank | Spell | Cancel | Shutdown
ToGateway = Hello | Progress | Loaded | Tokens | Vectors | Scores | Spelt | Done | Held | Failed | Heartbeat
