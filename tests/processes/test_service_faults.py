"""What goes wrong in a worker, and what its callers see of it. Real processes, real signals."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from pathlib import Path

import pytest
from service_world import FAULTY, UNSTARTABLE, chat, run, say, serving, spec, until

from lodger.errors import DamagedWeights, InternalError, ModelFailed, WorkerDown
from lodger.supervisor.local_service import LocalService


def worker_pid(service: LocalService) -> int:
    [worker] = service._supervisor.workers()
    assert worker.pid is not None
    return worker.pid


def worker_log(home: Path) -> str:
    return "".join(file.read_text() for file in (home / "logs").glob("worker-*.log"))


def loaded_in_order(home: Path) -> list[str]:
    return re.findall(r"\[(\w+)/\d+\] lodger.worker: loading", worker_log(home))


def test_a_crashed_worker_comes_back_and_everyone_is_told_why(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY) as service:
            await service.launch(spec("a"))
            await service.launch(spec("b"))
            first = worker_pid(service)
            bystander = asyncio.create_task(say(service, "b", "word " * 200))
            await until(lambda: service.model("b").running)
            started = time.monotonic()
            with pytest.raises(WorkerDown) as crashed:
                await say(service, "a", "now crash please and go on for a while")
            with pytest.raises(WorkerDown):
                await bystander
            assert time.monotonic() - started < 2
            assert "SIGSEGV" in crashed.value.message
            assert "/secret" not in crashed.value.message
            assert crashed.value.retry_after == 1
            with pytest.raises(WorkerDown, match="b is being restarted: .*SIGSEGV") as refused:
                await say(service, "b", "hello")
            assert refused.value.retry_after == 1
            assert service.model("a").log_tail

            await until(lambda: [model.state for model in service.models()] == ["ready", "ready"])
            assert await say(service, "a", "hello again") == "hello again"
            assert worker_pid(service) != first
            assert [model.restarts for model in service.models()] == [1, 1]
            assert loaded_in_order(tmp_path) == ["a", "b", "a", "b"]

    run(main())


def test_each_death_in_a_row_doubles_the_wait(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY) as service:
            await service.launch(spec("a"))
            for wait in ("0.5 s", "1 s"):
                os.kill(worker_pid(service), signal.SIGKILL)
                await until(lambda: service.model("a").state == "restarting")
                error = service.model("a").error
                assert error is not None
                assert "was ended by SIGKILL" in error.message
                assert f"started again in {wait}" in (error.hint or "")
                assert "memory ran out" in (error.hint or "")
                await until(lambda: service.model("a").state == "ready")

    run(main())


def test_a_hung_worker_is_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY, silence=1.5) as service:
            await service.launch(spec("a"))
            first = worker_pid(service)
            with pytest.raises(WorkerDown, match=r"no sign of life for 1\.5 s"):
                await say(service, "a", "please hang now")
            await until(lambda: service.model("a").state == "ready")
            assert worker_pid(service) != first
            assert await say(service, "a", "hello") == "hello"

    run(main())


def test_an_idle_worker_may_be_silent(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, silence=0.1) as service:  # far less than the time between two heartbeats
            await service.launch(spec("a"))
            first = worker_pid(service)
            await asyncio.sleep(0.5)
            assert (service.model("a").state, worker_pid(service)) == ("ready", first)

    run(main())


def test_a_worker_whose_engine_cannot_go_on_ends_and_is_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY) as service:
            await service.launch(spec("a"))
            first = worker_pid(service)
            assert await say(service, "a", "poison") == "poison"
            await until(lambda: service.model("a").state == "restarting")
            error = service.model("a").error
            assert error is not None
            assert "exited with code 1. Its last words: lodger.errors.InternalError: the device's" in error.message
            await until(lambda: service.model("a").state == "ready")
            assert worker_pid(service) != first

    run(main())


def test_a_model_that_failed_to_load_stays_listed(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY) as service:
            await service.launch(spec("good"))
            with pytest.raises(DamagedWeights, match="4 bytes early"):
                await service.launch(spec("damaged"))
            status = service.model("damaged")
            assert status.state == "failed"
            assert status.error is not None
            assert status.error.code == "damaged_weights"
            assert "tensor 7 of damaged ends early" in "\n".join(status.log_tail)
            assert "loading fake" not in "".join(line for line in status.log_tail if "[good/" in line)
            with pytest.raises(ModelFailed, match="not served: model.safetensors ends 4 bytes early"):
                await say(service, "damaged", "hello")
            assert await say(service, "good", "hello") == "hello"
            assert any("tensor 7" in line for line in service.logs("damaged", 50))
            assert not any("tensor 7" in line for line in service.logs("good", 50))
            await service.terminate("damaged")
            assert [model.uid for model in service.models()] == ["good"]

    run(main())


def test_a_model_that_kills_its_worker_fails_after_three_tries_and_the_others_stay(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY) as service:
            launching = asyncio.create_task(service.launch(spec("deadly")))
            await until(service.models)
            await service.launch(spec("good"), wait=False)
            with pytest.raises(ModelFailed, match="died 3 times in a row while loading it.*exited with code 7"):
                await launching
            assert "about to die for deadly" in "\n".join(service.model("deadly").log_tail)
            await until(lambda: service.model("good").state == "ready")
            assert await say(service, "good", "still here") == "still here"
            # After the first death the innocent goes first, so that it is served between the tries.
            assert loaded_in_order(tmp_path) == ["deadly", "good", "deadly", "good", "deadly", "good"]

    run(main())


def test_an_engine_that_cannot_start_fails_its_models(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=UNSTARTABLE) as service:
            with pytest.raises(ModelFailed, match="ImportError: no library for cpu"):
                await service.launch(spec("a"))
            assert service.model("a").state == "failed"

    run(main())


def test_a_defect_ends_one_request_and_its_trace_stays_in_the_log(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY) as service:
            await service.launch(spec("a"))
            with pytest.raises(InternalError) as defect:
                await say(service, "a", "defect")
            assert "/secret/path" not in defect.value.text
            assert await say(service, "a", "hello") == "hello"
        log = worker_log(tmp_path)
        assert "KeyError: '/secret/path'" in log
        assert "[a/2] lodger.worker: a defect of ours" in log

    run(main())


def test_closing_a_stream_cancels_it_in_the_engine(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY) as service:
            await service.launch(spec("a"))
            deltas = service.generate(chat("a", "word " * 200))
            await deltas.__anext__()
            await deltas.aclose()  # type: ignore[attr-defined]
            assert service.model("a").running == 0
            await until(lambda: "left after" in worker_log(tmp_path))
            left = int(worker_log(tmp_path).split("left after ")[1].split()[0])
            assert left < 100
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(say(service, "a", "word " * 200), 0.05)
            await until(lambda: worker_log(tmp_path).count("left after") == 2)

    run(main())


def test_two_services_do_not_disturb_each_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path / "1", engine=FAULTY) as one, serving(tmp_path / "2", engine=FAULTY) as two:
            await asyncio.gather(one.launch(spec("a")), two.launch(spec("a")))
            pid = worker_pid(two)
            talking = asyncio.create_task(say(two, "a", "word " * 30))
            with pytest.raises(WorkerDown):
                await say(one, "a", "crash now please")
            await one.close()
            assert await talking == "word " * 30
            assert worker_pid(two) == pid

    run(main())
