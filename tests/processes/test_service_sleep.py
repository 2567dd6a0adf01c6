"""Models that sleep, seen by their callers: memory given back, taken again for the next request, and refused with
numbers when somebody else has it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from service_world import FAULTY, FakePlacement, run, say, serving, spec, until

from lodger.errors import DoesNotFit, ModelAsleep, ModelFailed, NotReady, UnknownModel, WorkerDown
from lodger.supervisor import local_service
from lodger.supervisor.local_service import LocalService
from lodger.units import GIB


def turns(service: LocalService, uid: str) -> list[str]:
    """How often and when the worker put it to sleep and woke it."""
    words = ("asleep", "awake")
    return [word for line in service.logs(uid, 1000) for word in words if f"{word} in" in line]


async def granted(service: LocalService) -> list[str]:
    return [model.uid for plan in (await service.status()).plan for model in plan.models]


def test_a_request_wakes_a_model_that_sleeps(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            await service.launch(spec("a"))
            await service.launch(spec("b"))
            status = await service.sleep("a")
            assert (status.state, status.memory, status.context_length) == ("asleep", {}, 512)
            assert service.model("b").memory == {"weights": 0}, "a part of no bytes is told too"
            assert await granted(service) == ["b"]
            assert (await service.sleep("a")).state == "asleep"
            said = await asyncio.gather(*(say(service, "a", f"word {n}") for n in range(20)))
            assert said == [f"word {n}" for n in range(20)]
            assert service.model("a").state == "ready"
            assert sorted(await granted(service)) == ["a", "b"]
            await service.sleep("a")
            assert (await service.wake("a")).state == "ready"
            assert (await service.wake("a")).state == "ready"
            assert turns(service, "a") == ["asleep", "awake"] * 2
            assert turns(service, "b") == []

    run(main())


def test_requests_in_work_finish_first_and_later_ones_wake_it_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            await service.launch(spec("a"))
            talking = asyncio.create_task(say(service, "a", "word " * 100))
            await until(lambda: service.model("a").running)
            sleeping = asyncio.create_task(service.sleep("a"))
            await asyncio.sleep(0)
            late = asyncio.create_task(say(service, "a", "late"))
            await until(lambda: service.model("a").running == 2)
            assert await talking == "word " * 100
            await sleeping
            assert await late == "late"
            assert turns(service, "a") == ["asleep", "awake"]

    run(main())


def test_who_stops_waiting_does_not_keep_it_awake(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            await service.launch(spec("a"))
            talking = asyncio.create_task(say(service, "a", "word " * 50))
            await until(lambda: service.model("a").running)
            sleeping = asyncio.create_task(service.sleep("a"))
            await asyncio.sleep(0)
            sleeping.cancel()
            await talking
            await until(lambda: service.model("a").state == "asleep")

    run(main())


def test_its_memory_is_for_others_and_it_cannot_wake_while_they_have_it(tmp_path: Path) -> None:
    async def main() -> None:
        placement = FakePlacement(total=1 * GIB)
        async with serving(tmp_path, placement=placement) as service:
            await service.launch(spec("a"))
            [plan] = (await service.status()).plan
            placement.total = plan.needed
            with pytest.raises(DoesNotFit):
                await service.launch(spec("b"))
            await service.sleep("a")
            await service.launch(spec("b"))
            with pytest.raises(DoesNotFit, match="GiB"):
                await service.wake("a")
            with pytest.raises(ModelAsleep, match="a sleeps and cannot wake: .* GiB") as refused:
                await say(service, "a", "hello")
            assert (refused.value.status, refused.value.retry_after) == (503, 30)
            assert service.model("a").state == "asleep"
            assert await say(service, "b", "hello") == "hello"
            await service.terminate("b")
            assert await say(service, "a", "hello") == "hello"

    run(main())


def test_two_that_wake_at_once_do_not_count_on_the_same_memory(tmp_path: Path) -> None:
    async def main() -> None:
        placement = FakePlacement(total=1 * GIB)
        async with serving(tmp_path, placement=placement) as service:
            for uid in ("a", "b"):
                await service.launch(spec(uid, memory=GIB // 8))
            [plan] = (await service.status()).plan
            for uid in ("a", "b"):
                await service.sleep(uid)
            placement.total = plan.needed - plan.models[0].budget.total // 2
            outcomes = await asyncio.gather(service.wake("a"), service.wake("b"), return_exceptions=True)
            assert sorted(type(outcome).__name__ for outcome in outcomes) == ["DoesNotFit", "ModelStatus"]
            assert sorted(model.state for model in service.models()) == ["asleep", "ready"]

    run(main())


def test_a_model_whose_worker_died_in_its_sleep_is_loaded_when_it_is_wanted(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY) as service:
            for uid in ("a", "b"):
                await service.launch(spec(uid))
            await service.sleep("a")
            with pytest.raises(WorkerDown):
                await say(service, "b", "one crash two")
            assert service.model("a").state == "asleep"
            await until(lambda: service.model("b").state == "ready")
            assert service.model("a").state == "asleep"
            assert await say(service, "a", "hello") == "hello"
            assert service.model("a").state == "ready"

    run(main())


def test_a_worker_in_which_all_sleep_and_that_died_is_started_when_one_is_wanted(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY) as service:
            await service.launch(spec("a"))
            await service.launch(spec("b"))
            await service.sleep("a")
            with pytest.raises(WorkerDown):
                await say(service, "b", "crash")
            await service.terminate("b")
            assert (await service.status()).workers == ()
            assert (await service.wake("a")).state == "ready"

    run(main())


def test_a_model_sleeps_by_itself_when_nobody_asks_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            await service.launch(spec("a", sleep_after=0.05))
            await service.launch(spec("b"))
            await until(lambda: service.model("a").state == "asleep")
            assert await say(service, "a", "word " * 50) == "word " * 50  # 0.1 s: it does not sleep over it
            await until(lambda: service.model("a").state == "asleep")
            assert turns(service, "a") == ["asleep", "awake", "asleep"]
            assert service.model("b").state == "ready"

    run(main())


def test_only_who_serves_can_sleep_or_wake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_service, "MAX_REQUESTS", 1)

    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY) as service:
            await service.launch(spec("damaged"), wait=False)
            await service.launch(spec("slow", description=str(tmp_path / "never")), wait=False)
            await until(lambda: service.model("damaged").state == "failed")
            for verb in (service.sleep, service.wake):
                with pytest.raises(ModelFailed):
                    await verb("damaged")
                with pytest.raises(NotReady):
                    await verb("slow")
                with pytest.raises(UnknownModel):
                    await verb("nobody")

    run(main())


def test_a_model_can_be_terminated_in_its_sleep(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            await service.launch(spec("a"))
            await service.sleep("a")
            await service.terminate("a")
            assert service.models() == []
            assert (await service.status()).workers == ()
            for uid in ("a", "b"):
                await service.launch(spec(uid))
            talking = asyncio.create_task(say(service, "a", "word " * 200))
            await until(lambda: service.model("a").running)
            sleeping = asyncio.create_task(service.sleep("a"))
            await asyncio.sleep(0)
            late = asyncio.create_task(say(service, "a", "late"))
            await asyncio.sleep(0)
            await service.terminate("a")
            for request in (talking, late):
                with pytest.raises(UnknownModel):
                    await request
            await sleeping

    run(main())
