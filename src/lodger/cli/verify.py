"""`lodger verify`: ask every model that is up the guide's question for its kind, and check the answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from lodger.cli.options import ApiKey, Endpoint, HomeDir, Json, connect

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lodger.checks.endpoints import Answer


def run(endpoint: Endpoint = None, api_key: ApiKey = None, home: HomeDir = None, json: Json = False) -> None:
    """Ask each model something and check the answer.

    Exit code 1 when an answer is wrong or a model is not ready.
    """
    from lodger.checks.endpoints import verify
    from lodger.cli.render import say, show_json

    client = connect(endpoint, api_key, home)
    models = client.models()
    if not models:
        say("No models to verify. Launch one with `lodger launch --model-path FOLDER --model-uid UID`.")
        raise typer.Exit(1)
    answers = verify(client, models)
    if json:
        collected = list(answers)
        show_json(collected)
        good = not any(answer.problems for answer in collected)
    else:
        good = show_answers(answers)
    if not good:
        raise typer.Exit(1)


def show_answers(answers: Iterable[Answer]) -> bool:
    """Print each as it comes. Whether all are without problems."""
    good = True
    for answer in answers:
        mark = "wrong" if answer.problems else "ok"
        print(f"{mark:5}  {answer.uid} ({answer.kind or 'unknown kind'})", flush=True)
        for name, text in (("asked", answer.asked), ("said", answer.answered), ("measured", _numbers(answer))):
            if text:
                print(f"       {name}: {' '.join(text.split())}", flush=True)
        for problem in answer.problems:
            print(f"       problem: {problem}", flush=True)
        good = good and not answer.problems
    return good


def _numbers(answer: Answer) -> str:
    n = answer.numbers
    if "tokens" in n:
        rate = f", then {n['tokens_per_second']:g} a second" if "tokens_per_second" in n else ""
        return f"{n['tokens']:g} tokens, the first after {n['first_token_seconds']:.2f} s{rate}"
    size = f"{n['dimensions']:g} dimensions, length {n['norm']:g}, " if "dimensions" in n else ""
    heads = {"sparse": "sparse weights", "colbert": "token vectors"}
    made = "".join(f"{n[head]:g} {words}, " for head, words in heads.items() if head in n)
    return f"{size}{made}{n['seconds'] * 1000:.0f} ms" if "seconds" in n else ""
