"""`identify`: which folder a spec means, and everything known of the model in it."""

from __future__ import annotations

from pathlib import Path

from lodger.catalogue.facts import ModelFacts
from lodger.catalogue.inspect import inspect_folder
from lodger.catalogue.resolve import resolve
from lodger.spec import ModelSpec


def identify(spec: ModelSpec, models_dir: Path) -> tuple[ModelSpec, ModelFacts]:
    """`spec` with its folder as an absolute path, and the facts of the model there.

    Raises:
        ModelProblem, WrongKind: see `resolve` and `inspect_folder`.
    """
    found = resolve(spec, models_dir)
    return found, inspect_folder(found.path or "", found.kind)
