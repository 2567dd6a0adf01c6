from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from api_server import Served, serving
from fake_service import FakeService

from lodger.api.app import ApiOptions

if TYPE_CHECKING:
    from openai import OpenAI


@pytest.fixture(scope="session")
def _server() -> Iterator[Served]:
    with serving(FakeService(), ApiOptions()) as served:
        yield served


@pytest.fixture
def served(_server: Served) -> Served:
    """A server on loopback without a key, with the guide's three models, fresh for each test."""
    _server.renew()
    return _server


@pytest.fixture(scope="session")
def openai_client(_server: Served) -> Iterator[OpenAI]:
    """One for all tests; it keeps its connections."""
    from openai import OpenAI  # takes half a second to import

    with OpenAI(base_url=f"{_server.url}/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts servers with other options; they end with the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(serving(FakeService(), ApiOptions(**options)))
