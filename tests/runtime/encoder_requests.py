"""What the tests of encoders send, and how they read the answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any, TypeVar

import numpy as np

from lodger.tasks import EmbedResult

Result = TypeVar("Result")
WORDS = [
    "time",
    "person",
    "year",
    "way",
    "世界",
    "模型",
    "thing",
    "man",
    "life",
    "hand",
    "北京",
    "eye",
    "woman",
    "work",
]


def texts(count: int, most: int = 60) -> tuple[str, ...]:
    chosen = random.Random(5)
    return tuple(" ".join(chosen.choices(WORDS, k=chosen.randint(1, most))) for _ in range(count))


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def vectors(result: EmbedResult) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.frombuffer(result.vectors, "<f4").reshape(result.count, result.dimensions)
