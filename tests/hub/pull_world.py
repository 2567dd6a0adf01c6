"""What the tests of whole pulls share: a model on a server of both hubs' protocols, and the home that it goes to."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_hub import contents
from hub_servers import HubServer

from lodger.catalogue.repository import HubName, Repository
from lodger.hub import staging
from lodger.hub.base import Work
from lodger.hub.job import Pulled
from lodger.hub.pull import pull

WEIGHTS = random.Random(1).randbytes(2_000_000)
FILES = {
    "README.md": b"# A model\n" * 50,
    "config.json": b'{"model_type": "bert"}' + b" " * 500,
    "tokenizer.json": random.Random(2).randbytes(150_000),
    "tokenizer_config.json": b"{}" + b" " * 900,
    "special_tokens_map.json": b"{}" + b" " * 300,
    "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
    "model.safetensors": WEIGHTS,
}
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
UNWANTED = {"onnx/model.onnx": b"x" * 9000, "pytorch_model.bin": b"y" * 9000, "imgs/long.jpg": b"z" * 9000}
HUBS: tuple[HubName, ...] = ("modelscope", "huggingface")
BGE = Repository(folder="bge", modelscope="ms/bge", huggingface="hf/bge")


class World:
    """A server of both hubs' protocols, with the model on one of them, and the home that it is pulled into."""

    def __init__(self, server: HubServer, hub: HubName, home: Path) -> None:
        self.server, self.hub, self.home = server, hub, home
        self.models = home / "models"
        self.folder = self.models / "bge"
        self.works: list[Work] = []
        self.said: list[str] = []
        server.add(BGE.on(hub) or "", {**FILES, **UNWANTED})

    def pull(self, **more: bool) -> Pulled:
        return pull(BGE, self.models, self.works.append, say=self.said.append, hub=self.hub, **more)

    @contextmanager
    def command(self, *words: str, before: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
        """`lodger pull` in a process group of its own, as in a shell."""
        asked = [BGE.on(self.hub) or "", "--hub", self.hub, "--home", str(self.home), *words]
        with subprocess.Popen(
            [*before, sys.executable, "-m", "lodger", "pull", *asked],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def sent(self, path: str) -> int:
        """Bytes of a file that left the server."""
        return sum(seen.sent for seen in self.server.served(path))

    def check(self) -> None:
        """The folder is right, it is known to be, and nothing is left beside it."""
        assert contents(self.folder) == FILES
        before = len(self.server.requests)
        assert self.pull().fetched_files == 0
        assert self.pull(verify=True).fetched_files == 0
        assert len(self.server.requests) == before
        assert [path.name for path in self.models.iterdir() if path.name.endswith(".partial")] == []


def make_world(server: HubServer, hub: HubName, home: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """With both SDKs brought to `server`, and nothing of whoever runs the tests."""
    for name, value in server.environment(home.parent / "sdk").items():
        monkeypatch.setenv(name, value)
    for name in ("LODGER_HOME", "HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return World(server, hub, home)


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assembly(world: World) -> Path:
    return staging.Staging(world.folder).assembly


def part_size(world: World) -> int:
    """Bytes that have come of the weights."""
    found = os.walk(world.models / ".bge.partial" / world.hub)
    return sum(
        os.stat(os.path.join(place, name)).st_size
        for place, _, names in found
        for name in names
        if name == "model.safetensors.incomplete"
    )
