"""Who may import whom, and who may touch the world outside the process. Read from the source, so no import can hide."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"
MODULES = {
    ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((SOURCE / "lodger").rglob("*.py"))
}

BASE = {"errors", "units", "tasks", "spec", "budget", "service", "settings", "paths", "process", "log", "metrics"}
BASE |= {"toolchain", "interpreter"}
VALUES = {"lodger.catalogue.facts", "lodger.plan.values", "lodger.device.view"}  # what `service` is written in
CONTROL = {"catalogue", "hub", "device", "plan", "text", "ipc", "supervisor", "api", "client", "checks", "config"}
CONTROL |= {"ragflow", "adopt"}

# Beside base, a package may import these packages, or these single modules where they are written out in full.
ALLOWED: dict[str, set[str]] = {
    **dict.fromkeys(BASE, set()),
    "service": VALUES,
    "catalogue": set(),
    "device": set(),
    "text": set(),
    "sched": set(),
    "ipc": {"lodger.engines.base"},
    "hub": {"catalogue"},
    "plan": {"catalogue", "device"},
    "config": {"catalogue"},
    "runtime": {"catalogue", "sched"},
    "engines": {"catalogue", "text", "sched", "runtime"},
    "worker": {"catalogue", "engines", "ipc"},
    "supervisor": {"catalogue", "hub", "device", "plan", "ipc", "config", "lodger.engines", "lodger.engines.base"},
    "api": VALUES,
    "client": VALUES,
    "checks": {"catalogue", "device", "plan", "hub", "client", "config"},
    "ragflow": {"client", "lodger.checks.base"},
    "adopt": {"catalogue", "client", "config", "lodger.api.launching"},
    "server": CONTROL,
    "cli": CONTROL | {"server"},
    "__main__": {"cli"},
}

HEAVY = ("torch", "transformers", "numpy")
DATA_PLANE = (  # run only in child processes
    "lodger.runtime", "lodger.engines.native", "lodger.hub.gguf", "lodger.hub.convert", "lodger.hub.pickles",
)  # fmt: skip

# What only one module may use, and which module that is.
OWNERS = {
    "the environment": ("lodger.settings", {"os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv"}),
    "child processes and signals": (
        "lodger.process",
        {"subprocess", "multiprocessing", "pty", "signal.pidfd_send_signal", "signal.raise_signal"}
        | {f"asyncio.create_subprocess_{how}" for how in ("exec", "shell")}
        | {f"os.{name}" for name in ("kill", "killpg", "fork", "forkpty", "system", "popen", "abort")}
        | {f"os.posix_spawn{p}" for p in ("", "p")}
        | {f"os.{how}{suffix}" for how in ("exec", "spawn") for suffix in ("v", "ve", "vp", "vpe", "l", "le", "lp")},
    ),
    "NVML": ("lodger.device.nvml", {"pynvml"}),
    "metric names": ("lodger.metrics", {"prometheus_client"}),
}  # fmt: skip


def package(module: str) -> str:
    """`sched` of `lodger.sched.blocks`; `lodger` of `lodger` itself."""
    return module.split(".")[1] if "." in module else module


def imports(module: str) -> Iterator[tuple[str, int]]:
    """Every module that `module` imports, at any depth of its code, but for `if TYPE_CHECKING`, with the line."""
    path = MODULES[module]
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        pending.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            anchor = module if path.name == "__init__.py" else module.rpartition(".")[0]
            for _ in range(node.level - 1):
                anchor = anchor.rpartition(".")[0]
            origin = ".".join(filter(None, (anchor if node.level else "", node.module)))
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield (inner if inner in MODULES else origin), node.lineno


def names_used(module: str) -> Iterator[tuple[str, int]]:
    """Dotted names such as `os.kill`, by attribute or by `from os import kill`, and imported modules."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node), node.lineno
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def may_import(importer: str, target: str) -> bool:
    own, other = package(importer), package(target)
    if other == "lodger" or other == own or other in BASE:
        return True
    return other in ALLOWED[own] or target in ALLOWED[own]


def test_importing_lodger_itself_has_no_effect() -> None:
    assert not list(imports("lodger"))


def test_imports_go_one_way() -> None:
    unknown = {package(module) for module in MODULES} - set(ALLOWED) - {"lodger"}
    assert not unknown, "a new package needs a line in ALLOWED"
    wrong = [
        f"{MODULES[module]}:{line} imports {target}"
        for module in MODULES
        for target, line in imports(module)
        if target.split(".")[0] == "lodger" and not may_import(module, target)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_import_cycle_between_packages_or_modules() -> None:
    modules: dict[str, set[str]] = {}
    packages: dict[str, set[str]] = {}
    for module in MODULES:
        for target, _ in imports(module):
            if target in MODULES and target != module:
                modules.setdefault(module, set()).add(target)
                # The value types are named from both sides: they are a layer of their own.
                if target not in VALUES and package(target) not in (package(module), "lodger"):
                    packages.setdefault(package(module), set()).add(package(target))
    packages["ipc"].discard("engines")  # ipc.messages names the values of engines.base, checked above
    TopologicalSorter(modules).prepare()  # raises CycleError, which draws the cycle
    TopologicalSorter(packages).prepare()


def test_the_control_plane_names_no_heavy_library() -> None:
    wrong = [
        f"{MODULES[module]}:{line} imports {target}"
        for module in MODULES
        if not module.startswith(DATA_PLANE)
        for target, line in imports(module)
        if target.split(".")[0] in HEAVY or target.startswith(DATA_PLANE)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", ["lodger.server", "lodger.cli", "lodger.api.app", "lodger.worker.__main__"])
def test_importing_loads_no_heavy_library(module: str) -> None:
    code = f"import {module}, sys; print(*sorted({{name.split('.')[0] for name in sys.modules}} & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("what", OWNERS)
def test_one_module_owns(what: str) -> None:
    owner, names = OWNERS[what]
    wrong = [
        f"{MODULES[module]}:{line} uses {name}"
        for module in MODULES
        if module != owner
        for name, line in names_used(module)
        if name in names or name.split(".")[0] in names
    ]
    assert not wrong, f"only {owner} may use {what}:\n" + "\n".join(wrong)


def test_sizes_are_printed_by_units_alone() -> None:
    wrong = []
    for module in set(MODULES) - {"lodger.units"}:
        for node in ast.walk(ast.parse(MODULES[module].read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for value, after in zip(parts, parts[1:], strict=False):
                if not (isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant)):
                    continue
                if str(after.value).lstrip().startswith(("GiB", "MiB", "KiB", "GB ", "MB ")):
                    wrong.append(f"{MODULES[module]}:{node.lineno} prints a size by hand; use units.gib")
    assert not wrong, "\n".join(wrong)


def test_the_rules_can_fail() -> None:
    assert not may_import("lodger.api.app", "lodger.supervisor.manager")
    assert not may_import("lodger.sched.blocks", "lodger.runtime.kv")
    assert not may_import("lodger.api.app", "lodger.plan.planner")
    assert may_import("lodger.api.app", "lodger.plan.values")
    assert any(name == "subprocess" for name, _ in names_used("lodger.process"))
