"""A part of a GPU for texts: how large it is, and what happens where the driver makes none."""

from __future__ import annotations

import logging
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lodger.runtime import partition as module
from lodger.runtime.partition import partition, wanted

Status = IntEnum("Status", {"CUDA_SUCCESS": 0, "CUDA_ERROR_NOT_SUPPORTED": 801})


def driver(asked: list[int], *, refuses: bool) -> Any:
    """As much of the driver as making a partition asks for."""

    def split(groups: int, whole: Any, flags: int, least: int) -> tuple[Any, ...]:
        asked.append(least)
        if refuses:
            return Status.CUDA_ERROR_NOT_SUPPORTED, None, None, None
        return Status.CUDA_SUCCESS, [part(-(-least // 8) * 8)], groups, part(0)

    def part(count: int) -> Any:
        return SimpleNamespace(sm=SimpleNamespace(smCount=count))

    return SimpleNamespace(
        CUdevResourceType=SimpleNamespace(CU_DEV_RESOURCE_TYPE_SM=1),
        CUgreenCtxCreate_flags=SimpleNamespace(CU_GREEN_CTX_DEFAULT_STREAM=1),
        CUstream_flags=SimpleNamespace(CU_STREAM_NON_BLOCKING=1),
        cuDeviceGet=lambda index: (Status.CUDA_SUCCESS, index),
        cuDeviceGetDevResource=lambda device, kind: (Status.CUDA_SUCCESS, part(132)),
        cuDevSmResourceSplitByCount=split,
        cuDevResourceGenerateDesc=lambda parts, count: (Status.CUDA_SUCCESS, parts),
        cuGreenCtxCreate=lambda described, device, flags: (Status.CUDA_SUCCESS, described),
        cuGreenCtxStreamCreate=lambda context, flags, priority: (Status.CUDA_SUCCESS, 7),
    )


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: None)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: (handle, device))
    monkeypatch.setattr(module, "Pool", lambda stream: stream)


def test_it_has_three_fifths_of_the_multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(module, "import_module", lambda name: driver(asked, refuses=False))
    device = torch.device("cuda:0")
    assert module._made(device) == (80, (7, device), (7, device), (7, device))
    assert asked == [wanted(132)] == [80]
    assert wanted(108) == 65, "an A100"


@pytest.mark.parametrize("refuses", [True, False], ids=["refused", "no cuda-bindings"])
def test_without_one_the_server_goes_on_and_says_so(
    refuses: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def found(name: str) -> Any:
        if not refuses:
            raise ImportError(name)
        return driver([], refuses=True)

    monkeypatch.setattr(module, "import_module", found)
    partition.cache_clear()
    with caplog.at_level(logging.WARNING, "lodger.runtime"):
        assert partition(torch.device("cuda:0")) is None
    partition.cache_clear()
    assert "between the tokens of chats, not beside them" in caplog.text
