"""The models of builtin.yaml, which explains the fields."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import msgspec

from lodger.catalogue.facts import RerankTemplate
from lodger.catalogue.repository import Repository
from lodger.tasks import Kind


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model."""

    name: str
    kind: Kind
    architecture: str
    hub: str | None = None
    huggingface: str | None = None
    modelscope: str | None = None
    xinference: str | None = None
    size: float | None = None  # billions of parameters
    aliases: tuple[str, ...] = ()
    matryoshka: bool = False
    prompts: str | None = None  # a name in `Builtin.prompts`
    rerank_template: str | None = None  # a name in `Builtin.rerank_templates`

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that means this model and no other, our own name first."""
        named = (self.name, self.repository.modelscope, self.repository.huggingface, *self.aliases)
        return tuple(dict.fromkeys(name for name in named if name))

    @property
    def repository(self) -> Repository:
        return Repository(
            folder=self.name, modelscope=self.modelscope or self.hub, huggingface=self.huggingface or self.hub
        )


class Builtin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    models: tuple[Entry, ...]
    prompts: dict[str, dict[str, str]]
    rerank_templates: dict[str, RerankTemplate]

    def __post_init__(self) -> None:
        for entry in self.models:
            if entry.prompts not in (None, *self.prompts):
                raise ValueError(f"{entry.name}: there are no prompts {entry.prompts!r}")
            if entry.rerank_template not in (None, *self.rerank_templates):
                raise ValueError(f"{entry.name}: there is no rerank template {entry.rerank_template!r}")


msgspec.json.Decoder(Builtin)  # has msgspec look at it now, not in a function: see tests/test_style.py


@cache
def builtin() -> Builtin:
    """builtin.yaml, read and checked once."""
    import yaml

    text = files("lodger.catalogue").joinpath("builtin.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return msgspec.convert(yaml.load(text, Loader=loader), Builtin)
