"""Kernels run compiled where there is a GPU, and in Triton's interpreter where there is none.

The interpreter needs the package triton and TRITON_INTERPRET=1 in the environment, since it is chosen when triton is
first imported. Triton's wheel serves nothing else on a CPU: without the two these files are not collected.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

if not torch.cuda.is_available() and not (os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton")):
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
