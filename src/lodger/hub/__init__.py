"""Where model folders come from. One table: hub name -> "module:Class", loaded when asked for."""

from __future__ import annotations

from importlib import import_module

from lodger.catalogue.repository import HubName
from lodger.hub.base import Hub

TABLE: dict[HubName, str] = {  # in the order in which they are tried
    "modelscope": "lodger.hub.modelscope:ModelScopeHub",
    "huggingface": "lodger.hub.huggingface:HuggingFaceHub",
}


def open_hub(name: HubName) -> Hub:
    """The hub `name` of the table."""
    module, _, cls = TABLE[name].partition(":")
    hub: Hub = getattr(import_module(module), cls)()
    return hub
