"""Python and the libraries that models run on, judged by their metadata: nothing is imported."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

from lodger import toolchain
from lodger.checks.base import Check
from lodger.device.view import DeviceView

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
OLDEST_DRIVER = {"13": 580, "12": 525}  # by CUDA major: NVIDIA's minor-version compatibility table
OLDEST_KERNELS = (8, 0)  # compute capability that our kernels need
_NAMED = ("torch", "transformers", "huggingface-hub", "modelscope-hub")  # each has a row of its own
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*([^;]*)")
_BOUND = re.compile(r"(>=|<=|==|<|>)\s*([0-9.]+)")

Versions = Callable[[str], str | None]  # of a distribution; None when it is not installed


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_python(version: tuple[int, int] | None = None) -> Check:
    found = version or sys.version_info[:2]
    inside = OLDEST_PYTHON <= found <= NEWEST_PYTHON
    oldest, newest = (".".join(map(str, one)) for one in (OLDEST_PYTHON, NEWEST_PYTHON))
    return Check(
        name="python",
        state="ok" if inside else "fail",
        measured=".".join(map(str, found)),
        expected=f"{oldest} to {newest}",
        hint=None if inside else f"Make the environment with a Python from {oldest} to {newest}.",
    )


def check_libraries(requirements: Sequence[str] | None = None, version_of: Versions = installed) -> Iterator[Check]:
    """torch, transformers and the hubs' SDKs each, and all others that Lodger requires together."""
    if requirements is None:
        requirements = requirements_of("lodger")
    if requirements is None:
        yield _without_metadata()
        return
    named: dict[str, Check] = {}
    wrong, right = [], 0
    for name, wanted in _required(requirements):
        found = version_of(name)
        good = found is not None and _inside(found, wanted)
        key = name.lower().replace("_", "-")
        if key in _NAMED:
            named[key] = _library(name, found, wanted, good)
        elif good:
            right += 1
        else:
            wrong.append(_library(name, found, wanted, good))
    yield from (named[key] for key in _NAMED if key in named)  # metadata lists them in any order
    yield from wrong
    if not wrong:
        yield Check(name="other libraries", state="ok", measured=f"{right} as required", expected="as required")


def requirements_of(name: str) -> Sequence[str] | None:
    """What an installed distribution requires; None when it is not installed."""
    try:
        return metadata.requires(name) or ()
    except metadata.PackageNotFoundError:
        return None


def _without_metadata() -> Check:
    return Check(
        name="lodger",
        state="fail",
        measured="runs from its sources, not installed",
        expected="an installed package, which says what it requires",
        hint="In its checkout: pip install -e . (or make demo, which installs everything into .venv).",
    )


def check_cuda(
    devices: Sequence[DeviceView],
    version_of: Versions = installed,
    lacking: Callable[[], list[str]] = toolchain.missing,
) -> Iterator[Check]:
    """Whether torch can use the GPUs that there are; nothing where there are none."""
    gpu = next((device for device in devices if device.kind == "cuda"), None)
    torch = version_of("torch")
    if gpu is None or torch is None:
        return
    if "+cpu" in torch:
        yield Check(
            name="torch and GPU",
            state="warn",
            measured=f"torch {torch} beside {gpu.name}",
            expected="a CUDA build of torch",
            hint="Install torch from PyPI (pip install --force-reinstall torch): this build serves from the CPU only.",
        )
        return
    triton = version_of("triton")
    yield Check(
        name="triton",
        state="ok" if triton else "warn",
        measured=triton or "not installed",
        expected="the version that comes with torch",
        hint=None if triton else "Install torch again, with its dependencies.",
    )
    if triton and (gpu.compute_capability or OLDEST_KERNELS) >= OLDEST_KERNELS:
        yield _kernels(lacking())
    yield from _driver(gpu, version_of)


def _kernels(lacking: list[str]) -> Check:
    """Whether Triton can build ours here. A server works without them."""
    python = ".".join(map(str, sys.version_info[:2]))
    return Check(
        name="GPU kernels",
        state="warn" if lacking else "ok",
        measured=f"cannot be built: {' and '.join(lacking)} missing" if lacking else "can be built",
        expected="a C compiler and Python's headers, for what starts each kernel",
        hint=(
            f"Debian, Ubuntu: apt install gcc python{python}-dev. RHEL, Fedora: dnf install gcc python{python}-devel. "
            "conda: conda install -c conda-forge gcc. Without them chats are much slower, and int8 and int4 refused."
            if lacking
            else None
        ),
    )


def _driver(gpu: DeviceView, version_of: Versions) -> Iterator[Check]:
    # Wheels for CUDA 13 bring nvidia-cuda-runtime, those for CUDA 12 nvidia-cuda-runtime-cu12.
    runtime = version_of("nvidia-cuda-runtime") or version_of("nvidia-cuda-runtime-cu12")
    oldest = OLDEST_DRIVER.get(runtime.split(".")[0]) if runtime else None
    if oldest is None or gpu.driver is None:
        return
    good = int(gpu.driver.split(".")[0]) >= oldest
    yield Check(
        name="GPU driver",
        state="ok" if good else "fail",
        measured=gpu.driver,
        expected=f"{oldest} or newer for CUDA {runtime}",
        hint=None if good else "Update the driver, or install a torch built for an older CUDA.",
    )


def _required(requirements: Sequence[str]) -> Iterator[tuple[str, str]]:
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        if match and "extra ==" not in requirement:
            yield match.group(1), match.group(2).strip()


def _library(name: str, found: str | None, wanted: str, good: bool) -> Check:
    return Check(
        name=name,
        state="ok" if good else "fail",
        measured=found or "not installed",
        expected=wanted,
        hint=None if good else f'Install it: pip install "{name}{wanted}"',
    )


def _inside(version: str, wanted: str) -> bool:
    """Whether the release of `version` is inside all bounds of `wanted` (">=2.11,<2.15")."""
    found = _release(version)
    return all(_holds(found, sign, _release(bound)) for sign, bound in _BOUND.findall(wanted))


def _holds(found: tuple[int, ...], sign: str, bound: tuple[int, ...]) -> bool:
    length = max(len(found), len(bound))
    left, right = (one + (0,) * (length - len(one)) for one in (found, bound))
    return {">=": left >= right, "<=": left <= right, "==": left == right, "<": left < right, ">": left > right}[sign]


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match.group().split("."))) if match else ()
