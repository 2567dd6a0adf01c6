"""The GPU of the measurements, as NVML tells of it; without torch."""

from __future__ import annotations

import os

from lodger.device.nvml import probe_gpus
from lodger.device.view import DeviceView


def this_card() -> DeviceView:
    """The GPU that this process sees first."""
    return probe_gpus(visible=os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(","))[0]


def used() -> int:
    """Bytes of the card that anybody has, by NVML."""
    card = this_card()
    return card.total - card.free
