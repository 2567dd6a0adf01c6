"""What a worker is told of its device: it sees that one GPU and no other, so nothing it does can touch another."""

from __future__ import annotations

from lodger.settings import visible_gpus


def as_seen(device: str) -> str:
    """What a worker calls its device: ``cuda:0`` for its only GPU, whichever that is of the machine's."""
    return "cuda:0" if device.startswith("cuda:") else device


def environment(device: str) -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES of a GPU's worker: the entry of ours that the device's number stands for."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return {}
    entries = visible_gpus()
    return {"CUDA_VISIBLE_DEVICES": number if entries is None else entries[int(number)]}
