"""Models on two GPUs that are not there: real workers of the echo engine, devices made up, the planner the real one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Collection
from pathlib import Path
from typing import cast

import pytest
from service_world import FAULTY, FakePlacement, chat, run, say, serving, spec, until

from lodger.device.fake import parse_device
from lodger.device.view import DeviceView
from lodger.errors import DoesNotFit, Unsupported, WorkerDown
from lodger.supervisor.local_service import LocalService
from lodger.tasks import Delta, EmbedTask

LONG = "word " * 500


class Cards(FakePlacement):
    """A machine with GPUs of these sizes, as `lodger plan --gpu` describes them."""

    def __init__(self, *cards: str) -> None:
        super().__init__()
        self.cards = cards or ("80GiB", "80GiB,free=60GiB")

    def devices(self, our_pids: Collection[int]) -> tuple[DeviceView, ...]:
        return tuple(parse_device(card, number) for number, card in enumerate(self.cards))


def pid_of(service: LocalService, device: str) -> int:
    [worker] = [worker for worker in service._supervisor.workers() if worker.device == device]
    assert worker.pid is not None
    return worker.pid


def states(service: LocalService, uid: str) -> dict[str, str]:
    return {replica.device: replica.state for replica in service.model(uid).replicas}


def running(service: LocalService, uid: str) -> dict[str, int]:
    return {replica.device: replica.running for replica in service.model(uid).replicas}


def both_ready(service: LocalService, uid: str = "chat") -> bool:
    return list(states(service, uid).values()) == ["ready", "ready"]


def told(pid: int, variable: str) -> str | None:
    pairs = (entry.partition("=") for entry in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    return {name: value for name, _, value in pairs}.get(variable)


@pytest.mark.parametrize(("ours", "theirs"), [(None, ["0", "1"]), ("5,3", ["5", "3"])])
def test_each_worker_sees_its_own_card_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: str | None, theirs: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if ours:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ours)

    async def main() -> None:
        async with serving(tmp_path, placement=Cards()) as service:
            await service.launch(spec("chat", replicas=2))
            await until(lambda: both_ready(service))
            workers = [pid_of(service, device) for device in ("cuda:0", "cuda:1")]
            assert [told(pid, "CUDA_VISIBLE_DEVICES") for pid in workers] == theirs
            assert {Path(told(pid, "TRITON_CACHE_DIR") or "").parent.name for pid in workers} == {"cache"}

    run(main())


def test_models_go_where_they_are_sent_and_all_of_it_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, placement=Cards()) as service:
            await service.launch(spec("chat", replicas=2), wait=False)
            await service.launch(spec("m3", kind="embedding", gpu=(1,)), wait=False)
            await until(lambda: both_ready(service) and service.model("m3").state == "ready")
            assert service.model("chat").devices == ("cuda:0", "cuda:1")
            assert service.model("m3").devices == ("cuda:1",)
            status = await service.status()
            assert {plan.device.id: [model.uid for model in plan.models] for plan in status.plan} == {
                "cuda:0": ["chat"],
                "cuda:1": ["chat", "m3"],
            }
            assert sorted(worker.device for worker in status.workers) == ["cuda:0", "cuda:1"]
            assert await say(service, "chat", "hello") == "hello"
            assert (await service.embed(EmbedTask(model="m3", inputs=("one",)))).count == 1
            assert sum("ready in" in line for line in service.logs("chat", 20)) == 2
            planned = await service.plan((spec("more", gpu=(0,)),))
            assert [[model.uid for model in plan.models] for plan in planned] == [["chat", "more"], ["chat", "m3"]]

            first, second = (pid_of(service, device) for device in ("cuda:0", "cuda:1"))
            await service.terminate("chat")
            assert [worker.device for worker in service._supervisor.workers()] == ["cuda:1"]
            assert not Path(f"/proc/{first}").exists()
            assert Path(f"/proc/{second}").exists(), "it has another model"
            assert (await service.embed(EmbedTask(model="m3", inputs=("one",)))).count == 1
            await service.terminate("m3")
            assert service._supervisor.workers() == ()

    run(main())


def test_what_is_free_decides_when_nobody_says_where(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, placement=Cards("80GiB,free=8GiB", "80GiB,free=60GiB")) as service:
            assert (await service.launch(spec("a"))).devices == ("cuda:1",)
            assert (await service.launch(spec("b"))).devices == ("cuda:1",)
            assert (await service.launch(spec("c", gpu=(0,)))).devices == ("cuda:0",)

    run(main())


def test_a_request_goes_to_the_replica_with_the_least_to_do(tmp_path: Path) -> None:
    async def start(service: LocalService) -> AsyncGenerator[Delta, None]:
        stream = cast("AsyncGenerator[Delta, None]", service.generate(chat("chat", LONG)))
        await stream.__anext__()
        return stream

    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY, placement=Cards()) as service:
            await service.launch(spec("chat", replicas=2))
            await until(lambda: both_ready(service))
            streams = [await start(service) for _ in range(6)]
            assert running(service, "chat") == {"cuda:0": 3, "cuda:1": 3}
            assert service.model("chat").running == 6
            for stream in streams[0::2]:  # those of one replica
                await stream.aclose()
            assert sorted(running(service, "chat").values()) == [0, 3]
            idle = min(running(service, "chat").items(), key=lambda pair: pair[1])[0]
            late = [await start(service) for _ in range(3)]
            assert running(service, "chat")[idle] == 3
            for stream in (*streams[1::2], *late):
                await stream.aclose()
            assert service.model("chat").running == 0

    run(main())


def test_one_after_the_other_they_take_turns(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY, placement=Cards()) as service:
            await service.launch(spec("chat", replicas=2))
            await until(lambda: both_ready(service))
            for _ in range(4):
                await say(service, "chat", "hello")
            served = [file.read_text().count("left after") for file in (tmp_path / "logs").glob("worker-cuda*.log")]
            assert served == [2, 2]

    run(main())


def test_a_crash_takes_one_replica_and_its_requests_and_the_other_serves_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY, placement=Cards()) as service:
            await service.launch(spec("chat", replicas=2))
            await until(lambda: both_ready(service))
            running_on = [asyncio.create_task(say(service, "chat", LONG)) for _ in range(2)]
            await until(lambda: list(running(service, "chat").values()) == [1, 1])
            os.kill(pid_of(service, "cuda:0"), signal.SIGKILL)
            ended = await asyncio.gather(*running_on, return_exceptions=True)
            assert sorted(map(type, ended), key=str) == [WorkerDown, str]
            model = service.model("chat")
            assert (model.state, states(service, "chat")) == ("ready", {"cuda:0": "restarting", "cuda:1": "ready"})
            assert "SIGKILL" in (model.replicas[0].error.message if model.replicas[0].error else "")
            for _ in range(4):
                assert await say(service, "chat", "hello") == "hello"
            await until(lambda: both_ready(service))
            assert [replica.restarts for replica in service.model("chat").replicas] == [1, 0]
            assert service.model("chat").restarts == 1

    run(main())


def test_without_any_replica_it_is_being_restarted(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY, placement=Cards()) as service:
            await service.launch(spec("chat", replicas=2))
            await until(lambda: both_ready(service))
            for device in ("cuda:0", "cuda:1"):
                os.kill(pid_of(service, device), signal.SIGKILL)
            await until(lambda: service.model("chat").state == "restarting")
            with pytest.raises(WorkerDown, match="chat is being restarted"):
                await say(service, "chat", "hello")
            await until(lambda: both_ready(service))

    run(main())


def test_it_is_ready_with_the_first_and_failed_with_the_last(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY, placement=Cards()) as service:
            await service.launch(spec("damaged", replicas=2), wait=False)
            await until(lambda: service.model("damaged").state == "failed")
            assert list(states(service, "damaged").values()) == ["failed", "failed"]
            await until(lambda: service._supervisor.workers() == ())
            await service.terminate("damaged")
            assert service.models() == []

    run(main())


def test_what_cannot_be_leaves_no_trace(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, placement=Cards("80GiB,free=30GiB", "80GiB,free=500MiB")) as service:
            with pytest.raises(Unsupported, match="3 replicas, each on a GPU of its own"):
                await service.launch(spec("chat", replicas=3))
            with pytest.raises(Unsupported, match="GPU 2, which is not there"):
                await service.launch(spec("chat", gpu=(2,)))
            with pytest.raises(DoesNotFit, match="2 replicas of chat do not fit on cuda:0 and cuda:1") as caught:
                await service.launch(spec("chat", replicas=2))
            assert caught.value.hint == "Set replicas of chat to 1: there is room on cuda:0."
            assert service.models() == []
            assert service._supervisor.workers() == ()
            assert (await service.launch(spec("chat"))).devices == ("cuda:0",)

    run(main())


def test_a_cpu_has_one_copy_and_a_note(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            status = await service.launch(spec("chat", replicas=2, gpu=(0,)))
            assert status.devices == ("cpu",)
            assert status.spec.notes == (
                "gpu and replicas have no effect: one copy on the CPU serves all requests, batched together.",
            )

    run(main())
