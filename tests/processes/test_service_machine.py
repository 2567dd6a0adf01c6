"""The service on this machine as it is: real folders, real memory, workers that are not done when it ends."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import tiny
from service_world import FAULTY, run, say, serving, spec, until

from lodger.errors import ConfigProblem, DoesNotFit, FolderMissing, UnknownName
from lodger.process import identity
from lodger.service import WorkerStatus
from lodger.spec import ModelSpec
from lodger.supervisor.local_service import LocalService
from lodger.units import TIB


def only_worker(service: LocalService) -> WorkerStatus:
    [worker] = service._supervisor.workers()
    return worker


def test_a_folder_is_found_read_planned_and_served(tmp_path: Path) -> None:
    tiny.write_fake_folder(tmp_path / "models" / "My-Chat")
    by_path = tiny.write_fake_folder(tmp_path / "elsewhere" / "bge", "bge-m3")

    async def main() -> None:
        async with serving(tmp_path, placement=None, device="cpu", reserve=0) as service:
            await service.launch(ModelSpec(uid="a", name="My-Chat"), wait=False)
            await service.launch(ModelSpec(uid="b", path=str(by_path)), wait=False)
            await until(lambda: all(model.state == "ready" for model in service.models()))
            facts = [model.facts for model in service.models()]
            assert [fact.kind if fact else None for fact in facts] == ["chat", "embedding"]
            assert await say(service, "a", "hello") == "hello"
            status = await service.status()
            [plan] = status.plan
            assert plan.device.id == "cpu"
            assert plan.device.ours > 0
            assert plan.reserve == 0
            assert [model.uid for model in plan.models] == ["a", "b"]
            assert status.home == str(tmp_path)
            with pytest.raises(UnknownName):
                await service.launch(ModelSpec(uid="c", name="No-Such-Model"))
            with pytest.raises(FolderMissing):
                await service.plan((ModelSpec(uid="c", path=str(tmp_path / "nowhere")),))

    run(main())


def test_a_reserve_is_kept_and_a_missing_device_is_said(tmp_path: Path) -> None:
    folder = tiny.write_fake_folder(tmp_path / "model")

    async def main() -> None:
        async with serving(tmp_path, placement=None, device="cpu", reserve=4 * TIB) as service:
            with pytest.raises(DoesNotFit):
                await service.launch(ModelSpec(uid="a", path=str(folder)))
            [plan] = (await service.status()).plan
            assert plan.reserve == 4 * TIB
            assert plan.models == ()
        async with serving(tmp_path, placement=None, device="cuda:99") as service:
            with pytest.raises(ConfigProblem, match="cuda:99"):
                await service.launch(ModelSpec(uid="a", path=str(folder)))

    run(main())


def test_closing_while_a_worker_starts_leaves_no_process(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            await service.launch(spec("a"), wait=False)
            await until(lambda: service._supervisor.workers() and only_worker(service).pid)
            pid = only_worker(service).pid
            assert pid is not None
            assert only_worker(service).state == "starting"
        assert identity(pid) is None

    run(main())


def test_closing_while_a_model_loads_does_not_wait_for_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY) as service:
            await service.launch(spec("slow", description=str(tmp_path / "never")), wait=False)
            await until(lambda: service.model("slow").progress)
            pid = only_worker(service).pid
            assert pid is not None
            started = time.monotonic()
            await asyncio.gather(service.close(), service.drain(1))  # a second signal during the first
            assert time.monotonic() - started < 5
            assert identity(pid) is None

    run(main())
