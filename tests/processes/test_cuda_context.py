"""A context that is made while torch is imported, and a machine without a driver."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lodger.engines import cuda_context


def test_the_devices_own_context(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    def device_get(device: Any, index: int) -> int:
        device._obj.value = 40 + index
        return 0

    driver = SimpleNamespace(
        cuInit=lambda flags: 0,
        cuDeviceGet=device_get,
        cuDevicePrimaryCtxRetain=lambda context, device: said.append(device.value),
    )
    monkeypatch.setattr(cuda_context, "CDLL", lambda name: driver)
    thread = cuda_context.begin("cuda:1")
    assert thread is not None
    thread.join()
    assert said == [41]


def test_nothing_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(cuda_context, "CDLL", missing)
    assert cuda_context.begin("cpu") is None
    thread = cuda_context.begin("cuda:0")
    assert thread is not None
    thread.join()
