"""What RAGFlow does with our errors: it looks for words in their bodies, and some of them cost minutes of retries."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from api_server import Served
from openai import APIStatusError, OpenAI

import lodger
from lodger.api.errors import error_response
from lodger.errors import BY_CODE, LodgerError

# RAGFlow 0.17 to 0.27, rag/llm/chat_model.py: the first row with a word that the error's text holds decides.
ROWS = [
    ("no", "quota|capacity|credit|billing|balance"),
    ("retry", "rate limit|429|tpm limit|too many requests|requests per minute"),
    ("no", "auth|key|apikey|401|forbidden|permission"),
    ("no", "invalid|bad request|400|format|malformed|parameter"),
    ("retry", "server|503|502|504|500|unavailable"),
]
LATER_HELPS = (429, 500, 503)  # statuses that promise that the same request may succeed
ANYBODYS = [cls for cls in BY_CODE.values() if cls.status not in LATER_HELPS]


def ragflow_would(text: str) -> str:
    """ "retry" after 20 to 300 seconds, five times; or "no"."""
    return next((does for does, words in ROWS if re.search(words, text.lower())), "no")


def as_ragflow_sees_it(error: LodgerError) -> str:
    answer = error_response(error)
    return f"Error code: {answer.status_code} - {bytes(answer.body).decode()}"


def said_in(call: ast.Call) -> str:
    """All text that stands in a call's arguments in so many words."""
    return " ".join(
        str(node.value)
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]
        for node in ast.walk(argument)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def raised() -> list[tuple[type[LodgerError], str, str]]:
    """Every error that the source makes: its class, its words, and where."""
    classes = {cls.__name__: cls for cls in ANYBODYS}
    found = []
    for file in sorted(Path(lodger.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in classes:
                found.append((classes[node.func.id], said_in(node), f"{file.name}:{node.lineno}"))
    return found


@pytest.mark.parametrize("cls", ANYBODYS, ids=lambda cls: cls.__name__)
def test_what_cannot_succeed_later_is_not_tried_again(cls: type[LodgerError]) -> None:
    for message in ("It cannot be.", "The server is unavailable, said 503."):
        assert ragflow_would(as_ragflow_sees_it(cls(message, hint="Do it otherwise."))) == "no"


def test_no_message_holds_a_word_that_makes_ragflow_wait() -> None:
    errors = raised()
    assert len(errors) > 100, "the walk must see the source's errors"
    wrong = [f"{where}: {said}" for cls, said, where in errors if ragflow_would(as_ragflow_sees_it(cls(said))) != "no"]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("status", LATER_HELPS)
def test_what_may_succeed_later_is(status: int) -> None:
    classes = [cls for cls in BY_CODE.values() if cls.status == status]
    assert classes
    assert {ragflow_would(as_ragflow_sees_it(cls("Later."))) for cls in classes} == {"retry"}


@pytest.mark.parametrize(
    ("path", "body", "kind", "status"),
    [
        ("/v1/chat/completions", {"model": "nosuch", "messages": [{"role": "user", "content": "x"}]}, "404", 404),
        ("/v1/chat/completions", {"model": "qwen3-4b-chat-local", "messages": []}, "empty", 400),
        (
            "/v1/chat/completions",
            {"model": "bge-m3-local", "messages": [{"role": "user", "content": "x"}]},
            "kind",
            400,
        ),
        ("/v1/audio/speech", {"model": "tts", "input": "x"}, "route", 404),
    ],
)
def test_errors_are_of_openais_types_in_both_forms(
    served: Served, path: str, body: dict[str, object], kind: str, status: int
) -> None:
    answer = served.ask("POST", path, body)
    assert answer.status == status, kind
    assert answer.json["detail"] == answer.json["error"]["message"]
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert ragflow_would(f"Error code: {answer.status} - {answer.json}") == "no"


def test_openais_client_reads_them(served: Served) -> None:
    client = OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0)
    with client, pytest.raises(APIStatusError) as caught:
        client.embeddings.create(model="nosuch", input="x")
    assert (caught.value.type, caught.value.code) == ("invalid_request_error", "model_not_found")
