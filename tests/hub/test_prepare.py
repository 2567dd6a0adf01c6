"""From a name to a folder that can be loaded, doing only what is missing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest
import tiny
import tiny_pytorch
import torch
from safetensors.torch import load_file

from lodger.catalogue.inspect import inspect_folder
from lodger.catalogue.repository import Repository
from lodger.errors import HubUnreachable, ModelProblem, SetupProblem, UnknownName
from lodger.hub import prepare as preparing
from lodger.hub.base import Report, Work
from lodger.hub.convert import convert
from lodger.hub.job import Moved
from lodger.hub.prepare import fetch, loadable, prepare
from lodger.paths import Home
from lodger.spec import ModelSpec

PICKLE, RESULT = "pytorch_model.bin", "model.safetensors"
BGE = ModelSpec(uid="bge-m3-local", name="bge-m3")


def quiet(work: Work) -> None:
    pass


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").make()


@pytest.fixture
def published(home: Home) -> Path:
    """bge-m3 on this disk, as it is published."""
    return tiny_pytorch.make_bge_m3(home.models / "bge-m3")


@pytest.fixture
def nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where something is fetched or a process is started."""

    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise AssertionError(f"not needed: {arguments}")

    monkeypatch.setattr(preparing, "pull", refuse)
    monkeypatch.setattr(preparing, "run_module", refuse)


@pytest.mark.usefixtures("nothing_to_do")
def test_what_is_here_costs_no_request_no_process_and_no_time(home: Home) -> None:
    folder = tiny.make_bge_m3(home.models / "bge-m3")
    found = prepare(BGE, home, quiet)
    assert (found.uid, found.path, found.kind) == ("bge-m3-local", str(folder), "embedding")
    started = time.process_time()
    for _ in range(10):
        prepare(BGE, home, quiet)
    assert time.process_time() - started < 1


