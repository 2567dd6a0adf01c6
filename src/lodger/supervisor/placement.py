"""What a model is, on which device it goes and what it is granted there. Everything here blocks: call it in threads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from lodger.catalogue.identify import identify
from lodger.device.probe import choose_device, probe_devices
from lodger.device.view import DeviceView
from lodger.plan.planner import default_reserve, plan
from lodger.plan.values import Candidate, Plan
from lodger.spec import ModelSpec


class Placement:
    """Answers by looking at folders and devices.

    Args:
        models: folder that model names are looked up in.
        device: "cpu", "cuda:0", ...; None for the best that the machine has.
        reserve: bytes to leave to others; None for the planner's own.
    """

    def __init__(self, models: Path, *, device: str | None, reserve: int | None) -> None:
        self._models = models
        self._device = device
        self._reserve = reserve

    def candidate(self, spec: ModelSpec) -> Candidate:
        """The model that `spec` means, its folder found and read.

        Raises:
            ModelProblem.
        """
        return Candidate(*identify(spec, self._models))

    def devices(self, our_pids: Collection[int]) -> tuple[DeviceView, ...]:
        """Every device of the machine, measured now."""
        return probe_devices(our_pids)

    def choose(self, views: Sequence[DeviceView]) -> DeviceView:
        """The one to put models on.

        Raises:
            ConfigProblem: the machine has no such device as was asked for.
        """
        return choose_device(views, self._device)

    def reserve(self, view: DeviceView) -> int:
        return default_reserve(view) if self._reserve is None else self._reserve

    def plan(self, view: DeviceView, candidates: Sequence[Candidate]) -> Plan:
        """Grants for all of them; those that hold something keep it.

        Raises:
            DoesNotFit, Unsupported.
        """
        return plan(view, tuple(candidates), reserve=self._reserve)
