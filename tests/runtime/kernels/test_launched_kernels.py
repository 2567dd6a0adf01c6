"""No request launches a kernel that the start of its model had not: it would wait until that is built, and everybody
with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent


@pytest.fixture(scope="module")
def launched() -> dict[str, Any]:
    paths = [ROOT / "src", ROOT / "tests", *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-W", "ignore", str(HERE / "launched_kernels.py")]
    said = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(said)
    return found


def test_steps_of_any_texts_find_all_kernels_built(launched: dict[str, Any]) -> None:
    late = [
        f"{kernel} by {step}, {case}" for case, found in launched.items() for kernel, step in found["later"].items()
    ]
    assert not late, "\n".join(late)


def test_what_was_looked_at_launches_kernels(launched: dict[str, Any]) -> None:
    assert min(found["started"] for case, found in launched.items() if "bits" in case) > 30
    assert min(found["started"] for found in launched.values()) == 3, "texts: embeddings, attention, norms"