def test_from_nothing_to_a_folder_that_can_be_loaded(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    pulls: list[tuple[Repository, Any]] = []

    def pull(repository: Repository, models: Path, report: Report, *, say: Any, hub: Any) -> None:
        pulls.append((repository, hub))
        say("on its way")
        report(Work("bge-m3", 1, 1))
        tiny_pytorch.make_bge_m3(models / repository.folder)

    monkeypatch.setattr(preparing, "pull", pull)
    told: list[str] = []
    found = prepare(BGE, home, lambda work: told.append(work.title), say=told.append, hub="huggingface")
    assert pulls == [(Repository(folder="bge-m3", modelscope="BAAI/bge-m3", huggingface="BAAI/bge-m3"), "huggingface")]
    assert list(dict.fromkeys(told)) == ["on its way", "bge-m3", "Converting bge-m3"]
    facts = inspect_folder(found.path or "")
    assert (facts.weights_format, facts.token_heads) == ("safetensors", ("sparse", "colbert"))
    told.clear()
    assert prepare(BGE, home, lambda work: told.append(work.title)) == found
    assert (told, len(pulls)) == ([], 1)


def test_an_unknown_name_is_fetched_nowhere(home: Home, nothing_to_do: None) -> None:
    with pytest.raises(UnknownName):
        prepare(ModelSpec(uid="nonsense"), home, quiet)


def test_a_hub_that_does_not_answer_is_said(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(*arguments: Any, **options: Any) -> NoReturn:
        raise HubUnreachable("no answer")

    monkeypatch.setattr(preparing, "pull", pull)
    with pytest.raises(HubUnreachable):
        fetch(BGE, home, quiet)


@pytest.mark.usefixtures("nothing_to_do")
def test_what_cannot_be_served_is_not_converted_first(home: Home, published: Path) -> None:
    (published / "tokenizer.json").unlink()
    with pytest.raises(ModelProblem, match="tokenizer.json"):
        prepare(BGE, home, quiet)


def test_a_refusal_in_the_child_is_the_same_error_here(home: Home, published: Path) -> None:
    class Calls:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("true",)

    torch.save({"weight": Calls()}, published / "sparse_linear.pt")
    with pytest.raises(ModelProblem, match="sparse_linear.pt asks for 'posix.system'") as caught:
        prepare(BGE, home, quiet)
    assert not isinstance(caught.value, SetupProblem)


def test_the_last_words_of_a_child_go_to_the_log_alone(
    home: Home, published: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def run_module(*arguments: Any, **options: Any) -> NoReturn:
        raise SetupProblem("lodger.hub.convert was ended by SIGKILL: /a/secret/path")

    monkeypatch.setattr(preparing, "run_module", run_module)
    with pytest.raises(SetupProblem, match="conversion of bge-m3 to safetensors was ended") as caught:
        prepare(BGE, home, quiet)
    assert "secret" not in caught.value.text
    assert "secret" in caplog.text


def test_raising_while_it_reports_ends_the_child(home: Home, published: Path) -> None:
    class Enough(Exception):
        pass

    def report(work: Work) -> NoReturn:
        raise Enough

    with pytest.raises(Enough):
        prepare(BGE, home, report)
    assert not (published / RESULT).exists()
    prepare(BGE, home, quiet)
    assert (published / RESULT).exists()


class TestReadOnly:
    """A folder that nothing can be written into: another's, a mounted image. Here it is said to be so, for root may
    write anywhere."""

    @pytest.fixture(autouse=True)
    def _cannot_be_written(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def in_this_process(module: str, arguments: list[str], *, report: Callable[[str], None]) -> None:
            assert module == "lodger.hub.convert"
            convert(*map(Path, arguments), lambda work: report(msgspec.json.encode(Moved(work)).decode()))

        monkeypatch.setattr(preparing, "_writable", lambda folder: False)
        monkeypatch.setattr(preparing, "run_module", in_this_process)  # torch is imported here already

    @pytest.fixture
    def target(self, home: Home, published: Path) -> Path:
        self.before = self.look(published)
        target = loadable(published, home, quiet)
        assert self.look(published) == self.before
        return target

    def look(self, folder: Path) -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}

    def test_another_folder_stands_for_it(self, home: Home, published: Path, target: Path) -> None:
        assert target.is_relative_to(home.cache / "converted")
        assert target.name == "bge-m3"
        here, there = inspect_folder(published), inspect_folder(target)
        assert there.weights_format == "safetensors"
        assert (there.pooling, there.token_heads) == (here.pooling, here.token_heads)
        state = torch.load(published / PICKLE, weights_only=True)
        found = load_file(target / RESULT)
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
        assert not list(target.glob("*.bin"))
        assert not list(target.glob("*.pt"))

    def test_the_next_time_nothing_is_done(
        self, home: Home, published: Path, target: Path, request: pytest.FixtureRequest
    ) -> None:
        request.getfixturevalue("nothing_to_do")
        assert loadable(published, home, quiet) == target

    def test_a_changed_file_is_copied_again_and_no_weights_with_it(
        self, home: Home, published: Path, target: Path
    ) -> None:
        made = (target / RESULT).stat().st_ino
        (published / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
        assert loadable(published, home, quiet) == target
        assert inspect_folder(target).pooling == "mean"
        assert (target / RESULT).stat().st_ino == made

    def test_changed_weights_are_converted_again(self, home: Home, published: Path, target: Path) -> None:
        state = {name: tensor + 1 for name, tensor in torch.load(published / PICKLE, weights_only=True).items()}
        torch.save(state, published / PICKLE)
        assert loadable(published, home, quiet) == target
        found = load_file(target / RESULT)
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())

    def test_published_safetensors_go_along(self, home: Home) -> None:
        folder = tiny_pytorch.make_bge_m3(home.models / "heads-only")
        tiny.make_bge_m3(folder)
        target = loadable(folder, home, quiet)
        assert (target / RESULT).read_bytes() == (folder / RESULT).read_bytes()
        assert (target / "sparse_linear.safetensors").exists()

    def test_a_link_out_of_the_folder_is_not_followed(self, home: Home, published: Path) -> None:
        secret = home.root / "secret"
        secret.write_text("precious")
        (published / "extra.json").symlink_to(secret)
        with pytest.raises(ModelProblem, match="extra.json is a link"):
            loadable(published, home, quiet)
        assert all(b"precious" not in path.read_bytes() for path in home.cache.rglob("*") if path.is_file())

    def test_converted_before_it_became_read_only(
        self, home: Home, published: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
    ) -> None:
        with monkeypatch.context() as writable:
            writable.setattr(preparing, "_writable", lambda folder: True)
            loadable(published, home, quiet)
        request.getfixturevalue("nothing_to_do")
        assert loadable(published, home, quiet) == published


def test_whether_a_folder_can_be_written_is_tried(tmp_path: Path) -> None:
    assert preparing._writable(tmp_path)
    assert os.listdir(tmp_path) == []
    assert not preparing._writable(tmp_path / "absent")
    assert not preparing._writable(Path("/proc"))  # whoever we are
