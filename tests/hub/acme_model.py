"""A model that both hubs have, in tests of what they promise."""

from __future__ import annotations

import random

SIZE = 100_000
WEIGHTS = random.Random(0).randbytes(SIZE)
REPO = "acme/model"
FILES = {
    "config.json": b"{}",
    "1_Pooling/config.json": b'{"pooling": true}',
    "a/b/deep.txt": b"deep",
    "empty.txt": b"",
    "odd name #1 100% +é.json": b"odd",
    "model.safetensors": WEIGHTS,
}
