"""`lodger wake UID`: have a model that sleeps serve again."""

from __future__ import annotations

import time

from lodger.cli.options import ApiKey, Endpoint, HomeDir, ModelUid, connect


def run(uid: ModelUid, endpoint: Endpoint = None, api_key: ApiKey = None, home: HomeDir = None) -> None:
    """Bring a model back that sleeps, before anybody asks it.

    Refused with numbers when others have taken its memory.
    """
    from lodger.cli.render import say
    from lodger.units import gib

    client = connect(endpoint, api_key, home)
    start = time.monotonic()
    held = sum(client.wake(uid).memory.values())
    say(f"{uid} is awake after {time.monotonic() - start:.2f} s and holds {gib(held)}.")
