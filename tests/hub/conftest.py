"""A local server of both hubs' protocols, and a process with their SDKs, for the tests of downloads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from acme_model import FILES, REPO
from hub_servers import HubServer
from sdk_child import SdkChild


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def shared_hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def shared_child(shared_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SdkChild]:
    with SdkChild(shared_hub.environment(tmp_path_factory.mktemp("home"))) as child:
        yield child
        assert child.end() == "", "no bars, no log, and above all no address with a signature"


@pytest.fixture
def acme_hub(shared_hub: HubServer) -> Iterator[HubServer]:
    """One server for many tests, each with a model of its own; `child` is bound to it."""
    shared_hub.reset()
    shared_hub.add(REPO, FILES)
    yield shared_hub
    others = [seen.url for seen in shared_hub.requests if seen.stage == "other"]
    assert others == [], "asked for something that nobody asked for"
    assert not [seen for seen in shared_hub.requests if seen.host == "cdn" and "authorization" in seen.headers]


@pytest.fixture
def child(acme_hub: HubServer, shared_child: SdkChild) -> SdkChild:
    return shared_child
