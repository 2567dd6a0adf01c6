"""Clients that are not the bottleneck: several processes, bare sockets, nothing parsed but the end of an answer."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

import psutil
import uvloop

from bench.load import text

WORDS = 240  # of each prompt: about 256 tokens with the marks of the chat
_EVENT, _END = b'data: {"', b"data: [DONE]\n\n"
_SHOWN = 0.005  # share of a core that is worth a line
_SEEN = 600  # bytes of the end of an answer that hold its usage


def prompt(number: int) -> str:
    return text(WORDS, number)


class Talk(Protocol):
    """One connection."""

    done: asyncio.Future[None]

    def send(self) -> None: ...

    def result(self) -> dict[str, Any]: ...


class Stream(asyncio.Protocol):
    """One request on one connection. Counts events; keeps when each arrived."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._tail = b""
        self.done = asyncio.get_running_loop().create_future()
        self.sent = 0.0
        self.arrivals: list[float] = []  # one for each read, in seconds of the machine's clock
        self.events = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        events = data.count(_EVENT)
        if events:
            self.events += events
            self.arrivals.append(time.perf_counter())
        self._tail = (self._tail + data)[-_SEEN:]
        if _END in data or _END in self._tail:
            self.done.set_result(None)
        elif not self.events and not self._tail.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self._tail.decode()))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or RuntimeError("the server closed the connection"))

    def result(self) -> dict[str, Any]:
        usage = self._tail.partition(b'"completion_tokens":')[2].partition(b",")[0]
        return {"sent": self.sent, "arrivals": self.arrivals, "events": self.events, "tokens": int(usage)}


class Exchange(asyncio.Protocol):
    """Requests one after the other on one connection, answers read to their end and thrown away."""

    def __init__(self, requests: list[bytes]) -> None:
        self._requests = iter(requests)
        self._left = 0  # bytes of the answer that is being read
        self.done = asyncio.get_running_loop().create_future()
        self.sent = 0.0
        self.times: list[float] = []  # seconds of each
        self.bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self) -> None:
        body = next(self._requests, None)
        if body is None:
            self.done.set_result(None)
            return
        self.sent = time.perf_counter()
        self.transport.write(body)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.bytes += len(data)
        if not self._left:  # the head comes in one piece, and first
            head, _, data = data.partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                self.done.set_exception(RuntimeError((head + data).decode()))
                return
            self._left = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        self._left -= len(data)
        if not self._left:
            self.times.append(time.perf_counter() - self.sent)
            self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or RuntimeError("the server closed the connection"))

    def result(self) -> dict[str, Any]:
        return {"times": self.times, "bytes": self.bytes}


async def _talk(port: int, made: Callable[[], list[Talk]], gate: Connection) -> list[dict[str, Any]]:
    loop, talks = asyncio.get_running_loop(), made()
    opened = [await loop.create_connection(lambda talk=talk: talk, "127.0.0.1", port) for talk in talks]  # type: ignore[misc]
    gate.send("ready")
    gate.recv()
    for talk in talks:
        talk.send()
    await asyncio.gather(*(talk.done for talk in talks))
    for transport, _ in opened:
        transport.close()
    return [talk.result() for talk in talks]


def _client(port: int, made: Callable[[], list[Talk]], gate: Connection) -> None:
    """Runs in a process of its own."""
    cpu = time.process_time()
    found = uvloop.run(_talk(port, made, gate))
    gate.send({"talks": found, "cpu": time.process_time() - cpu})


def at_once(
    port: int, pid: int, clients: list[Callable[[], list[Talk]]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All talks of all clients, each client a process, begun together. Their results, and the wall time with the share
    of a core that each process used."""
    gates, processes = [], []
    for made in clients:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(target=_client, args=(port, made, theirs))
        process.start()
        gates.append(ours)
        processes.append(process)
    for gate in gates:
        gate.recv()
    before, start = cpu_seconds(pid), time.perf_counter()
    for gate in gates:
        gate.send("go")
    found = [gate.recv() for gate in gates]
    wall, after = time.perf_counter() - start, cpu_seconds(pid)
    for process in processes:
        process.join()
    shares = {name: round((after[name] - before.get(name, 0)) / wall, 3) for name in after}
    shares |= {f"client {n}": round(client["cpu"] / wall, 3) for n, client in enumerate(found)}
    used = {name: share for name, share in shares.items() if share >= _SHOWN}
    return [talk for client in found for talk in client["talks"]], {"wall_s": round(wall, 3), "cpu": used}


def through_http(port: int, pid: int, bodies: list[bytes], clients: int) -> dict[str, Any]:
    """Each request a stream of its own, all at once."""
    parts = [bodies[n::clients] for n in range(min(clients, len(bodies)))]
    talks, more = at_once(port, pid, [lambda part=part: list(map(Stream, part)) for part in parts])  # type: ignore[misc]
    return summary(talks) | more


def post(path: str, body: dict[str, Any]) -> bytes:
    """A request as it goes over the wire."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def request(model: str, number: int, made: int) -> bytes:
    """A chat that answers with exactly `made` tokens."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt(number)}],
        "max_tokens": made,
        "temperature": 0,
        "repetition_penalty": 1.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return post("/v1/chat/completions", body)


def cpu_seconds(pid: int) -> dict[str, float]:
    """Of the server and of each of its workers, by name; a worker's threads apart."""
    found = {}
    server = psutil.Process(pid)
    for process in (server, *server.children(recursive=True)):
        times = process.cpu_times()
        worker = "lodger.worker" in process.cmdline()
        name = f"worker {process.pid}" if worker else f"server {process.pid}" if process is server else process.name()
        found[name] = times.user + times.system
        if worker:
            for thread in process.threads():
                if thread.user_time + thread.system_time > 0.1:
                    found[f"{name} thread {thread.id - process.pid}"] = thread.user_time + thread.system_time
    return found


def summary(streams: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates in tokens/s, times in ms."""
    start, end = min(s["sent"] for s in streams), max(s["arrivals"][-1] for s in streams)
    tokens = sum(s["tokens"] for s in streams)
    ready = max(s["arrivals"][0] for s in streams)
    late = sum(s["tokens"] * sum(at > ready for at in s["arrivals"]) / len(s["arrivals"]) for s in streams)
    gaps = [b - a for s in streams for a, b in zip(s["arrivals"], s["arrivals"][1:], strict=False)]
    first = [s["arrivals"][0] - s["sent"] for s in streams]
    return {
        "tokens": tokens,
        "tok_s": round(tokens / (end - start), 1),
        "decode_tok_s": round(late / (end - ready), 1) if end > ready else 0.0,
        "first_ms": spread(first),
        "gap_ms": spread(gaps),
        "reads": sum(len(s["arrivals"]) for s in streams),
        "events": sum(s["events"] for s in streams),
    }


def spread(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
    return {"p50": round(statistics.median(ordered) * 1e3, 2), "p99": round(p99 * 1e3, 2)}
