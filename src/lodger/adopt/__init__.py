"""What runs under Xinference, or lies in the folder it was set up in, as a lodger.yaml."""

from __future__ import annotations

import msgspec

from lodger.spec import ModelSpec


class Adopted(msgspec.Struct, frozen=True, kw_only=True):
    """One model as Lodger will serve it, and what of its launch cannot be kept."""

    spec: ModelSpec
    notes: tuple[str, ...] = ()


class Adoption(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found.

    Attributes:
        left: what cannot be served, each with why.
        source: where it was found, for the head of the file.
        port: where clients look for it; None: unknown.
    """

    models: tuple[Adopted, ...]
    left: tuple[str, ...] = ()
    source: str
    port: int | None = None
