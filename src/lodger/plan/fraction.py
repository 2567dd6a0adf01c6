"""vLLM's fraction of the whole device, as the bytes that it means on the device at hand."""

from __future__ import annotations

import msgspec

from lodger.device.view import DeviceView
from lodger.plan.values import Candidate
from lodger.units import gib


def in_bytes(candidate: Candidate, device: DeviceView) -> Candidate:
    """`candidate` with its `memory_fraction` turned into a limit in bytes, and a note that says so."""
    spec = candidate.spec
    if spec.memory_fraction is None:
        return candidate
    meant = int(spec.memory_fraction * device.total)
    note = (
        f"gpu_memory_utilization {spec.memory_fraction:g} of {gib(device.total)} means at most {gib(meant)} here; "
        f"{gib(device.free)} are free."
    )
    limit = meant if spec.memory is None else min(meant, spec.memory)
    return msgspec.structs.replace(
        candidate,
        spec=msgspec.structs.replace(spec, memory=limit, memory_fraction=None, notes=(*spec.notes, note)),
    )
