"""`lodger sleep`, `lodger wake`, and what `lodger status` says in between."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import msgspec
from scripted_http import Scripted

from lodger.service import ModelStatus, ServerStatus, State
from lodger.spec import ModelSpec
from lodger.units import GIB

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def model(state: State, **memory: int) -> ModelStatus:
    return ModelStatus(spec=ModelSpec(uid="chat", name="x", kind="chat"), state=state, created=0, memory=memory)


def answer(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, msgspec.json.encode(value)


def test_what_came_back_and_what_it_takes(server: Scripted, lodger: Run) -> None:
    awake, asleep = model("ready", weights=4 * GIB, kv_cache=GIB), model("asleep", host=4 * GIB)
    server.replies["GET /lodger/models/chat"] = answer(awake)
    server.replies["POST /lodger/models/chat/sleep"] = answer(asleep)
    server.replies["POST /lodger/models/chat/wake"] = answer(awake)
    done = lodger("sleep", "chat", "--endpoint", server.url)
    assert done.stderr == "chat sleeps: 5.00 GiB came back; 4.00 GiB of RAM keep its weights.\n"
    done = lodger("wake", "chat", "--endpoint", server.url)
    assert done.stderr.startswith("chat is awake after ")
    assert done.stderr.endswith(" s and holds 5.00 GiB.\n")


def test_a_refusal_is_one_line(server: Scripted, lodger: Run) -> None:
    error = {"error": {"code": "does_not_fit", "message": "chat needs at least 5.00 GiB. Wait.", "hint": "Wait."}}
    server.replies["POST /lodger/models/chat/wake"] = 507, {}, msgspec.json.encode(error)
    done = lodger("wake", "chat", "--endpoint", server.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: chat needs at least 5.00 GiB.\nhint: Wait.\n"


def test_status_tells_what_a_model_that_sleeps_still_holds(server: Scripted, lodger: Run) -> None:
    models = (model("asleep", host=4 * GIB),)
    status = ServerStatus(version="1", pid=1, started=0, address="", home="", plan=(), workers=(), models=models)
    server.replies["GET /lodger/status"] = answer(status)
    lines = lodger("status", "--endpoint", server.url).stdout.splitlines()
    [row] = [line for line in lines if line.startswith("chat ")]
    assert "asleep" in row
    assert "4.00 GiB of RAM" in row
