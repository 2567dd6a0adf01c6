"""128 chats and batches of texts through `lodger serve`, beside what the engine makes of the same requests alone.

    python -m bench.gpu.http [--out FILE] [--tokenizer FILE] [--streams 1 8 32 128] [--texts]

Models of the shapes of Qwen3-4B and, with --texts, of bge-m3, with random weights, their files in RAM. FILE is a
tokenizer.json, best Qwen's own: without one the folder's small one spells a few hundred tokens, and the others are no
text.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import tiny
import torch

from bench import http_embed
from bench.gpu.folders import SHARDS, write_weights
from bench.gpu.part import options, write
from bench.http_load import Load, measure

WORDS = 44  # of a text: about 200 tokens of the folder's small tokenizer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--texts", action="store_true", help="embed texts too")
    given = options(__doc__, parser)
    found: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "rows": [], "texts": []}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as ram:
        folder = tiny.write_fake_folder(Path(ram) / "chat", "qwen3", "BF16", shards=SHARDS, **tiny.QWEN3_4B)
        if given.tokenizer:
            shutil.copy(given.tokenizer, folder / "tokenizer.json")
        write_weights(folder)
        for row in measure(Load(model=folder, device="cuda:0", streams=tuple(given.streams))):
            found["rows"].append(row)
            write(given, found)
        if given.texts:
            folder = tiny.write_fake_folder(Path(ram) / "emb", "bge-m3", "F16", **tiny.XLM_R_LARGE)
            write_weights(folder)
            asked = Load(model=folder, kind="embedding", device="cuda:0", rounds=1)
            for row in http_embed.measure(asked, words=WORDS):
                found["texts"].append(row)
                write(given, found)


if __name__ == "__main__":
    main()
