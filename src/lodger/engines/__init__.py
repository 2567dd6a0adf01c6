"""Who computes. One table: engine name -> "module:Class", loaded when asked for."""

from __future__ import annotations

from importlib import import_module

from lodger.engines.base import Engine
from lodger.errors import Unsupported

TABLE: dict[str, str] = {
    "native": "lodger.engines.native:NativeEngine",
    "echo": "lodger.engines.echo:EchoEngine",
}
# Names that Xinference's users write. Lodger's own runtime stands on transformers' models, so these mean "native".
SYNONYMS: dict[str, str] = dict.fromkeys(
    ("transformers", "sentence_transformers", "sentence-transformers", "pytorch", "vllm", "flag", "sglang"), "native"
)


def engine_name(asked: str | None) -> str:
    """The table's name for what the user wrote.

    Raises:
        Unsupported: names the engines there are.
    """
    name = SYNONYMS.get((asked or "native").lower(), (asked or "native").lower())
    if name not in TABLE:
        known = ", ".join(sorted([*TABLE, *SYNONYMS]))
        raise Unsupported(f"unknown engine {asked!r}.", hint=f"Known: {known}.", param="model_engine")
    return name


def open_engine(name: str, device: str) -> Engine:
    """The engine `name`, from the table or itself "module:Class", made for one device ("cpu", "cuda:0")."""
    module, _, cls = TABLE.get(name, name).partition(":")
    engine: Engine = getattr(import_module(module), cls)(device)
    return engine
