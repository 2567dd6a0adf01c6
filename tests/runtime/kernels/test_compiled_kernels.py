"""Every kernel compiles for the oldest chip that we serve and for the newest that we measure on, and fits into both."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SOURCE = HERE.parent.parent.parent / "src"
# Compute capability -> shared memory of one program: an A100's 163 KiB and an H100's 227, less a little.
MOST_SHARED = {80: 160 * 1024, 90: 224 * 1024}
MOST_SPILLED = 64  # bytes of a thread beside its 255 registers


def test_triton_is_here() -> None:
    found = find_spec("triton") is not None
    assert found, "kernels are not tested without the package triton: scripts/install test installs it"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """By compute capability, what ptxas made of each kernel. Both at once: compiling takes one core each."""
    variables = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    paths = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
    children = {
        capability: subprocess.Popen(
            [sys.executable, str(HERE / "compiled_kernels.py"), str(capability)],
            env=os.environ | variables | {"PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            text=True,
        )
        for capability in MOST_SHARED
    }
    said = {capability: child.communicate()[0] for capability, child in children.items()}
    assert {child.returncode for child in children.values()} == {0}
    return {capability: json.loads(text) for capability, text in said.items()}


@pytest.mark.parametrize("capability", MOST_SHARED)
def test_kernels_fit_into_the_chip(capability: int, compiled: dict[int, list[dict[str, Any]]]) -> None:
    most = MOST_SHARED[capability]
    wrong = [row for row in compiled[capability] if row["shared"] > most or row["spilled"] > MOST_SPILLED]
    assert not wrong, "\n".join(map(str, wrong))


def test_no_kernel_is_left_out(compiled: dict[int, list[dict[str, Any]]]) -> None:
    """Each is compiled as a launch of its own, or is part of one that is."""
    for capability, rows in compiled.items():
        launched = {row["kernel"] for row in rows}
        wanted = {f"{module}.{name}" for module, name, parts in kernels() if name not in parts}
        wrong = {kernel for kernel in wanted - launched if capability >= 90 or "hopper" not in kernel}
        assert not wrong, f"add them to compiled_kernels.py, for {capability}: {sorted(wrong)}"


def kernels() -> list[tuple[str, str, set[str]]]:
    """(module, kernel, names of all kernels that other kernels call)."""
    found, called = [], set()
    for file in sorted((SOURCE / "lodger" / "runtime" / "kernels").glob("*.py")):
        for node in ast.parse(file.read_text()).body:
            marks = [ast.unparse(mark) for mark in getattr(node, "decorator_list", ())]
            if isinstance(node, ast.FunctionDef) and any(
                mark.startswith(("triton.jit", "gluon.jit")) for mark in marks
            ):
                found.append((f"lodger.runtime.kernels.{file.stem}", node.name))
                called |= {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
    assert len(found) > 10
    return [(module, name, called) for module, name in found]
