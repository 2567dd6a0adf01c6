"""The service as its callers see it when nothing crashes: launch, plan, refuse, stream, drain, terminate."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from service_world import FAULTY, FakePlacement, chat, run, say, serving, spec, until

from lodger.errors import (
    Cancelled,
    ContextExceeded,
    DoesNotFit,
    Draining,
    FolderMissing,
    InvalidRequest,
    ModelFailed,
    ModelLoading,
    Overloaded,
    UidTaken,
    UnknownModel,
    Unsupported,
    WrongKind,
)
from lodger.plan.values import Candidate
from lodger.spec import ModelSpec
from lodger.supervisor import local_service
from lodger.tasks import EmbedTask, RerankTask, TokensTask
from lodger.units import GIB, MIB


def test_three_models_answer_from_one_worker(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            kinds = ("chat", "embedding", "rerank")
            for kind in kinds:
                await service.launch(spec(kind, kind=kind), wait=False)
            await until(lambda: all(model.state == "ready" for model in service.models()))
            assert await say(service, "chat", "你好 world") == "你好 world"
            embedded = await service.embed(EmbedTask(model="embedding", inputs=("one", "two words")))
            assert (embedded.count, embedded.dimensions, len(embedded.vectors)) == (2, 32, 2 * 32 * 4)
            ranked = await service.rerank(RerankTask(model="rerank", query="a b", documents=("x y", "b a")))
            assert ranked.scores[1] > ranked.scores[0]
            for kind in kinds:
                assert await service.tokens(TokensTask(model=kind, ids=((7, 8), (), (9,)))) == (("7", "8"), (), ("9",))
            with pytest.raises(WrongKind):
                await service.embed(EmbedTask(model="chat", inputs=("one",)))
            status = await service.status()
            assert [model.uid for model in status.models] == list(kinds)
            [worker], [plan] = status.workers, status.plan
            assert (worker.state, worker.device, worker.restarts) == ("up", "cpu", 0)
            assert worker.used > MIB
            assert [model.uid for model in plan.models] == list(kinds)
            assert plan.process > 0

    run(main())


class WithHeads(FakePlacement):
    """Its models make bge-m3's other outputs too."""

    def candidate(self, spec: ModelSpec) -> Candidate:
        found = super().candidate(spec)
        return Candidate(spec, replace(found.facts, token_heads=("sparse", "colbert")))


def test_weights_and_vectors_of_tokens_come_through(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, placement=WithHeads()) as service:
            await service.launch(spec("m", kind="embedding"))
            task = EmbedTask(model="m", inputs=("one", "two words"), outputs=("sparse", "colbert"))
            made = await service.embed(task)
            assert (made.vectors, made.count, made.colbert_dimensions) == (b"", 2, 32)
            assert [len(vectors) for vectors in made.colbert] == [1 * 32 * 4, 2 * 32 * 4]
            assert [len(vector.ids) for vector in made.sparse] == [4, 8]

    run(main())


def test_models_launched_together_are_planned_together(tmp_path: Path) -> None:
    """Each alone would take all that is left for its KV cache."""

    async def main() -> None:
        placement = FakePlacement(total=1 * GIB)
        async with serving(tmp_path, placement=placement) as service:
            for uid in ("a", "b", "c"):
                await service.launch(spec(uid), wait=False)
            await until(lambda: all(model.state == "ready" for model in service.models()))
            [plan] = (await service.status()).plan
            assert len({model.budget.kv_cache for model in plan.models}) == 1
            assert plan.needed <= GIB

    run(main())


def test_what_does_not_fit_is_refused_and_the_others_keep_what_they_have(tmp_path: Path) -> None:
    async def main() -> None:
        placement = FakePlacement(total=1 * GIB)
        async with serving(tmp_path, placement=placement) as service:
            await service.launch(spec("first"))
            [before] = (await service.status()).plan
            placement.total = before.needed + MIB
            with pytest.raises(DoesNotFit):
                await service.launch(spec("second"))
            assert [model.uid for model in service.models()] == ["first"]
            with pytest.raises(DoesNotFit):
                await service.plan((spec("second"),))
            await service.launch(spec("third"), wait=False)
            await until(lambda: service.model("third").state == "failed")
            error = service.model("third").error
            assert error is not None
            assert error.code == "does_not_fit"
            placement.total = 2 * GIB
            await service.launch(spec("third"))
            [after] = (await service.status()).plan
            assert after.models[0] == before.models[0]
            [planned] = await service.plan((spec("fourth"), spec("first")))
            assert [model.uid for model in planned.models] == ["first", "third", "fourth"]

    run(main())


