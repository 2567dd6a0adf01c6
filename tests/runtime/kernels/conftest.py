"""Kernels run compiled where there is a GPU, and in Triton's interpreter where there is none (see tests/conftest.py).

Without the package triton these files are not collected, and test_compiled_kernels.py fails and says what installs it.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

assert torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1", "on a CPU, set TRITON_INTERPRET=1"
if find_spec("triton") is None:
    collect_ignore_glob = ["test_kernels_*.py"]

# The interpreter computes products of bfloat16 wrongly, and float32 shows more than float16 does.
_WHERE = (
    [pytest.param(("cuda:0", dtype), marks=pytest.mark.gpu) for dtype in (torch.float16, torch.bfloat16)]
    if torch.cuda.is_available()
    else [("cpu", torch.float32)]
)


@pytest.fixture(scope="session", params=_WHERE, ids=lambda where: f"{where[0]}-{str(where[1]).rpartition('.')[2]}")
def where(request: pytest.FixtureRequest) -> tuple[torch.device, torch.dtype]:
    """A device, and a dtype that kernels compute in there."""
    device, dtype = request.param
    return torch.device(device), dtype
