"""The installed command: quick, light, one line for an error, data on stdout and talk on stderr."""

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
from scripted_http import Scripted

from lodger.cli import COMMANDS

Run = Callable[..., "CompletedProcess[str]"]
Tiny = Callable[..., Path]


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time of the child processes that `run` starts: unlike a clock it does not see who else is busy."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_is_quick_and_names_every_command(lodger: Run) -> None:
    assert cpu_seconds(lambda: lodger("--help")) < 0.5
    lines = lodger("--help").stdout.splitlines()
    for name in COMMANDS:
        [line] = [line for line in lines if line.startswith(f"  {name} ")]
        assert not line.endswith("...")  # it fits


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(lodger: Run, name: str) -> None:
    done = lodger(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: lodger {name}")


def test_plan_and_doctor_answer_within_a_second(lodger: Run, tiny: Tiny) -> None:
    assert cpu_seconds(lambda: lodger("plan", str(tiny("qwen3")), str(tiny("bge-m3")))) < 1.0
    assert cpu_seconds(lambda: lodger("doctor")) < 1.0


@pytest.mark.parametrize("args", [["--help"], ["plan", "FOLDER"], ["doctor"], ["list"], ["up", "--help"]])
def test_no_heavy_library_is_ever_loaded(args: list[str], tiny: Tiny, tmp_path: Path) -> None:
    argv = ["lodger", *(str(tiny("qwen3")) if arg == "FOLDER" else arg for arg in args)]
    code = f"""
import sys
from lodger.cli import main
sys.argv = {argv!r}
try:
    main()
except SystemExit:
    pass
print("heavy:", *({{name.split(".")[0] for name in sys.modules}} & {{"torch", "transformers", "numpy", "fastapi"}}))
"""
    env = {**os.environ, "LODGER_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.splitlines()[-1].strip() == "heavy:"


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "lodger", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lodger 0.")


def test_plan_prints_every_part_and_as_json_bytes(lodger: Run, tiny: Tiny) -> None:
    args = ["plan", str(tiny("qwen3")), str(tiny("bge-reranker")), "--gpu", "80GiB,free=14GiB"]
    text = lodger(*args).stdout
    for part in ("80.00 GiB", "14.00 GiB", "reserve", "qwen3", "weights", "KV cache", "activations", "left"):
        assert part in text
    plan = json.loads(lodger(*args, "--json").stdout)
    assert plan["device"]["total"] == 80 * 2**30
    assert [(model["uid"], model["kind"]) for model in plan["models"]] == [
        ("qwen3", "chat"),
        ("bge-reranker", "rerank"),
    ]
    assert all(isinstance(model[part], int) for model in plan["models"] for part in ("weights", "activations", "total"))


def test_a_plan_for_two_cards_is_one_table_for_each(lodger: Run, tiny: Tiny, tmp_path: Path) -> None:
    models = f"models: {{chat: {{path: {tiny('qwen3')}, replicas: 2}}, m3: {{path: {tiny('bge-m3')}, gpu: 1}}}}"
    (tmp_path / "lodger.yaml").write_text(models)
    args = ["plan", "--file", str(tmp_path / "lodger.yaml"), "--gpu", "A:24GiB", "--gpu", "B:80GiB,free=14GiB"]
    first, second = lodger(*args).stdout.split("\n\n")
    assert first.splitlines()[0].split() == ["A", "24.00", "GiB", "cuda:0,", "as", "described"]
    assert second.splitlines()[0].split() == ["B", "80.00", "GiB", "cuda:1,", "as", "described"]
    plans = json.loads(lodger(*args, "--json").stdout)
    assert [[model["uid"] for model in plan["models"]] for plan in plans] == [["chat"], ["chat", "m3"]]
    one = lodger(*args[:5])
    assert one.returncode == 1
    assert "chat is to have 2 replicas, each on a GPU of its own" in one.stderr


def test_a_plan_that_does_not_fit_is_one_line_with_numbers_and_a_way_out(lodger: Run, tiny: Tiny) -> None:
    done = lodger("plan", str(tiny("qwen3")), "--gpu", "8GiB,free=1GiB")
    assert done.returncode == 1
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith("Error: ")
    assert error.count("GiB") + error.count("MiB") >= 2
    assert hint.startswith("hint: ")


def test_two_folders_of_one_name_are_told_apart(lodger: Run, tiny: Tiny, tmp_path: Path) -> None:
    for place in ("a", "b"):
        shutil.copytree(tiny("bge-m3"), tmp_path / place / "same")
    plan = json.loads(lodger("plan", "a/same", "b/same", "--gpu", "8GiB", "--json").stdout)
    assert [model["uid"] for model in plan["models"]] == ["a/same", "b/same"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["plan"], "There is no lodger.yaml in this folder."),
        (["plan", "nowhere"], "There is no folder 'nowhere'."),
        (["plan", "--gpu", "big", "."], "'big' is not a size"),
        (["up", "-d", "-f", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["serve", "--host", "0.0.0.0"], "Listening on 0.0.0.0 lets every machine"),
        (["serve", "--reserve", "much"], "'much' is not a size"),
        (["list"], "No server runs for the home"),
        (["list", "-e", "localhost:9997"], "is not the address of a server"),
        (["logs", "chat"], "No server runs for the home"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_line_and_a_hint(lodger: Run, args: list[str], said: str) -> None:
    done = lodger(*args)
    assert done.returncode == 1
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith("Error: ")
    assert said in error
    assert hint.startswith("hint: ")


@pytest.mark.parametrize("args", [["nonsense"], ["list", "--nonsense"], ["serve", "--port", "70000"], ["terminate"]])
def test_wrong_usage_exits_with_two(lodger: Run, args: list[str]) -> None:
    done = lodger(*args)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_mistakes_in_the_file_are_pointed_at(lodger: Run, tmp_path: Path) -> None:
    (tmp_path / "lodger.yaml").write_text("models:\n  chat: {pth: here}\n")
    done = lodger("plan")
    assert done.returncode == 1
    assert "lodger.yaml:2" in done.stderr


def test_doctor_is_a_table_or_json(lodger: Run) -> None:
    checks = json.loads(lodger("doctor", "--json").stdout)
    assert {"name", "state", "measured"} <= checks[0].keys()
    table = lodger("doctor").stdout
    assert all(check["name"] in table for check in checks)


def test_doctor_exits_with_one_when_something_cannot_work(lodger: Run, tmp_path: Path) -> None:
    (tmp_path / "lodger.yaml").write_text("models:\n  chat: no/such/folder\n")
    for words in (["doctor"], ["doctor", "-f", "lodger.yaml"]):
        done = lodger(*words)
        assert done.returncode == 1
        assert "no/such/folder" in done.stdout + done.stderr


def test_the_key_and_address_come_from_the_environment_too(
    lodger: Run, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LODGER_ENDPOINT", server.url)
    monkeypatch.setenv("LODGER_API_KEY", "s3cret")
    server.reply = (200, {}, b"[]")
    assert "No models" in lodger("list").stderr
    assert server.seen[0][2]["authorization"] == "Bearer s3cret"


def test_colour_only_on_a_terminal_that_wants_it(lodger: Run) -> None:
    code = (
        "import pty, sys, os\n"
        f"status = pty.spawn([{str(Path(sys.executable).with_name('lodger'))!r}, 'list'])\n"
        "sys.exit(os.waitstatus_to_exitcode(status))"
    )
    for extra, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        env = {**os.environ, "TERM": "xterm", **extra}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, stdin=subprocess.PIPE, env=env)
        assert done.returncode == 1
        assert b"Error: " in done.stdout.replace(b"\x1b[1;31m", b"").replace(b"\x1b[0m", b"")
        assert (b"\x1b[1;31m" in done.stdout) is coloured


def test_up_starts_nothing_when_the_plan_refuses(lodger: Run, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "lodger.yaml").write_text(f"models:\n  chat: {{path: {tiny('qwen3')}, memory: 1KiB}}\n")
    done = lodger("up", "-d", "--port", "0")
    assert done.returncode == 1
    assert "1 KiB" in done.stderr
    assert not (tmp_path / "home" / "logs" / "server.log").exists()
