"""Replicas on two real GPUs: who is where, who answers, and what is left when one is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lodger.paths import Home
from lodger.spec import ModelSpec
from lodger.supervisor.local_service import LocalService
from lodger.tasks import ChatTask, EmbedTask, StopRules

START_SECONDS = 100.0  # two workers import torch and compile kernels
REQUESTS = 64


def processes() -> dict[int, set[int]]:
    """GPU -> pids that have a context there, as nvidia-smi tells."""

    def ask(what: str) -> list[list[str]]:
        done = subprocess.run(
            ["nvidia-smi", f"--query-{what}", "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
        return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]

    number = {uuid: int(index) for index, uuid in ask("gpu=index,uuid")}
    found: dict[int, set[int]] = {index: set() for index in number.values()}
    for uuid, pid in ask("compute-apps=gpu_uuid,pid"):
        found[number[uuid]].add(int(pid))
    return found


async def answer(service: LocalService, question: str) -> str:
    asked = ({"role": "user", "content": question},)
    task = ChatTask(model="chat", messages=asked, stopping=StopRules(max_tokens=128, ignore_eos=True))
    return "".join([delta.text async for delta in service.generate(task)])


async def soon(holds: Callable[[], bool]) -> float:
    """Seconds until it came true."""
    start = time.monotonic()
    while not holds():
        assert time.monotonic() < start + START_SECONDS, "it did not happen in time"
        await asyncio.sleep(0.05)
    return time.monotonic() - start


@pytest.mark.gpu
def test_two_cards_serve_one_model_and_one_of_them_does_when_the_other_falls(
    tmp_path: Path, tiny: Callable[..., Path]
) -> None:
    if len(processes()) < 2:
        pytest.skip("this machine has one GPU")
    chat = ModelSpec(uid="chat", path=str(tiny("qwen3", head_dim=64)), replicas=2, memory=2**30)
    m3 = ModelSpec(uid="m3", path=str(tiny("bge-m3")), gpu=(1,), memory=2**30)

    async def main() -> None:
        service = LocalService(Home(tmp_path).make())
        try:
            await check(service)
        finally:
            await service.close()

    async def check(service: LocalService) -> None:
        def workers() -> dict[str, int]:
            return {worker.device: worker.pid for worker in service._supervisor.workers() if worker.pid}

        def all_ready() -> bool:
            return all(replica.state == "ready" for uid in ("chat", "m3") for replica in service.model(uid).replicas)

        def ask(number: int) -> asyncio.Task[str]:
            return asyncio.create_task(answer(service, f"question {number}"))

        for spec in (chat, m3):
            await service.launch(spec, wait=False)
        await soon(lambda: service.model("m3").replicas != () and service.model("chat").replicas != ())
        started = await soon(all_ready)
        assert (service.model("chat").devices, service.model("m3").devices) == (("cuda:0", "cuda:1"), ("cuda:1",))
        # One process on each card, and no other: neither worker has touched the other's.
        contexts = processes()
        assert [len(pids) for pids in contexts.values()] == [1, 1], contexts
        assert contexts[0] != contexts[1]

        asked = [ask(number) for number in range(REQUESTS)]
        await asyncio.sleep(0)
        loads: Counter[str] = Counter()
        while not all(task.done() for task in asked):
            for replica in service.model("chat").replicas:
                loads[replica.device] = max(loads[replica.device], replica.running)
            await asyncio.sleep(0.001)
        assert all([await task for task in asked])
        assert loads == {"cuda:0": REQUESTS // 2, "cuda:1": REQUESTS // 2}
        assert (await service.embed(EmbedTask(model="m3", inputs=("one", "two")))).count == 2

        asked = [ask(number) for number in range(8)]
        await soon(lambda: service.model("chat").running == 8)
        killed = time.monotonic()
        os.kill(workers()["cuda:0"], signal.SIGKILL)
        ended = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(one, str) for one in ended) >= 4, "those on the other card go on"
        assert service.model("chat").state == "ready"
        assert await ask(0)
        await soon(all_ready)
        back = time.monotonic() - killed
        assert all(await asyncio.gather(*(ask(number) for number in range(8))))
        print(f"ready in {started:.1f} s, most at once {dict(loads)}, back in {back:.1f} s, contexts {contexts}")

    asyncio.run(asyncio.wait_for(main(), 170))
