"""A made-up server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scripted_http import Scripted, scripted


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted() as made:
        yield made
