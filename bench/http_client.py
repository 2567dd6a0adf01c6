"""Clients that are not the bottleneck: several processes, bare sockets, nothing parsed but the end of an answer."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import psutil
import uvloop

from bench.load import text

WORDS = 240  # of each prompt: about 256 tokens with the marks of the chat
_EVENT, _END = b'data: {"', b"data: [DONE]\n\n"
_SEEN = 600  # bytes of the end of an answer that hold its usage


def prompt(number: int) -> str:
    return text(WORDS, number)


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


async def _streams(host: str, port: int, requests: list[bytes], gate: Connection) -> list[dict[str, Any]]:
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda body=body: Stream(body), host, port) for body in requests]  # type: ignore[misc]
    streams = [stream for _, stream in made]
    gate.send("ready")
    gate.recv()
    for stream in streams:
        stream.send()
    await asyncio.gather(*(stream.done for stream in streams))
    for transport, _ in made:
        transport.close()
    return [stream.result() for stream in streams]


def _client(host: str, port: int, requests: list[bytes], gate: Connection) -> None:
    """Runs in a process of its own."""
    cpu = time.process_time()
    found = uvloop.run(_streams(host, port, requests, gate))
    gate.send({"streams": found, "cpu": time.process_time() - cpu})


def request(model: str, number: int, made: int) -> bytes:
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": prompt(number)}],
            "max_tokens": made,
            "temperature": 0,
            "repetition_penalty": 1.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def through_http(port: int, pid: int, bodies: list[bytes], clients: int) -> dict[str, Any]:
    """All requests at once, and the CPU that each process used meanwhile."""
    clients = min(clients, len(bodies))
    gates, processes = [], []
    for n in range(clients):
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(target=_client, args=("127.0.0.1", port, bodies[n::clients], theirs))
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
    return summary([stream for client in found for stream in client["streams"]]) | {"cpu": shares}


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
        "first_ms": _spread(first),
        "gap_ms": _spread(gaps),
        "reads": sum(len(s["arrivals"]) for s in streams),
        "events": sum(s["events"] for s in streams),
    }


def _spread(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
    return {"p50": round(statistics.median(ordered) * 1e3, 2), "p99": round(p99 * 1e3, 2)}
