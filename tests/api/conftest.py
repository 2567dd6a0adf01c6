from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from api_server import Served, serving
from fake_service import FakeService

from lodger.api.app import ApiOptions


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts servers that end with the test."""
    with ExitStack() as stack:
        yield lambda service=None, **options: stack.enter_context(
            serving(service or FakeService(), ApiOptions(**options))
        )


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    """A server with the guide's three models."""
    return serve()
