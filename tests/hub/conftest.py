"""A local server of both hubs' protocols for the tests of downloads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hub_servers import HubServer


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server