def test_a_refused_launch_leaves_no_trace_and_an_accepted_one_tells_in_its_status(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            with pytest.raises(FolderMissing):
                await service.launch(spec("a", path="missing"))
            assert service.models() == []
            assert (await service.launch(spec("a", path="missing"), wait=False)).state == "loading"
            await until(lambda: service.model("a").state == "failed")
            with pytest.raises(ModelFailed, match="There is no folder 'missing'"):
                await say(service, "a", "hello")
            with pytest.raises(FolderMissing):
                await service.launch(spec("a", path="missing"))
            assert service.model("a").state == "failed"
            assert (await service.launch(spec("a"))).state == "ready"  # the uid of a failed model is free
            with pytest.raises(UidTaken, match="'a' is taken: that model is ready"):
                await service.launch(spec("a"))
            with pytest.raises(InvalidRequest):
                await service.launch(spec("a/b"))
            with pytest.raises(Unsupported, match="unknown engine 'magic'"):
                await service.launch(spec("b", engine="magic"))

    run(main())


def test_a_model_asked_for_at_the_last_moment_of_planning_is_planned_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            release = service._supervisor.release

            async def launch_meanwhile() -> None:
                await release()
                if len(service.models()) == 1:
                    await service.launch(spec("b"), wait=False)

            monkeypatch.setattr(service._supervisor, "release", launch_meanwhile)
            await service.launch(spec("a"))
            await until(lambda: [model.state for model in service.models()] == ["ready", "ready"])

    run(main())


def test_an_engine_name_that_changes_nothing_is_said_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            [note] = (await service.launch(spec("a", engine="vLLM"))).spec.notes
            assert "'vLLM' changes nothing" in note
            assert (await service.launch(spec("b", engine="echo"))).spec.notes == ()

    run(main())


def test_who_asks_too_early_is_told_how_far_it_is(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY) as service:
            gate = tmp_path / "gate"
            await service.launch(spec("slow", description=str(gate)), wait=False)
            await until(lambda: service.model("slow").progress == 0.25)
            with pytest.raises(ModelLoading, match="slow is loading, 25% done") as early:
                await say(service, "slow", "hello")
            assert early.value.retry_after
            gate.touch()
            await until(lambda: service.model("slow").state == "ready")
            with pytest.raises(UnknownModel, match="no model with the uid 'other'") as unknown:
                await say(service, "other", "hello")
            assert unknown.value.hint == "There are: slow."

    run(main())


def test_a_model_can_be_terminated_while_it_loads(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY) as service:
            gate = tmp_path / "gate"
            launching = asyncio.create_task(service.launch(spec("slow", description=str(gate))))
            await until(lambda: service.models() and service.model("slow").progress == 0.25)
            terminating = asyncio.create_task(service.terminate("slow"))
            with pytest.raises(Cancelled, match="terminated while it was loading"):
                await launching
            assert service.model("slow").state == "stopping"
            gate.touch()
            await terminating
            assert service.models() == []
            assert (await service.status()).workers == ()

    run(main())


def test_terminating_ends_requests_and_gives_the_process_back_with_the_last_model(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            await service.launch(spec("a"))
            await service.launch(spec("b"))
            talking = asyncio.create_task(say(service, "a", "word " * 200))
            await until(lambda: service.model("a").running)
            await service.terminate("a")
            with pytest.raises(UnknownModel, match="a was terminated before this request was done"):
                await talking
            assert len((await service.status()).workers) == 1
            await service.terminate("b")
            assert (await service.status()).workers == ()
            with pytest.raises(UnknownModel):
                await service.terminate("b")
            await service.launch(spec("a"))
            assert await say(service, "a", "hello") == "hello"

    run(main())


def test_a_stream_that_ends_with_its_process_ends_because_its_model_was_terminated(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, engine=FAULTY) as service:
            await service.launch(spec("a"))
            talking = asyncio.create_task(say(service, "a", "stubborn " * 200))
            await until(lambda: service.model("a").running)
            await service.terminate("a")
            with pytest.raises(UnknownModel, match="a was terminated before this request was done"):
                await talking

    run(main())


def test_a_crowd_is_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_service, "MAX_REQUESTS", 2)

    async def main() -> None:
        async with serving(tmp_path) as service:
            await service.launch(spec("a"))
            talking = [asyncio.create_task(say(service, "a", "word " * 100)) for _ in range(2)]
            await until(lambda: service.model("a").running == 2)
            with pytest.raises(Overloaded) as crowd:
                await say(service, "a", "hello")
            assert (crowd.value.status, crowd.value.retry_after) == (429, 1)
            await asyncio.gather(*talking)
            assert await say(service, "a", "hello") == "hello"

    run(main())


def test_draining_lets_running_streams_finish_and_takes_nothing_new(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            await service.launch(spec("a"))
            talking = asyncio.create_task(say(service, "a", "word " * 100))
            await until(lambda: service.model("a").running)
            draining = asyncio.create_task(service.drain(20))
            await asyncio.sleep(0)
            with pytest.raises(Draining):
                await say(service, "a", "hello")
            with pytest.raises(Draining):
                await service.launch(spec("b"))
            assert await talking == "word " * 100
            await draining
            assert (await service.status()).workers == ()

    run(main())


def test_draining_has_an_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            await service.launch(spec("a"))
            talking = asyncio.create_task(say(service, "a", "word " * 200))
            await until(lambda: service.model("a").running)
            await service.drain(0.05)
            with pytest.raises(Draining):
                await talking

    run(main())


def test_limits_of_a_request_are_the_callers_business(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            await service.launch(spec("a"))
            with pytest.raises(ContextExceeded, match="600 tokens, and the maximum context length of a is 512"):
                await say(service, "a", ("word " * 600).strip())
            with pytest.raises(InvalidRequest, match="cannot be passed on"):
                await say(service, "a", "half a surrogate \ud800")
            said = {0: "", 1: ""}
            async for delta in service.generate(chat("a", "x y", n=2)):
                said[delta.index] += delta.text
            assert said == {0: "x y", 1: "x y"}
            assert service.model("a").running == 0

    run(main())


def test_the_gateways_half_loads_no_torch() -> None:
    code = (
        "import sys, lodger.supervisor.local_service, lodger.metrics, lodger.engines.echo; "
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
