"""`lodger sleep UID`: give one model's memory back without unloading it."""

from __future__ import annotations

from lodger.cli.options import ApiKey, Endpoint, HomeDir, ModelUid, connect


def run(uid: ModelUid, endpoint: Endpoint = None, api_key: ApiKey = None, home: HomeDir = None) -> None:
    """Give a model's memory back until it is asked again.

    Requests in work finish first. The next request, or `lodger wake`, brings the model back.
    """
    from lodger.cli.render import say
    from lodger.units import gib

    client = connect(endpoint, api_key, home)
    before = sum(client.model(uid).memory.values())
    left = client.sleep(uid).memory
    host = left.pop("host", 0)
    in_ram = f"; {gib(host)} of RAM keep its weights" if host else ""
    say(f"{uid} sleeps: {gib(before - sum(left.values()))} came back{in_ram}.")
