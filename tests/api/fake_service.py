"""A `Service` in this process: echo models behind the gateway's own rules, and scripts where a test needs a timing."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec

from lodger.budget import Budget
from lodger.catalogue.facts import ModelFacts
from lodger.device.view import DeviceView
from lodger.engines.base import LoadRequest
from lodger.engines.echo import EchoEngine, EchoModel
from lodger.errors import (
    DoesNotFit,
    ErrorInfo,
    FolderMissing,
    InvalidRequest,
    ModelFailed,
    ModelLoading,
    UidTaken,
    UnknownModel,
)
from lodger.plan.values import ModelPlan, Plan
from lodger.service import ModelStatus, ServerStatus, State, WorkerStatus
from lodger.spec import ModelSpec, Registration
from lodger.tasks import Delta, EmbedResult, EmbedTask, GenerateTask, Kind, RerankResult, RerankTask, TokensTask

GUIDE = {"qwen3-4b-chat-local": "chat", "bge-m3-local": "embedding", "bge-reranker-v2-m3-local": "rerank"}
DEVICE = DeviceView(id="cuda:0", kind="cuda", name="NVIDIA A100", total=80 * 2**30, free=14 * 2**30)
CATALOGUE = [
    Registration(
        kind="chat",
        family={
            "model_name": "Qwen3-Instruct",
            "model_lang": [],
            "model_ability": ["chat", "tools"],
            "architectures": ["Qwen3ForCausalLM"],
            "model_specs": [
                {"model_format": "pytorch", "quantization": "none", "model_size_in_billions": 4, "cache_status": True},
                {"model_format": "awq", "quantization": "Int4", "model_size_in_billions": 8, "cache_status": False},
            ],
        },
        builtin=True,
    ),
    Registration(
        kind="embedding",
        family={
            "model_name": "bge-m3",
            "language": [],
            "dimensions": 1024,
            "model_specs": [{"model_format": "pytorch", "quantization": "none", "cache_status": True}],
        },
        builtin=True,
    ),
    Registration(
        kind="rerank",
        family={
            "model_name": "bge-reranker-v2-m3",
            "language": [],
            "model_specs": [{"model_format": "pytorch", "quantization": "none", "cache_status": False}],
        },
        builtin=True,
    ),
]
Script = Callable[[GenerateTask], AsyncGenerator[Delta, None]]


def facts_of(kind: Kind, name: str) -> ModelFacts:
    return ModelFacts(
        path=f"/models/{name}",
        kind=kind,
        architecture="Qwen3ForCausalLM" if kind == "chat" else "XLMRobertaModel",
        model_type="qwen3" if kind == "chat" else "xlm-roberta",
        parameters=4_022_468_096 if kind == "chat" else 567_754_752,
        stored_bytes={"float32": 4},
        layers=2,
        hidden_size=1024,
        intermediate_size=4096,
        attention_heads=16,
        kv_heads=16,
        head_dim=64,
        vocab_size=250_002,
        context_length=8192,
        normalize=kind == "embedding",
        dimensions=1024 if kind == "embedding" else None,
        rerank_method="cross-encoder" if kind == "rerank" else None,
        token_heads=("sparse", "colbert") if name == "bge-m3" else (),
        chat_template=kind == "chat",
        tools=kind == "chat",
    )


class FakeService:
    """Keeps the promises of `lodger.service.Service` without processes.

    Attributes:
        script: answers generations instead of the echo models.
        tasks: every task that was asked for.
        full: models that cannot wake.
        open: generations begun and not ended yet.
        loading: launches without `wait` stay in this state until `finish` is called.
    """

    def __init__(self, models: dict[str, Kind] | None = None) -> None:
        self._status: dict[str, ModelStatus] = {}
        self._models: dict[str, EchoModel] = {}
        self.script: Script | None = None
        self.tasks: list[object] = []
        self.open = 0
        self.full: set[str] = set()
        self.registered: list[Registration] = []
        self.persisted: set[str] = set()
        for uid, kind in (models if models is not None else GUIDE).items():
            self.add(ModelSpec(uid=uid, name=uid.removesuffix("-local"), kind=kind))  # type: ignore[arg-type]

    def add(
        self, spec: ModelSpec, state: State = "ready", error: ErrorInfo | None = None, **facts_too: Any
    ) -> ModelStatus:
        facts = msgspec.structs.replace(facts_of(spec.kind or "chat", spec.name or "folder"), **facts_too)
        limit = spec.context_length or facts.context_length
        self._status[spec.uid] = ModelStatus(
            spec=spec,
            state=state,
            created=1_795_354_670.5,
            facts=facts,
            device="cuda:0",
            dtype="bfloat16",
            context_length=limit,
            progress=1.0 if state == "ready" else 0.25,
            error=error,
            memory={"weights": 2**30},
        )
        budget = Budget(weights=0, context_length=limit)
        request = LoadRequest(spec=spec, facts=facts, budget=budget, device="cuda:0", dtype=None)
        self._models[spec.uid] = EchoEngine("cuda:0", word_seconds=0).load(request, lambda fraction: None)
        return self._status[spec.uid]

    def put(self, status: ModelStatus) -> None:
        """A model is as this says."""
        self._status[status.uid] = status

    def finish(self, uid: str, state: State = "ready") -> None:
        self._status[uid] = msgspec.structs.replace(self._status[uid], state=state, progress=1.0)

    def generate(self, task: GenerateTask) -> AsyncGenerator[Delta, None]:
        return self._generate(task)

    async def _generate(self, task: GenerateTask) -> AsyncGenerator[Delta, None]:
        self.tasks.append(task)
        echo = self._ready(task.model)
        deltas = self.script(task) if self.script else echo.generate(task)
        self.open += 1
        try:
            async for delta in deltas:
                yield delta
        finally:
            self.open -= 1

    async def embed(self, task: EmbedTask) -> EmbedResult:
        self.tasks.append(task)
        return await self._ready(task.model).embed(task)

    async def rerank(self, task: RerankTask) -> RerankResult:
        self.tasks.append(task)
        return await self._ready(task.model).rerank(task)

    async def tokens(self, task: TokensTask) -> tuple[tuple[str, ...], ...]:
        self.tasks.append(task)
        return await self._ready(task.model).tokens(task)

    async def launch(self, spec: ModelSpec, *, wait: bool = True) -> ModelStatus:
        if spec.uid in self._status:
            raise UidTaken(f"uid {spec.uid} is taken.")
        if spec.path and spec.path.startswith("/missing"):
            raise FolderMissing(f"There is no folder {spec.path}.")
        return self.add(spec, "ready" if wait else "loading")

    async def terminate(self, uid: str) -> None:
        self.model(uid)
        self.forget(uid)

    def forget(self, uid: str) -> None:
        """There is no such model any more."""
        del self._status[uid], self._models[uid]

    async def sleep(self, uid: str) -> ModelStatus:
        self.model(uid)
        self._status[uid] = msgspec.structs.replace(self._status[uid], state="asleep", memory={"host": 2**29})
        return self._status[uid]

    async def wake(self, uid: str) -> ModelStatus:
        if uid in self.full:
            raise DoesNotFit(f"{uid} needs at least 1.00 GiB.", hint="Wait.")
        self._status[uid] = msgspec.structs.replace(self.model(uid), state="ready", memory={"weights": 2**30})
        return self._status[uid]

    def models(self) -> list[ModelStatus]:
        return list(self._status.values())

    def model(self, uid: str) -> ModelStatus:
        if uid not in self._status:
            raise UnknownModel(f"There is no model {uid!r}.", hint=f"There are: {', '.join(self._status)}.")
        return self._status[uid]

    async def status(self) -> ServerStatus:
        return ServerStatus(
            version="0",
            pid=1,
            started=time.time(),
            address="127.0.0.1:9997",
            home="/home/me/.lodger",
            plan=await self.plan(()),
            workers=(WorkerStatus(device="cuda:0", pid=2, state="up", used=2**30, uptime=60.0),),
            models=tuple(self.models()),
        )

    async def plan(self, specs: tuple[ModelSpec, ...]) -> tuple[Plan, ...]:
        planned = (
            ModelPlan(
                uid=spec.uid, facts=facts_of(spec.kind or "chat", "x"), dtype="bfloat16", budget=Budget(weights=2**30)
            )
            for spec in specs
        )
        return (Plan(device=DEVICE, reserve=2**30, process=2**29, models=tuple(planned)),)

    async def registrations(self, kind: Kind) -> list[Registration]:
        return [known for known in [*CATALOGUE, *self.registered] if known.kind == kind]

    async def register(self, kind: Kind, model: str, *, persist: bool) -> None:
        self.registered.append(Registration(kind=kind, family=msgspec.json.decode(model)))
        self.persisted |= {self.registered[-1].name} if persist else set()

    async def unregister(self, kind: Kind, name: str) -> None:
        left = [known for known in self.registered if (known.kind, known.name) != (kind, name)]
        if left == self.registered:
            raise InvalidRequest(f"Model {name} not found.")
        self.registered = left

    def logs(self, uid: str | None, lines: int) -> list[str]:
        return [f"line of {uid or 'the server'}"] * min(lines, 3)

    def _ready(self, uid: str) -> EchoModel:
        model = self.model(uid)
        if model.state == "loading":
            raise ModelLoading(f"Model {uid} is loading ({model.progress:.0%}).")
        if model.state == "failed":
            raise ModelFailed(f"Model {uid} failed: {model.error.message if model.error else ''}")
        return self._models[uid]
