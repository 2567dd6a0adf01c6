"""What a worker is told of its device: it sees that one GPU and no other, so nothing it does can touch another."""

from __future__ import annotations

from pathlib import Path

from lodger.settings import visible_gpus


def as_seen(device: str) -> str:
    """What a worker calls its device: ``cuda:0`` for its only GPU, whichever that is of the machine's."""
    return "cuda:0" if device.startswith("cuda:") else device


def environment(device: str, cache: Path) -> dict[str, str]:
    """What a GPU's worker is told: CUDA_VISIBLE_DEVICES, the entry of ours that the device's number stands for; and the
    folder below `cache` where Triton finds the kernels that it has built once."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return {}
    entries = visible_gpus()
    seen = number if entries is None else entries[int(number)]
    # As torch would say; it comes too late where the context is made before torch is imported.
    loading = {"CUDA_MODULE_LOADING": "LAZY"}
    return {"CUDA_VISIBLE_DEVICES": seen, "TRITON_CACHE_DIR": str(cache / "triton"), **loading}
