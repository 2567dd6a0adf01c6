"""Send what RAGFlow sends, from here and from its container, and say in a line each what is right or how to mend it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lodger.checks.base import Check, State
from lodger.ragflow.connect import Offer
from lodger.ragflow.docker import by_hand
from lodger.ragflow.forms import TYPED
from lodger.ragflow.probes import ADDING, Probe, Wrong, listing, probes
from lodger.ragflow.reply import Reply, Sender

_UNREACHED = {
    "its name is not known there": "Add to the ragflow service in docker-compose.yml: "
    'extra_hosts: ["host.docker.internal:host-gateway"]. Or name this machine\'s address with --base-url.',
    "connection refused": "Listen where containers reach it: lodger up -d --host 0.0.0.0 --api-key KEY, "
    "or --host with the address of docker0.",
    "no answer in time": "A firewall drops it: let the bridge in, for example "
    "ufw allow in on docker0 to any port 9997 proto tcp (the bridge of a compose network is br-...).",
    "there is no curl in the container": "Name another container of the same network with --from-container.",
}
_KEY = "Give RAGFlow the key that Lodger was started with (`lodger ragflow connect` does)."
_ROOT = "Type the root URL in RAGFlow, without /v1: every version makes the right paths of it."
_LATE = "RAGFlow from 0.26 on needs the first words only; before, raise LLM_TIMEOUT_SECONDS in its docker/.env."
_XINFERENCE = "Add the models as Xinference: only OpenAI-API-Compatible of RAGFlow up to 0.26 asks there."
_SHOWN = 200


def check(
    sender: Sender, base_url: str, api_key: str | None, models: Sequence[Offer], *, thorough: bool
) -> Iterator[Check]:
    """One line for each request, then one for each way to type the base URL.

    Args:
        base_url: Lodger as `sender` sees it.
        api_key: Lodger's; None: it has none, and RAGFlow is given "x".
        thorough: send the slow ones too.
    """
    base, key = base_url.rstrip("/"), api_key or "x"
    first = _asked(sender, base, key, listing(models), "")
    yield first
    if first.state == "fail" and first.measured.startswith(("not reached", "no answer")):
        return  # nothing else would be
    for model in models:
        for probe in probes(model):
            if thorough or not probe.slow:
                yield _asked(sender, base, key, probe, model.name)
    for typed, paths in TYPED.items():
        yield _typed(sender, base, key, models, typed, paths)


def check_names(models: Sequence[Offer]) -> Iterator[Check]:
    """From 0.26 the provider OpenAI-API-Compatible guesses a model's type from its name."""
    for model in models:
        guess = guessed_type(model.name)
        if guess != model.type:
            yield Check(
                name=f"{model.name}: name",
                state="warn",
                measured=f"RAGFlow 0.26+ takes it for {guess} when it is added as OpenAI-API-Compatible",
                expected="a uid with 'rerank' for a reranker, with 'embed' or 'bge' for an embedder",
                hint="Add it as Xinference, which is told the type; or give it such a uid.",
            )


def guessed_type(name: str) -> str:
    lowered = name.lower()
    if "rerank" in lowered:
        return "rerank"
    return "embedding" if "embed" in lowered or "bge" in lowered else "chat"


def _asked(sender: Sender, base: str, key: str, probe: Probe, uid: str) -> Check:
    headers = _headers(key, bare=probe.bare)
    reply = sender.send(probe.method, base + probe.path, headers, probe.body, probe.limit, words=probe.words)
    state, measured, hint = _judged(reply, probe, base)
    name = f"{uid}: {probe.what}" if uid else probe.what
    return Check(name=f"{sender.where}: {name}", state=state, measured=measured, expected=probe.what, hint=hint)


def _judged(reply: Reply, probe: Probe, base: str) -> tuple[State, str, str | None]:
    if reply.unreached is not None:
        hint = _UNREACHED.get(reply.unreached.lower(), by_hand(base))
        return "fail", f"not reached: {reply.unreached}", hint
    late = not reply.status or (probe.older and not reply.in_time)
    if late and probe.older:
        return "warn", f"no whole answer within {probe.limit:.0f} s", _LATE
    if late:
        return "fail", f"no answer within {probe.limit:.0f} s", "`lodger status` says what the model is doing."
    if reply.status != 200:
        return "fail", f"{reply.status}: {said(reply)}", _mend(reply.status)
    try:
        return "ok", probe.judge(reply), None
    except Wrong as wrong:
        return "fail", str(wrong), None
    except (KeyError, IndexError, TypeError, ValueError) as error:
        start = reply.body[:_SHOWN].decode(errors="replace")
        return "fail", f"not the answer that RAGFlow reads ({error!r}): {start}", None


def _typed(
    sender: Sender, base: str, key: str, models: Sequence[Offer], typed: str, paths: Sequence[tuple[str, str]]
) -> Check:
    """Whether every path that RAGFlow makes of this base URL is answered."""
    names = {model.type: model.name for model in reversed(models)}
    wrong: list[str] = []
    sent = 0
    for kind, path in paths:
        if kind != "list" and kind not in names:
            continue
        method, body = _small(kind, names)
        reply = sender.send(method, base + path, _headers(key), body, ADDING)
        sent += 1
        if reply.status != 200:
            wrong.append(f"{path} ({reply.status or reply.unreached or 'no answer'})")
    name = f"{sender.where}: base URL {base}{typed}"
    if wrong:
        measured = f"RAGFlow would ask {', '.join(wrong)}"
        if typed:
            return Check(name=name, state="warn", measured=measured, hint=_ROOT)
        needed = any(path.startswith("/v1/") for path in wrong)
        return Check(name=name, state="fail" if needed else "warn", measured=measured, hint=_XINFERENCE)
    return Check(name=name, state="ok", measured=f"all {sent} paths that RAGFlow makes of it are answered")


def _small(kind: str, names: dict[Any, str]) -> tuple[str, dict[str, Any] | None]:
    if kind == "list":
        return "GET", None
    if kind == "chat":
        messages = [{"role": "user", "content": "Hi"}]
        return "POST", {"model": names["chat"], "messages": messages, "max_completion_tokens": 1}
    if kind == "embedding":
        return "POST", {"model": names["embedding"], "input": ["Hi"], "encoding_format": "float"}
    return "POST", {"model": names["rerank"], "query": "Hi", "documents": ["Hi"]}


def _headers(key: str, *, bare: bool = False) -> dict[str, str]:
    return {} if bare and key == "x" else {"authorization": f"Bearer {key}"}


def said(reply: Reply) -> str:
    """What an error's body says, in whichever shape."""
    try:
        body = reply.json()
    except ValueError:
        body = None
    error = body.get("error") if isinstance(body, dict) else None
    text = error.get("message") if isinstance(error, dict) else body.get("detail") if isinstance(body, dict) else None
    return str(text or reply.body[:_SHOWN].decode(errors="replace"))


def _mend(status: int) -> str | None:
    if status == 401:
        return _KEY
    if status == 403:
        return "Without a key Lodger answers to names of this machine only: start it with --api-key KEY."
    if status == 404:
        return _ROOT
    return "`lodger status` says what the model is doing." if status == 503 else None
