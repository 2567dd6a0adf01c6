"""The client of the admin API, against a small HTTP server that answers as told."""

from __future__ import annotations

import json
import socket

import pytest
from scripted_http import Scripted, free_port

from lodger.client import Client, ServerRecord, is_loopback, running_server
from lodger.errors import ConfigProblem, DoesNotFit, KeyRequired, LodgerError, NotReady, NotRunning
from lodger.paths import Home
from lodger.process import Identity
from lodger.spec import ModelSpec


def test_requests_go_to_the_admin_routes_with_the_key(server: Scripted) -> None:
    client = Client(server.url + "/v1/", api_key="s3cret")
    server.reply = (200, {}, b"[]")
    assert client.models() == []
    assert client.logs("bge m3", 7) == []
    server.reply = (200, {}, b"null")
    client.terminate("a/b")
    assert [f"{method} {path}" for method, path, _, _ in server.seen] == [
        "GET /lodger/models",
        "GET /lodger/logs?lines=7&uid=bge+m3",
        "DELETE /lodger/models/a%2Fb",
    ]
    assert all(headers["authorization"] == "Bearer s3cret" for _, _, headers, _ in server.seen)


def test_launch_sends_the_spec_and_says_whether_to_wait(server: Scripted) -> None:
    spec = ModelSpec(uid="x", path="/m")
    server.reply = (200, {}, b'{"spec": {"uid": "x", "path": "/m"}, "state": "loading", "created": 1.0}')
    assert Client(server.url).launch(spec).state == "loading"
    _, path, _, body = server.seen[0]
    assert path == "/lodger/models?wait=false"
    assert json.loads(body)["path"] == "/m"


def test_an_error_body_becomes_the_same_error_again(server: Scripted) -> None:
    body = {"detail": "needs 9", "error": {"message": "needs 9", "code": "does_not_fit", "param": None}}
    server.reply = (507, {}, json.dumps(body).encode())
    with pytest.raises(DoesNotFit, match="needs 9"):
        Client(server.url).models()


def test_a_foreign_error_body_is_shown_as_it_is(server: Scripted) -> None:
    server.reply = (404, {}, b'{"detail": "Not Found"}')
    with pytest.raises(LodgerError, match="answered 404: Not Found"):
        Client(server.url).status()


def test_a_missing_key_says_how_to_give_it(server: Scripted) -> None:
    server.reply = (401, {}, b'{"detail": "no"}')
    with pytest.raises(KeyRequired) as caught:
        Client(server.url).models()
    assert "--api-key" in (caught.value.hint or "")


def test_nothing_there_says_so_and_how_to_start_it() -> None:
    port = free_port()
    with pytest.raises(NotRunning, match=f"127.0.0.1:{port}.*refused") as caught:
        Client(f"http://127.0.0.1:{port}").models()
    assert "lodger up" in (caught.value.hint or "")
    assert not Client(f"http://127.0.0.1:{port}").healthy()


def test_a_silent_server_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.1)
        with pytest.raises(NotReady, match="did not answer within"):
            client.models()


def test_a_proxy_is_not_asked_for_this_machine(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert Client(server.url).healthy()


def test_a_redirect_is_not_followed_with_the_key(server: Scripted) -> None:
    server.reply = (302, {"location": f"{server.url}/elsewhere"}, b"")
    with pytest.raises(LodgerError, match="302"):
        Client(server.url, api_key="s3cret").models()
    assert len(server.seen) == 1


def test_stream_yields_events_up_to_done_and_raises_an_error_event(server: Scripted) -> None:
    server.reply = (200, {}, b': ping\n\ndata: {"a": 1}\n\ndata: [DONE]\n\ndata: {"a": 2}\n\n')
    assert list(Client(server.url).stream("/v1/x", {})) == [{"a": 1}]
    server.reply = (200, {}, b'data: {"a": 1}\n\ndata: {"error": {"message": "full", "code": "out_of_memory"}}\n\n')
    events = Client(server.url).stream("/v1/x", {})
    assert next(events) == {"a": 1}
    with pytest.raises(LodgerError, match="full"):
        next(events)


@pytest.mark.parametrize("address", ["127.0.0.1:9997", "ftp://host", "http://", ""])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigProblem, match="not the address"):
        Client(address)


def test_loopback_is_known_by_address_not_by_hope() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("localhost.example.org")


def test_a_record_of_another_process_with_the_same_pid_is_no_server(tmp_path: object) -> None:
    import os

    import msgspec

    from lodger.process import identity

    home = Home(tmp_path).make()  # type: ignore[arg-type]
    assert running_server(home) is None
    ours = identity(os.getpid())
    assert ours is not None
    record = ServerRecord(process=ours, host="0.0.0.0", port=9, api_key="k")
    home.server_record.write_bytes(msgspec.json.encode(record))
    assert running_server(home) == record
    assert record.address == "http://127.0.0.1:9"
    stale = ServerRecord(process=Identity(ours.pid, ours.started - 1), host="::1", port=9)
    home.server_record.write_bytes(msgspec.json.encode(stale))
    assert running_server(home) is None
    assert stale.address == "http://[::1]:9"
    home.server_record.write_bytes(b"{half a rec")
    assert running_server(home) is None
