"""What the GPU probe tells, against a module that answers as pynvml does."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lodger.device.nvml import probe_gpus
from lodger.device.view import DeviceView, Neighbour
from lodger.units import GIB


class NVMLError(Exception):
    pass


class FakeNvml:
    """Two cards; `silent` are the functions that this driver refuses."""

    NVMLError = NVMLError

    def __init__(self, *, silent: tuple[str, ...] = (), processes: dict[int, int | None] | None = None) -> None:
        self.silent = silent
        self.processes = {900: 9 * GIB, 800: 2 * GIB} if processes is None else processes
        self.open = 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in object.__getattribute__(self, "silent"):
            return self._refuse
        return object.__getattribute__(self, name)

    def _refuse(self, *args: Any) -> None:
        raise NVMLError

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.65"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle}{handle}ab"

    def nvmlDeviceGetName(self, handle: int) -> bytes:  # noqa: N802
        return f"NVIDIA A100 #{handle}".encode()  # old versions answer bytes

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=80 * GIB, free=(14 + handle) * GIB)

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> list[int]:  # noqa: N802
        return [8, 0]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes.items()]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=900, usedGpuMemory=None)]


def who(pid: int) -> tuple[str | None, str | None]:
    return ("alice", "python") if pid == 900 else (None, None)


def probed(nvml: FakeNvml, **options: Any) -> tuple[DeviceView, ...]:
    views = probe_gpus(nvml=nvml, who=who, **options)
    assert nvml.open == 0  # what was opened is closed
    return views


def test_a_card_with_neighbours() -> None:
    first, second = probed(FakeNvml())
    assert first == DeviceView(
        id="cuda:0",
        kind="cuda",
        name="NVIDIA A100 #0",
        total=80 * GIB,
        free=14 * GIB,
        neighbours=(Neighbour(900, 9 * GIB, "alice", "python"), Neighbour(800, 2 * GIB)),
        driver="580.65",
        compute_capability=(8, 0),
    )
    assert (second.id, second.free) == ("cuda:1", 15 * GIB)


def test_our_workers_are_not_neighbours() -> None:
    first, _ = probed(FakeNvml(), our_pids=(900,))
    assert first.ours == 9 * GIB
    assert [neighbour.pid for neighbour in first.neighbours] == [800]


def test_a_size_that_the_driver_keeps_to_itself_stays_unknown() -> None:
    first, _ = probed(FakeNvml(processes={700: None}))
    assert first.neighbours == (Neighbour(700, None), Neighbour(900, None, "alice", "python"))


def test_no_driver_means_no_gpus() -> None:
    nvml = FakeNvml(silent=("nvmlInit",))
    assert probe_gpus(nvml=nvml) == ()


@pytest.mark.parametrize(
    ("silent", "lost"),
    [
        ("nvmlDeviceGetComputeRunningProcesses", "neighbours"),
        ("nvmlDeviceGetCudaComputeCapability", "compute_capability"),
        ("nvmlSystemGetDriverVersion", "driver"),
    ],
)
def test_one_unknown_fact_does_not_hide_the_others(silent: str, lost: str) -> None:
    first, _ = probed(FakeNvml(silent=(silent,)))
    assert first.free == 14 * GIB
    assert getattr(first, lost) in (None, (), (Neighbour(900, None, "alice", "python"),))


def test_a_card_whose_memory_is_not_told_is_left_out() -> None:
    assert probed(FakeNvml(silent=("nvmlDeviceGetMemoryInfo",))) == ()


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (["1"], ["cuda:0 #1"]),
        (["1", "0"], ["cuda:0 #1", "cuda:1 #0"]),
        (["GPU-11"], ["cuda:0 #1"]),
        (["0", "7", "1"], ["cuda:0 #0"]),  # CUDA stops at the first that it does not know
        (["-1"], []),
        ([], []),
    ],
)
def test_cards_are_numbered_as_cuda_shows_them(visible: list[str], seen: list[str]) -> None:
    views = probed(FakeNvml(), visible=visible)
    assert [f"{view.id} {view.name.rpartition(' ')[2]}" for view in views] == seen


def test_nobody_is_named_from_inside_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    from lodger.device import nvml

    answer: Callable[[], bool] = lambda: False  # noqa: E731
    monkeypatch.setattr(nvml, "_in_host_namespace", answer)
    import os

    assert nvml.local_process(os.getpid()) == (None, None)
    monkeypatch.setattr(nvml, "_in_host_namespace", lambda: True)
    user, command = nvml.local_process(os.getpid())
    assert user
    assert command
    assert nvml.local_process(2**22 + 1) == (None, None)  # nobody has this pid
