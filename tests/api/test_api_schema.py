"""Schemathesis over our own OpenAPI document: whatever it makes of it, nothing is answered by a 5xx."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from fake_service import FakeService
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_api_malformed import PATH, VALID

from lodger.api.app import ApiOptions, build_app

EXAMPLES = 12
APP = build_app(FakeService(), ApiOptions())
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, methods in APP.openapi()["paths"].items()
    for method, operation in methods.items()
}


@cache
def document() -> Any:
    import schemathesis

    return schemathesis.openapi.from_asgi("/openapi.json", APP, headers={"host": "localhost"})


def cases(route: str) -> st.SearchStrategy[Any]:
    """Requests that the document allows, and such as it forbids where it forbids any."""
    from schemathesis import GenerationMode

    method, path = route.split(" ")
    operation, wanted = document()[path][method.lower()], OPERATIONS[route]
    modes = list(GenerationMode) if wanted.keys() & {"parameters", "requestBody"} else [GenerationMode.POSITIVE]
    return st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes])


def aimed(case: Any, route: str) -> Any:
    """The same request to a model that there is."""
    model = VALID.get(route, {}).get("model")
    if isinstance(case.body, dict) and "model" in case.body and model in {one.uid for one in FakeService().models()}:
        case.body["model"] = model
    case.path_parameters = {name: PATH.get(name, value) for name, value in (case.path_parameters or {}).items()}
    return case


@pytest.mark.parametrize("route", OPERATIONS)
def test_nothing_that_the_document_allows_or_forbids_is_a_5xx(route: str) -> None:
    answered = 0

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(route), st.booleans())
    def ask(case: Any, aim: bool) -> None:
        nonlocal answered
        APP.state.service = FakeService()
        answer = (aimed(case, route) if aim else case).call(headers={"host": "localhost"})
        assert answer.status_code < 500, f"{case!r}: {answer.text}"
        answered += 1

    ask()
    assert answered
