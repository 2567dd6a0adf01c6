"""What a model is, where it goes and what it is granted there. Everything here blocks: call it in threads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from msgspec.structs import replace

from lodger.catalogue.identify import identify
from lodger.catalogue.read_ahead import read_ahead
from lodger.device.probe import probe_devices, usable_devices
from lodger.device.view import DeviceView
from lodger.hub.base import Report
from lodger.hub.prepare import loadable
from lodger.paths import Home
from lodger.plan.planner import default_reserve
from lodger.plan.spread import Held, spread
from lodger.plan.values import Candidate, Plan
from lodger.spec import ModelSpec


class Placement:
    """Answers by looking at folders and devices.

    Args:
        home: where model names are looked up, and where what must be converted goes if its own folder is read-only.
        device: "cpu", "cuda:0", "cuda" for any GPU, ...; None for every GPU that the machine has, else its CPU.
        reserve: bytes to leave to others on each device; None for the planner's own.
    """

    def __init__(self, home: Home, *, device: str | None, reserve: int | None) -> None:
        self._home = home
        self._device = device
        self._reserve = reserve

    def candidate(self, spec: ModelSpec) -> Candidate:
        """The model that `spec` means, its folder found and read.

        Raises:
            ModelProblem.
        """
        return Candidate(*identify(spec, self._home.models))

    def loadable(self, spec: ModelSpec, report: Report) -> Candidate:
        """The same with facts of a folder that can be loaded: pickled weights are converted first, which takes as long
        as reading and writing them. Nothing is ever fetched here; what is there is read into RAM meanwhile.

        Raises:
            ModelProblem, NotEnoughDisk, SetupProblem.
            Exception: whatever `report` raises; it ends the conversion.
        """
        one = self.candidate(spec)
        folder = loadable(Path(one.facts.path), self._home, report)
        read_ahead(folder)
        if one.facts.weights_format == "safetensors" and str(folder) == one.facts.path:
            return one
        return Candidate(one.spec, identify(replace(one.spec, path=str(folder)), self._home.models)[1])

    def devices(self, our_pids: Collection[int]) -> tuple[DeviceView, ...]:
        """Every device of the machine, measured now."""
        return probe_devices(our_pids)

    def usable(self, views: Sequence[DeviceView]) -> tuple[DeviceView, ...]:
        """Those to put models on.

        Raises:
            ConfigProblem: the machine has no such device as was asked for.
        """
        return usable_devices(views, self._device)

    def reserve(self, view: DeviceView) -> int:
        return default_reserve(view) if self._reserve is None else self._reserve

    def plan(self, views: Sequence[DeviceView], held: Held, new: Sequence[Candidate]) -> tuple[Plan, ...]:
        """The plan of each device that has a model then; what is `held` there stays.

        Raises:
            DoesNotFit, Unsupported.
        """
        return spread(views, held, new, reserve=self._reserve)
