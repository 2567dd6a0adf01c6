"""`lodger status` and `lodger list` of models on several devices."""

from __future__ import annotations

import pytest

from lodger.cli import list as list_command
from lodger.cli.status import _show
from lodger.errors import ErrorInfo
from lodger.service import ModelStatus, ReplicaStatus, ServerStatus, WorkerStatus
from lodger.spec import ModelSpec

DOWN = ErrorInfo(code="worker_down", message="The model process of cuda:1 was ended by SIGKILL.")
CHAT = ModelStatus(
    spec=ModelSpec(uid="chat", name="qwen3", kind="chat", replicas=2),
    state="ready",
    created=0.0,
    device="cuda:0",
    running=3,
    replicas=(
        ReplicaStatus(device="cuda:0", state="ready", running=3),
        ReplicaStatus(device="cuda:1", state="restarting", error=DOWN, log_tail=("its last line",)),
    ),
)
FAILED = ModelStatus(
    spec=ModelSpec(uid="m3", name="bge-m3", kind="embedding"),
    state="failed",
    created=0.0,
    error=ErrorInfo(code="does_not_fit", message="There is no room."),
)


def test_status_has_every_replica_and_what_is_wrong_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    workers = (WorkerStatus(device="cuda:0", pid=7, state="up"), WorkerStatus(device="cuda:1", pid=None, state="down"))
    _show(
        ServerStatus(
            version="0", pid=1, started=0.0, address="", home="", plan=(), workers=workers, models=(CHAT, FAILED)
        )
    )
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("chat "))
    assert row.split()[:5] == ["chat", "chat", "ready", "cuda:0,", "cuda:1"]
    assert row.split()[-1] == "3"
    assert "chat on cuda:1: The model process of cuda:1 was ended by SIGKILL.\n  its last line" in said
    assert "\nm3: There is no room." in said


def test_list_says_where_each_model_is() -> None:
    assert list_command._row(CHAT)[-2:] == ("ready", "cuda:0, cuda:1")
    assert list_command._row(FAILED)[-2:] == ("failed", "-")
