"""Chats, embeddings and reranks on one card: in one process, through the device loop, and in three processes.

    python -m bench.gpu.lanes [--out FILE]

8 chats of Qwen3-4B's shape (bfloat16) go on all the time. A book is embedded beside them without a pause, in requests
of 64 texts of which two are always waiting, and then 64 documents are also reranked four times a second; both models
are XLM-RoBERTa-large's shape (float16). All weights and texts are random. Texts have the memory to be computed beside
chats, which a plan gives them where it is ample. Then the same three as three processes of one lane each, on the same
card at the same time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, cycle
from typing import Any

import torch

from bench.gpu import decode, encode, part
from lodger.runtime.device_loop import DeviceLoop
from lodger.runtime.encoding import EncodeLane
from lodger.runtime.generating import GenerateLane, Generation
from lodger.runtime.kv import KVCache
from lodger.runtime.partition import partition
from lodger.runtime.sampling import Rules, Sampler
from lodger.sched.encode import EncodeLane as LaneName
from lodger.sched.encode import Job
from lodger.sched.sequence import Sequence
from lodger.sched.step import Item

CHATS, PROMPT, LONGEST = 8, 256, 4096  # tokens of a chat before it is stopped
STEP = {"chat": 2048, "embed": 8192, "rerank": 8192}  # as planned for these models
SETTLE_S, WINDOW_S = 0.6, 1.8  # before each measurement, and of it
RERANK_EVERY_S, DOCUMENTS = 0.25, 64
NAMES = ("chat", "embed", "rerank")
Child = subprocess.Popen[str]
PEER = {"alone": "4.57 / 4.78 ms", "beside": "9.31 / 12.28 ms, 317 k tok/s embedded"}  # two vLLM 0.25.1 processes


class Chats:
    """`CHATS` at once that do not end; when each token came."""

    def __init__(self, loop: DeviceLoop) -> None:
        runner = decode.random_runner()
        cache = KVCache(runner.facts, CHATS * LONGEST // 16 + 1, 16, decode.DTYPE, decode.DEVICE)
        self._lane, self._loop, self._facts = GenerateLane("chat", runner, cache, STEP["chat"]), loop, runner.facts
        self._times: list[list[float]] = [[] for _ in range(CHATS)]
        loop.add(self._lane)

    def start(self) -> None:
        for n, times in enumerate(self._times):
            prompt = torch.randint(5, self._facts.vocab_size, (PROMPT,)).tolist()
            sampler = Sampler(Rules(temperature=0), 0, prompt, self._facts.vocab_size, decode.DEVICE)
            sequence = Sequence(n, prompt, max_new_tokens=LONGEST - PROMPT)
            generation = Generation(sequence, sampler, frozenset(), _noter(times))
            self._loop.post(lambda generation=generation: self._lane.add(generation))  # type: ignore[misc]

    def stop(self) -> None:
        for n in range(CHATS):
            self._loop.post(lambda n=n: self._lane.cancel(n))  # type: ignore[misc]

    def read(self, since: float, until: float) -> dict[str, Any]:
        gaps = []
        for times in self._times:
            inside = [at for at in times if since <= at <= until]
            gaps += [(after - before) * 1e3 for before, after in zip(inside, inside[1:], strict=False)]
        return {"between_tokens_ms": _spread(gaps), "chat_tok_s": len(gaps) / (until - since)}


class Texts:
    """Requests to one encoder; when each was sent and answered, and how many tokens it had.

    Args:
        waiting: requests that are always under way; 0 where they are sent every `RERANK_EVERY_S`.
    """

    def __init__(self, loop: DeviceLoop, name: LaneName, waiting: int) -> None:
        runner = encode.random_runner(name)
        self._lane = EncodeLane(name, runner, name, STEP[name], partition(encode.DEVICE))
        self._loop, self._waiting = loop, waiting
        self._requests = cycle(encode.jobs(name, runner.facts.vocab_size, encode.lengths()))
        self._heads, self._ids = (runner.heads[encode.HEAD[name]],), count()
        self._answered: list[tuple[float, float, int]] = []
        self._stopped = threading.Event()
        loop.add(self._lane)

    def start(self) -> None:
        self._stopped.clear()
        for _ in range(self._waiting):
            self._send()
        if not self._waiting:
            threading.Thread(target=self._keep_sending, daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def read(self, since: float, until: float) -> dict[str, Any]:
        inside = [row for row in self._answered if since <= row[1] <= until]
        name, tokens = self._lane.name, sum(row[2] for row in inside)
        times = [(answered - sent) * 1e3 for sent, answered, _ in inside]
        return {f"{name}_tok_s": tokens / (until - since), f"{name}_ms": _spread(times)}

    def _keep_sending(self) -> None:
        while not self._stopped.wait(RERANK_EVERY_S):
            self._send()

    def _send(self) -> None:
        items, job, sent = next(self._requests).items, next(self._ids), time.perf_counter()
        tokens = sum(len(item.tokens) for item in items)
        texts = tuple(Item(job, n, item.tokens) for n, item in enumerate(items[:DOCUMENTS]))

        def answered(_: Any) -> None:
            self._answered.append((sent, time.perf_counter(), tokens))
            if self._waiting and not self._stopped.is_set():
                self._send()

        self._loop.post(lambda: self._lane.add(Job(job, self._lane._queue.lane, texts), self._heads, answered))


def _noter(times: list[float]) -> Callable[[Any], None]:
    return lambda _: times.append(time.perf_counter())


def _spread(numbers: list[float]) -> dict[str, float]:
    """p50, p99 and the largest."""
    if not numbers:
        return {"n": 0}
    found = sorted(numbers)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {"n": len(found)} | {name: found[min(int(len(found) * q), len(found) - 1)] for name, q in at.items()}


def opened(name: str, loop: DeviceLoop) -> Chats | Texts:
    if name == "chat":
        return Chats(loop)
    return Texts(loop, "embed", 2) if name == "embed" else Texts(loop, "rerank", 0)


def window() -> tuple[float, float]:
    time.sleep(SETTLE_S)
    since = time.perf_counter()
    time.sleep(WINDOW_S)
    return since, time.perf_counter()


def together(loads: dict[str, Chats | Texts]) -> dict[str, Any]:
    """One process: chats alone, with a book, with a book and reranks."""
    rows = {}
    running: list[str] = []
    for name, label in zip(NAMES, ("chats alone", "chats, a book", "chats, a book, reranks"), strict=True):
        loads[name].start()
        running.append(name)
        since, until = window()
        rows[label] = {key: value for one in running for key, value in loads[one].read(since, until).items()}
        print(f"{label:<32} {line(rows[label])}", flush=True)
    for load in loads.values():
        load.stop()
    return rows


def apart(children: dict[str, Child]) -> dict[str, Any]:
    """Three processes: first chats and a book, then all of them."""
    rows = {}
    for names, label in ((NAMES[:2], "chats, a book"), (NAMES, "chats, a book, reranks")):
        for name in names:
            _say(children[name], "go")
        heard = [json.loads(_hear(children[name])) for name in names]
        rows[label] = {key: value for one in heard for key, value in one.items()}
        print(f"{'apart: ' + label:<32} {line(rows[label])}", flush=True)
    return rows


@contextmanager
def processes() -> Iterator[dict[str, Child]]:
    """One of its own for each lane. They load at once, and wait."""
    command, pipe = [sys.executable, "-W", "ignore", "-m", "bench.gpu.lanes", "--only"], subprocess.PIPE
    children = {name: subprocess.Popen([*command, name], stdin=pipe, stdout=pipe, text=True) for name in NAMES}
    try:
        yield children
    finally:
        for child in children.values():
            child.kill()
            child.wait()


def only(name: str) -> None:
    """One lane in a process of its own: measures a window for each line that it reads."""
    loop = DeviceLoop("cuda:0")
    load = opened(name, loop)
    print("ready", flush=True)
    for _ in sys.stdin:
        load.start()
        print(json.dumps(load.read(*window())), flush=True)
        load.stop()


def _say(child: Child, word: str) -> None:
    assert child.stdin is not None
    child.stdin.write(word + "\n")
    child.stdin.flush()


def _hear(child: Child) -> str:
    assert child.stdout is not None
    return child.stdout.readline()


def line(row: dict[str, Any]) -> str:
    gaps = row["between_tokens_ms"]
    words = [f"{gaps['p50']:.2f} / {gaps['p99']:.2f} / {gaps['max']:.1f} ms between tokens"]
    words.append(f"{row['chat_tok_s']:,.0f} tok/s")
    if "embed_tok_s" in row:
        words.append(f"{row['embed_tok_s']:,.0f} tok/s embedded")
    if "rerank_ms" in row and row["rerank_ms"]["n"]:
        words.append(f"rerank {row['rerank_ms']['p50']:.0f} / {row['rerank_ms']['max']:.0f} ms")
    return ", ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=NAMES, help="one lane, for the comparison with processes of their own")
    given = part.options(__doc__, parser)
    with torch.inference_mode():
        if given.only:
            only(given.only)
            return
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; p50 / p99 / largest")
        with processes() as children:
            loop = DeviceLoop("cuda:0")
            loads = {name: opened(name, loop) for name in NAMES}
            for child in children.values():
                _hear(child)  # so that nobody loads while we measure
            raw = {"gpu": torch.cuda.get_device_name(), "together": together(loads), "peer": PEER}
            part.write(given, raw)
            loop.close()
            part.write(given, raw | {"apart": apart(children)})


if __name__ == "__main__":
    main()
