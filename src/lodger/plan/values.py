"""The plan as a value: what each model is granted, part by part, on one device."""

from __future__ import annotations

import msgspec

from lodger.budget import Budget
from lodger.catalogue.facts import ModelFacts
from lodger.device.view import DeviceView
from lodger.spec import ModelSpec


class Candidate(msgspec.Struct, frozen=True):
    """A model to place: what was asked for and what its folder says."""

    spec: ModelSpec
    facts: ModelFacts
    held: ModelPlan | None = None  # of a model that is loaded: it keeps what it was granted


class ModelPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one model is granted."""

    uid: str
    facts: ModelFacts
    dtype: str  # of weights and activations on the device
    quantization: str | None = None  # of the layers' weights: "int8", "int4"
    budget: Budget
    kv_tokens: int = 0  # tokens that `budget.kv_cache` holds
    shares: str | None = None  # uid of a model of the same folder: `budget.weights` are those that it has loaded
    notes: tuple[str, ...] = ()  # what was decided otherwise than one might expect, for a person


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One plan for all models of a device; the order of starting does not matter."""

    device: DeviceView
    reserve: int  # bytes left to others
    process: int  # bytes of the worker itself: libraries, and on a GPU its context
    steps: int = 0  # on a GPU: what the largest step takes, which all share, and what all unfinished requests hold
    models: tuple[ModelPlan, ...]

    @property
    def needed(self) -> int:
        return self.process + self.steps + sum(map(self.added, self.models))

    def added(self, model: ModelPlan) -> int:
        """Bytes that `model` takes beyond what the others have: weights that are shared count once, and on a GPU
        activations in `steps`."""
        own = model.budget.kept if self.device.kind == "cuda" else model.budget.total
        return own - (model.budget.weights if self.is_shared(model) else 0)

    def is_shared(self, model: ModelPlan) -> bool:
        """Whether the weights of `model` count for another one."""
        return any(other.uid == model.shares for other in self.models)

    @property
    def available(self) -> int:
        """Bytes that we may hold: free now, and what we hold already, less the reserve."""
        return self.device.free + self.device.ours - self.reserve

    @property
    def left(self) -> int:
        return self.available - self.needed
