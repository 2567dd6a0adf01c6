"""A server converts pickled weights before it loads them, in a child that ends with the wish for the model; and it
fetches nothing because a request says so."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest
import tiny_pytorch
from service_world import FakePlacement, run, serving, spec, until

from lodger.catalogue.safetensors_header import read_folder
from lodger.errors import Cancelled, NotDownloaded
from lodger.hub import prepare as preparing
from lodger.hub.base import Work
from lodger.hub.job import Moved
from lodger.paths import Home
from lodger.plan.values import Candidate
from lodger.spec import ModelSpec
from lodger.supervisor.placement import Placement
from lodger.tasks import EmbedTask


class RealFolders(FakePlacement):
    """A machine with one big device and the folders of a real home."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self._home = Home(home)

    def candidate(self, spec: ModelSpec) -> Candidate:
        return Placement.candidate(self, spec)


class Conversion:
    """Stands for the child process: goes on until whoever it tells has enough."""

    def __init__(self, done: int) -> None:
        self.told = msgspec.json.encode(Moved(Work("Converting model", done, 100))).decode()
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def __call__(self, module: str, arguments: list[str], *, report: Callable[[str], None]) -> None:
        try:
            while True:
                report(self.told)
                time.sleep(0.005)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.ended.set()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tiny_pytorch.make_bge_m3(tmp_path / "bge-m3"))


@pytest.fixture
def conversion(monkeypatch: pytest.MonkeyPatch) -> Conversion:
    made = Conversion(done=50)
    monkeypatch.setattr(preparing, "run_module", made)
    return made


def test_a_folder_with_pickles_only_is_served(tmp_path: Path, folder: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lodger")

    async def main() -> None:
        async with serving(tmp_path / "home", placement=RealFolders(tmp_path / "home")) as service:
            status = await service.launch(spec("m3", path=folder))
            assert (status.state, status.spec.path) == ("ready", folder)
            assert status.facts is not None
            assert status.facts.weights_format == "safetensors"
            assert (await service.embed(EmbedTask(model="m3", inputs=("one",)))).count == 1

    run(main())
    assert "embeddings.word_embeddings.weight" in read_folder(Path(folder))
    assert "m3: Converting bge-m3 to safetensors, once" in caplog.messages


def test_its_progress_is_seen_and_it_ends_with_the_model(tmp_path: Path, folder: str, conversion: Conversion) -> None:
    async def main() -> None:
        async with serving(tmp_path / "home", placement=RealFolders(tmp_path / "home")) as service:
            await service.launch(spec("m3", path=folder), wait=False)
            await until(lambda: service.model("m3").progress == 0.25)  # half of the first half
            assert service.model("m3").state == "loading"
            await service.terminate("m3")
            await until(conversion.ended.is_set)
            assert isinstance(conversion.error, Cancelled)
            assert service.models() == []

    run(main())


def test_it_ends_with_the_server(tmp_path: Path, folder: str, conversion: Conversion) -> None:
    async def main() -> None:
        async with serving(tmp_path / "home", placement=RealFolders(tmp_path / "home")) as service:
            await service.launch(spec("m3", path=folder), wait=False)
            await until(lambda: service.model("m3").progress)
        await until(conversion.ended.is_set)

    run(main())


def test_planning_converts_nothing(tmp_path: Path, folder: str, conversion: Conversion) -> None:
    async def main() -> None:
        async with serving(tmp_path / "home", placement=RealFolders(tmp_path / "home")) as service:
            [plan] = await service.plan((spec("m3", path=folder),))
            assert plan.models[0].budget.weights > 400_000

    run(main())
    assert not conversion.ended.is_set()
    assert not (Path(folder) / "model.safetensors").exists()


def test_a_request_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise AssertionError("a request fetched something")

    monkeypatch.setattr(preparing, "pull", refuse)

    async def main() -> None:
        async with serving(tmp_path / "home", placement=RealFolders(tmp_path / "home")) as service:
            known = ModelSpec(uid="m3", name="bge-m3")
            with pytest.raises(NotDownloaded) as caught:
                await service.launch(known)
            assert "lodger pull bge-m3" in caught.value.text
            assert str(tmp_path) not in caught.value.text
            await service.launch(known, wait=False)  # as lodger.yaml of `lodger serve` does
            await until(lambda: service.model("m3").state == "failed")
            error = service.model("m3").error
            assert error is not None
            assert (error.code, error.hint) == ("not_downloaded", caught.value.hint)

    run(main())
