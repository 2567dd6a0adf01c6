"""Pickles damaged or made to harm, conversions that are killed, disks that are full: named, and nothing is left."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import pickle
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny_pytorch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lodger.errors import DamagedWeights, LodgerError, ModelProblem, NotEnoughDisk
from lodger.hub import convert as converting
from lodger.hub.base import Work
from lodger.hub.conversion import RECORD, pending
from lodger.hub.convert import convert, main
from lodger.hub.job import Failed, Moved
from lodger.hub.pickles import read_pickle

PICKLE, RESULT = "pytorch_model.bin", "model.safetensors"
STATE = {"a": torch.arange(1000, dtype=torch.float32), "b": torch.ones(3).half()}


def quiet(work: Work) -> None:
    pass


def refusal(folder: Path) -> LodgerError:
    """Why `folder` is not converted; it looks as before."""
    before = sorted(os.listdir(folder))
    with pytest.raises(ModelProblem) as caught:
        convert(folder, folder, quiet)
    assert sorted(os.listdir(folder)) == before
    assert "\n" not in caught.value.text
    assert str(folder) not in caught.value.text
    return caught.value


class Calls:
    """Unpickled, it calls `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class Dangerous(dict):  # type: ignore[type-arg]
    """A state dict that calls when its state is set."""

    def __reduce__(self) -> Any:
        return collections.OrderedDict, (), None, None, iter([("a", Calls(os.system, "touch canary"))])


@pytest.mark.parametrize(
    ("made", "asked"),
    [
        (lambda: {"a": torch.ones(1), "b": Calls(os.system, "touch canary")}, "posix.system"),
        (lambda: {"a": torch.ones(1), "b": Calls(eval, "open('canary', 'w')")}, "eval"),
        (lambda: {"a": [({"b": Calls(exec, "open('canary', 'w')")},)]}, "exec"),
        (lambda: {"a": Calls(shutil.rmtree, "canary")}, "shutil.rmtree"),
        (lambda: Calls(getattr, Calls(__import__, "os"), "system"), "getattr"),
        (lambda: Dangerous(), "posix.system"),
        (lambda: Calls(torch.load, "canary", None), "torch.serialization.load"),
        (lambda: Calls(torch.hub.load, "a/b", "c"), "torch.hub.load"),
        (lambda: torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_wants_code_is_refused_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[], Any], asked: str, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(made(), tmp_path / PICKLE, _use_new_zipfile_serialization=not legacy)
    error = refusal(tmp_path)
    assert f"{PICKLE} asks for {asked!r}" in error.message
    assert "none of it was run" in error.message
    assert not (tmp_path / "canary").exists()


def test_the_canary_sings_where_nobody_is_careful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail."""
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Calls(os.system, "touch canary")}, tmp_path / PICKLE)
    torch.load(tmp_path / PICKLE, weights_only=False)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("head", ["sparse_linear.pt", "colbert_linear.pt"])
def test_heads_are_read_as_carefully_as_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Calls(os.system, "touch canary")}, tmp_path / head)
    assert f"{head} asks for 'posix.system'" in refusal(tmp_path).message
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(1),
        [torch.ones(1)],
        {},
        {"model": {"a": torch.ones(1)}},
        {"a": torch.ones(1), "step": 7},
        {1: torch.ones(1)},
        {"__metadata__": torch.ones(1)},
        {"a": torch.ones(2).to_sparse()},
        {"a": torch.ones(2, dtype=torch.complex64)},
        {"a": torch.empty(2, device="meta")},
    ],
    ids=str,
)
def test_only_named_tensors_are_weights(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / PICKLE)
    assert PICKLE in refusal(tmp_path).message


def test_a_number_repeated_a_billion_times_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(10**12)}, tmp_path / PICKLE)
    assert "would have 4,000,000,000,000 bytes" in refusal(tmp_path).message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "is a Git LFS pointer"),
        (b"\0" * 1000, "is not a whole file of weights"),
        (pickle.dumps({"a": [1, 2]}), "is not a whole file of weights"),
        (b"PK\x03\x04" + b"\0" * 100, "is damaged or cut short"),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_other_files_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / PICKLE).write_bytes(content)
    assert said in refusal(tmp_path).message


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "plain")
    with (
        zipfile.ZipFile(tmp_path / "plain") as plain,
        zipfile.ZipFile(tmp_path / PICKLE, "w", zipfile.ZIP_DEFLATED) as to,
    ):
        for name in plain.namelist():
            to.writestr(name, plain.read(name))
    assert "compressed" in refusal(tmp_path).message


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "elsewhere")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / PICKLE).symlink_to(tmp_path / "elsewhere")
    assert "leads out of the model's folder" in refusal(tmp_path / "model").message


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / PICKLE)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (f".{RESULT}.partial", f"{RECORD}.new"):
        (tmp_path / name).symlink_to(victim)
    convert(tmp_path, tmp_path, quiet)
    assert victim.read_text() == "precious"
    assert not (tmp_path / RESULT).is_symlink()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / PICKLE
    torch.save(STATE, path)
    return path.read_bytes()


@settings(max_examples=150)
@given(data=st.data())
def test_damage_anywhere_is_noticed_or_harms_no_tensor(
    tmp_path_factory: pytest.TempPathFactory, saved: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(saved)
    if data.draw(st.booleans(), label="cut"):
        del damaged[data.draw(st.integers(0, len(saved) - 1)) :]
    else:
        damaged[data.draw(st.integers(0, len(saved) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(damaged)
    with contextlib.suppress(ModelProblem):
        found = read_pickle(path, lambda count: None)
        assert found.keys() == STATE.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize("step", [1, 1000])
def test_a_cut_file_is_always_noticed(tmp_path: Path, saved: bytes, step: int) -> None:
    (tmp_path / PICKLE).write_bytes(saved[:-step])
    assert isinstance(refusal(tmp_path), DamagedWeights)


def test_an_archive_that_says_it_begins_before_its_file_is_damaged(tmp_path: Path, saved: bytes) -> None:
    damaged = bytearray(saved)
    damaged[saved.rindex(b"PK\6\6") + 48] += 1  # where the directory begins, in zip64's end of central directory
    (tmp_path / PICKLE).write_bytes(damaged)
    assert isinstance(refusal(tmp_path), DamagedWeights)


def test_a_source_that_grows_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(STATE, tmp_path / PICKLE)

    def read(path: Path, advance: Callable[[int], None]) -> dict[str, torch.Tensor]:
        found = read_pickle(path, advance)
        os.utime(path, ns=(1, 1))
        return found

    monkeypatch.setattr(converting, "read_pickle", read)
    assert "changed while it was read" in refusal(tmp_path).message


def test_a_disk_too_small_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(STATE, tmp_path / PICKLE)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 3000}))
    with pytest.raises(NotEnoughDisk, match="needs 64 MiB .* 3 KiB are free"):
        convert(tmp_path, tmp_path, quiet)
    assert os.listdir(tmp_path) == [PICKLE]


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "not_enough_disk"), (errno.EDQUOT, "not_enough_disk"), (errno.EIO, "setup_problem")],
)
def test_a_disk_that_fails_meanwhile_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int, code: str
) -> None:
    torch.save(STATE, tmp_path / PICKLE)

    def fail(handle: int) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / RESULT))

    monkeypatch.setattr("os.fsync", fail)
    main([str(tmp_path), str(tmp_path)])
    told = msgspec.json.decode(capfd.readouterr().out.splitlines()[-1], type=Moved | Failed)
    assert isinstance(told, Failed)
    assert told.error.code == code
    assert str(tmp_path) not in told.error.message
    assert os.listdir(tmp_path) == [PICKLE]


def test_killed_anywhere_it_leaves_nothing_half_made(tmp_path: Path) -> None:
    torch.save({"a": torch.randn(2_000_000), "b": torch.randn(2_000_000)}, tmp_path / PICKLE)
    script = Path(__file__).with_name("killed_conversions.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "30"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 15, "most were killed in the middle"


def test_two_at_once_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_pytorch.make_bge_m3(tmp_path)
    threads = [threading.Thread(target=convert, args=(folder, folder, quiet)) for _ in range(4)]
    written, write = [], converting._write

    def counted(*arguments: Any) -> Any:
        written.append(arguments[1].name)
        return write(*arguments)

    monkeypatch.setattr(converting, "_write", counted)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(written) == [
        f".{name}.partial" for name in ("colbert_linear.safetensors", RESULT, "sparse_linear.safetensors")
    ]
    assert pending(folder, folder) == []
    assert load_file(folder / RESULT)
    assert not (folder / converting.LOCK).exists()
