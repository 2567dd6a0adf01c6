"""`lodger models`: known and on disk, for people and for scripts, in a moment."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from lodger.cli.models import complete_name

Run = Callable[..., "CompletedProcess[str]"]
Tiny = Callable[..., Path]


@pytest.fixture
def models(tiny: Tiny, tmp_path: Path) -> Path:
    """The models folder of the home that `lodger` uses: two models that are whole, and half of one."""
    folder = tmp_path / "home" / "models"
    shutil.copytree(tiny("bge-m3"), folder / "bge-m3")
    shutil.copytree(tiny("llama"), folder / "团队" / "聊天")
    (folder / "BAAI" / "bge-reranker-base").mkdir(parents=True)
    return folder


def test_the_table_says_what_is_known_what_is_here_and_how_large(lodger: Run, models: Path) -> None:
    done = lodger("models")
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["NAME", "TYPE", "STATE", "ON", "DISK", "FOLDER"]
    assert ["Qwen3-4B-Instruct-2507", "chat", "-", "-", "-"] in lines
    [here] = [line for line in lines if line[:1] == ["bge-m3"]]
    assert (here[1:3], here[4:]) == (["embedding", "downloaded"], ["KiB", "bge-m3"])
    [own] = [line for line in lines if line[:1] == ["团队/聊天"]]
    assert own[1:3] == ["chat", "downloaded"]
    [half] = [line for line in lines if line[:2] == ["bge-reranker-base", "rerank"]]
    assert half[2:] == ["problem", "0", "B", "BAAI/bge-reranker-base"]
    assert "bge-reranker-base: bge-reranker-base is only partly on this machine" in done.stdout
    assert "Run: lodger pull --verify bge-reranker-base" in done.stdout
    assert f"3 in {models} (" in done.stderr  # talk is not data


def test_for_a_script_it_is_json_with_bytes(lodger: Run, models: Path) -> None:
    done = lodger("models", "--json")
    known = {model["name"]: model for model in json.loads(done.stdout)}
    assert known["bge-m3"]["state"] == "downloaded"
    assert known["bge-m3"]["bytes_on_disk"] > 1000
    assert known["bge-reranker-base"]["error"]["code"] == "not_downloaded"
    assert known["Qwen3-0.6B"] == {
        "name": "Qwen3-0.6B",
        "kind": "chat",
        "quantization": None,
        "state": "absent",
        "folder": None,
        "bytes_on_disk": None,
        "error": None,
        "modelscope": "Qwen/Qwen3-0.6B",
        "huggingface": "Qwen/Qwen3-0.6B",
        "xinference": "qwen3",
        "size_in_billions": 0.6,
        "aliases": [],
    }
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["meta-LLAMA/"], {"Llama-3.2-1B-Instruct", "Llama-3.2-3B-Instruct"}),
        (["qwen3-", "--kind", "rerank"], {"Qwen3-Reranker-0.6B", "Qwen3-Reranker-4B", "Qwen3-Reranker-8B"}),
        (["聊天"], {"团队/聊天"}),
        (["聊天", "-k", "embedding"], set()),
        (["no such model"], set()),
    ],
)
def test_a_word_and_a_kind_narrow_it_down(lodger: Run, models: Path, args: list[str], names: set[str]) -> None:
    assert {model["name"] for model in json.loads(lodger("models", *args, "--json").stdout)} == names
    shown = {line.split()[0] for line in lodger("models", *args).stdout.splitlines()[1:]}
    assert shown == names


def test_a_kind_that_there_is_not_is_wrong_usage(lodger: Run) -> None:
    done = lodger("models", "--kind", "image")
    assert done.returncode == 2
    assert "'chat', 'embedding', 'rerank'" in done.stderr


def test_it_takes_well_under_a_second_and_loads_nothing_heavy(lodger: Run, models: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    lodger("models")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    code = "import sys, lodger.cli as c; sys.argv = ['lodger', 'models']; c._app()(standalone_mode=False)\n"
    code += "print(*sorted({'torch', 'transformers', 'numpy', 'modelscope_hub', 'huggingface_hub'} & set(sys.modules)))"
    env = {**os.environ, "LODGER_HOME": str(models.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_shell_completion_knows_our_names_and_the_hubs_ids() -> None:
    assert complete_name("BGE-M") == ["bge-m3"]
    assert complete_name("baai/bge-m") == ["BAAI/bge-m3"]
    assert "Qwen3-4B-Instruct-2507" in complete_name("qwen3-4b-inst")
    assert not any("/" in name for name in complete_name(""))
    assert complete_name("nothing like it") == []
