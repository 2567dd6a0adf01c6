"""Some of a GPU's multiprocessors, for texts that are computed beside chats.

Decoding waits for memory and texts for arithmetic, so both at once take less time than one after the other. On shared
multiprocessors a token would wait for the texts' long programs at each of its some hundred launches. Functions and
flags are those of the CUDA driver API, "Green Contexts" (driver 550 or later).
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch

from lodger.runtime.allocator import Pool
from lodger.runtime.virtual_memory import checked

_log = logging.getLogger("lodger.runtime")
STEPS = (256, 1056, 2112, 4224)  # tokens of its steps
# Of all multiprocessors: 80 of an H100's 132. With 72 of them 8 chats of Qwen3-4B's shape get a token every 6.0 ms and
# 325 k tokens a second are embedded, with 80 it is 6.3 ms and 332 k, with 88 7.0 ms and 361 k.
_SHARE = 3, 5


class Partition(NamedTuple):
    """What is launched on either stream runs on these multiprocessors, and what was captured there wherever it is
    replayed. Other work may run on them too.

    Graphs of a partition work in memory of their own, since those of the whole device run at the same time.
    """

    processors: int
    stream: torch.cuda.Stream
    capture_stream: torch.cuda.Stream  # where nothing ever runs
    pool: Pool


@cache
def partition(device: torch.device) -> Partition | None:
    """Of a GPU; None where the driver refuses: then nothing runs beside chats, but between their tokens."""
    try:
        return _made(device)
    except (ImportError, AttributeError, MemoryError, RuntimeError) as refusal:
        _log.warning("texts are computed between the tokens of chats, not beside them: %s", refusal)
        return None


def wanted(processors: int) -> int:
    """How many of a device's multiprocessors; the driver rounds up to what it can split off."""
    part, whole = _SHARE
    return -(-processors * part // whole)


def _made(device: torch.device) -> Partition:
    """
    Raises:
        ImportError, AttributeError: no cuda-bindings, or one too old.
        RuntimeError, MemoryError: the driver refuses.
    """
    cuda: Any = import_module("cuda.bindings.driver")
    torch.cuda.mem_get_info(device)  # torch's context, which the new one is a part of, is this thread's
    number = checked(cuda.cuDeviceGet(device.index or 0))
    whole = checked(cuda.cuDeviceGetDevResource(number, cuda.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM))
    parts = checked(cuda.cuDevSmResourceSplitByCount(1, whole, 0, wanted(whole.sm.smCount))[:2])
    described = checked(cuda.cuDevResourceGenerateDesc(parts[:1], 1))
    context = checked(cuda.cuGreenCtxCreate(described, number, cuda.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM))
    flags = cuda.CUstream_flags.CU_STREAM_NON_BLOCKING
    handles = [int(checked(cuda.cuGreenCtxStreamCreate(context, flags, 0))) for _ in range(2)]
    stream: Any = torch.cuda.ExternalStream
    run, capture = [stream(handle, device) for handle in handles]
    return Partition(parts[0].sm.smCount, run, capture, Pool(capture))
