"""`lodger stop [UID]`: unload one model, or without a uid stop the server."""

from __future__ import annotations

from lodger.cli.down import stop_server
from lodger.cli.options import ApiKey, Endpoint, HomeDir
from lodger.cli.terminate import Uid, unload


def run(uid: Uid = None, endpoint: Endpoint = None, api_key: ApiKey = None, home: HomeDir = None) -> None:
    """Stop one model, or without UID the server."""
    if uid is None:
        stop_server(home)
    else:
        unload(uid, endpoint, api_key, home)
