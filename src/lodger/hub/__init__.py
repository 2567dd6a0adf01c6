"""Where model folders come from. One table: hub name -> "module:Class", loaded when asked for."""

from __future__ import annotations

from importlib import import_module

from lodger.hub.base import Hub

TABLE: dict[str, str] = {
    "packages": "lodger.hub.packages:PackageHub",
}


def open_hub(name: str) -> Hub:
    """The hub `name` of the table."""
    module, _, cls = TABLE[name].partition(":")
    hub: Hub = getattr(import_module(module), cls)()
    return hub
