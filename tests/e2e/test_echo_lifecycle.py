"""A server's whole life through the real command line, with the echo engine: seconds instead of minutes, nothing faked.

The tests of one module share a server and run in order; each leaves the three models as it found them.
"""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from installed import Installed, installed, left
from xinference_client import RESTfulClient

MODELS = {"chat-local": "qwen3", "bge-m3-local": "bge-m3", "bge-reranker-local": "bge-reranker"}
Tiny = Callable[..., Path]


@pytest.fixture(scope="module")
def folders(tiny: Tiny) -> dict[str, Path]:
    found = {uid: tiny(family) for uid, family in MODELS.items()}
    return found | {"chat-local": tiny("qwen3", max_position_embeddings=32_768)}


@pytest.fixture(scope="module")
def lodger(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Iterator[Installed]:
    with installed(tmp_path_factory.mktemp("echo")) as command:
        command.write_config(folders)
        command.first = command("up", "-d", "--engine", "echo", "--port", "0")
        yield command


def test_up_shows_the_plan_waits_asks_and_says_how_to_go_on(lodger: Installed) -> None:
    done = lodger.first
    assert done.returncode == 0, done.stderr
    for uid in MODELS:
        assert f"{uid}: ready" in done.stderr
        assert f"ok     {uid}" in done.stdout
    plan, answers = done.stdout.split("\nok     ", 1)
    for part in ("reserve", "weights", "KV cache", "activations", "left"):
        assert part in plan
    assert "你好，Xinference" in answers
    assert answers.count("curl http://127.0.0.1:") == 3
    assert "lodger down" in answers.splitlines()[-1]


def test_a_second_up_is_quick_and_changes_nothing(lodger: Installed) -> None:
    before = lodger.processes()
    done = lodger.ok("up", "-d", "--engine", "echo")
    assert all(f"{uid} is there already (ready)" in done.stderr for uid in MODELS)
    assert lodger.processes() == before


def test_list_and_status_say_what_runs_where(lodger: Installed) -> None:
    assert lodger.states() == dict.fromkeys(MODELS, "ready")
    table = lodger.ok("list").stdout.splitlines()
    assert table[0].split() == ["UID", "TYPE", "NAME", "STATE", "DEVICE"]
    assert table[1].split() == ["chat-local", "chat", "qwen3", "ready", "cpu"]
    status = lodger.json("status")
    assert status["home"] == str(lodger.home)
    assert [worker["state"] for worker in status["workers"]] == ["up"]
    assert str(status["pid"]) in lodger.ok("status").stdout
    assert [model["state"] for model in lodger.json("list")] == ["ready"] * 3


def test_the_printed_curls_work_as_they_stand(lodger: Installed) -> None:
    lines = [line.strip() for line in lodger.first.stdout.splitlines() if line.strip().startswith("curl ")]
    answers = [json.loads(subprocess.check_output(["bash", "-c", f"{line} -sS"], text=True)) for line in lines]
    assert sorted(key for answer in answers for key in answer if key in ("choices", "data", "results")) == [
        "choices",
        "data",
        "results",
    ]


def test_launch_and_terminate_one_more(lodger: Installed, folders: dict[str, Path]) -> None:
    path = str(folders["chat-local"])
    done = lodger.ok("launch", "--model-path", path, "--model-uid", "second", "--model-engine", "echo")
    assert done.stdout == "Model uid: second\n"
    assert lodger.states()["second"] == "ready"
    again = lodger("launch", "--model-path", path, "--model-uid", "second", "--model-engine", "echo")
    assert again.returncode == 1
    assert "'second' is taken" in again.stderr
    assert "Stopped second" in lodger.ok("terminate", "--model-uid", "second").stderr
    assert "second" not in lodger.states()


def test_a_name_registered_by_xinferences_client_is_launched(lodger: Installed, folders: dict[str, Path]) -> None:
    theirs = RESTfulClient(lodger.address)
    spec = {"model_uri": f"file://{folders['chat-local']}", "model_size_in_billions": 7}
    theirs.register_model("LLM", json.dumps({"model_name": "mine", "model_specs": [spec]}), persist=False)
    launch = ("launch", "--model-name", "mine", "--model-engine", "echo")
    wrong = lodger(*launch, "--size-in-billions", "8")
    assert "mine has no size 8; it was registered with 7" in wrong.stderr
    assert lodger.ok(*launch, "--size-in-billions", "7").stdout == "Model uid: mine\n"
    lodger.ok("terminate", "--model-uid", "mine")
    theirs.unregister_model("LLM", "mine")
    theirs.close()
    assert "No model is known as 'mine'" in lodger(*launch).stderr


def test_up_launches_only_what_is_missing(lodger: Installed) -> None:
    before = lodger.processes()
    lodger.ok("stop", "bge-m3-local")
    assert "bge-m3-local" not in lodger.states()
    done = lodger.ok("up", "-d", "--engine", "echo")
    assert "chat-local is there already" in done.stderr
    assert "bge-m3-local: ready" in done.stderr
    assert lodger.states() == dict.fromkeys(MODELS, "ready")
    assert lodger.processes() == before


def test_a_model_with_other_settings_is_named_and_left_alone(lodger: Installed, folders: dict[str, Path]) -> None:
    other = lodger.folder / "other.yaml"
    other.write_text(f"models:\n  chat-local: {{path: {folders['chat-local']}, context_length: 64}}\n")
    done = lodger.ok("up", "-d", "--engine", "echo", "-f", str(other))
    assert "chat-local is there with other settings" in done.stderr


def test_a_model_that_cannot_be_had_is_listed_with_its_reason(lodger: Installed, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}')
    done = lodger("launch", "--model-path", str(tmp_path), "--model-uid", "broken")
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith("Error: ")
    assert hint.startswith("hint: ")
    assert lodger.states()["broken"] == "failed"
    assert error.removeprefix("Error: ") in lodger.ok("status").stdout
    verified = lodger("verify")
    assert verified.returncode == 1
    assert "wrong  broken" in verified.stdout
    lodger.ok("terminate", "broken")


def test_verify_asks_every_model(lodger: Installed) -> None:
    answers = lodger.json("verify")
    assert {answer["uid"]: answer["problems"] for answer in answers} == {uid: [] for uid in MODELS}
    plain = lodger("verify", PYTHONIOENCODING="latin-1")  # a terminal without Chinese
    assert plain.returncode == 0
    assert r"\u4f60\u597d" in plain.stdout


def test_logs_of_the_server_and_of_one_model(lodger: Installed) -> None:
    assert "serves at http://127.0.0.1:" in lodger.ok("logs", "-n", "1000").stdout
    one = lodger.ok("logs", "chat-local").stdout
    assert "chat-local" in one
    assert "bge-m3-local" not in one
    assert len(lodger.ok("logs", "-n", "2").stdout.splitlines()) == 2
    cut = subprocess.run(
        f"{lodger.script} logs -n 1000 | head -n 1",
        shell=True,
        env=lodger.env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (len(cut.stdout.splitlines()), cut.stderr) == (1, "")
    unknown = lodger("logs", "nosuch")
    assert unknown.returncode == 1
    assert "nosuch" in unknown.stderr


def test_logs_follow_and_end_cleanly_on_ctrl_c(lodger: Installed) -> None:
    command = [lodger.script, "logs", "-f", "-n", "1"]
    with subprocess.Popen(
        command, env=lodger.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as following:
        watchdog = threading.Timer(60.0, following.kill)  # what never comes fails the test, and hangs nothing
        watchdog.start()
        assert following.stdout is not None
        assert following.stdout.readline()
        lodger("terminate", "chat-local")
        assert any("chat-local on cpu: ready -> stopping" in line for line in iter(following.stdout.readline, ""))
        following.send_signal(signal.SIGINT)
        _, errors = following.communicate(timeout=30)
        watchdog.cancel()
    assert following.returncode == 130
    assert "Traceback" not in errors
    lodger.ok("up", "-d", "--engine", "echo")


def test_a_second_server_of_the_same_home_is_refused(lodger: Installed) -> None:
    done = lodger("serve", "--port", "0")
    assert done.returncode == 1
    assert "runs already" in done.stderr
    assert "lodger down" in done.stderr


def test_a_second_home_has_a_server_of_its_own(lodger: Installed, tmp_path: Path, folders: dict[str, Path]) -> None:
    with installed(tmp_path) as other:
        other.write_config({"only": folders["bge-m3-local"]})
        other.ok("up", "-d", "--engine", "echo", "--port", "0")
        assert other.states() == {"only": "ready"}
        for command in (("serve",), ("up", "-d")):
            port = lodger.address.split(":")[-1]
            taken = other(*command, "--home", str(tmp_path / "third"), "--port", port)
            assert taken.returncode == 1
            assert f"(pid {lodger.client.status().pid})" in taken.stderr
            assert "--port" in taken.stderr
            assert taken.stdout == ""  # not even planned
        processes = other.processes()
        other.ok("down")
        assert left(processes) == []
    assert lodger.states() == dict.fromkeys(MODELS, "ready")


def test_uids_are_completed_from_the_running_server(lodger: Installed) -> None:
    words = {"_LODGER_COMPLETE": "complete_bash", "COMP_WORDS": "lodger terminate bge", "COMP_CWORD": "2"}
    done = lodger(**words)
    assert sorted(done.stdout.split()) == ["bge-m3-local", "bge-reranker-local"]


def test_down_lets_a_running_answer_finish(lodger: Installed) -> None:
    processes = lodger.processes()
    body = {"model": "chat-local", "prompt": "word", "max_tokens": 2_000, "ignore_eos": True, "stream": True}
    events = lodger.client.stream("/v1/completions", body)
    next(events)
    down = subprocess.Popen([lodger.script, "down"], env=lodger.env, stderr=subprocess.PIPE, text=True)
    *_, last = events  # to the end, or an error is raised
    assert last["choices"][0]["finish_reason"] == "length"
    _, talk = down.communicate(timeout=60)
    assert "Waiting for 1 running request" in talk
    assert "Stopped 2 processes" in talk
    assert left(processes) == []


def test_after_down_commands_say_so_and_logs_still_work(lodger: Installed) -> None:
    assert "No server runs" in lodger.ok("down").stderr
    for command in ("list", "status", "verify"):
        done = lodger(command)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: No server runs for the home")
    logs = lodger.ok("logs")
    assert "Stopping" in logs.stdout
