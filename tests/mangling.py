"""What property tests put where it does not belong, and what Lodger says of a folder then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from lodger.catalogue.facts import ModelFacts
from lodger.catalogue.inspect import inspect_folder
from lodger.errors import ErrorInfo, LodgerError

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(), max_size=8)  # with halves of surrogate pairs, which JSON can hold
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def inspected(folder: Path, kind: Any = None) -> ModelFacts | ErrorInfo:
    """What is told of a folder; any exception that is not ours goes through."""
    try:
        return inspect_folder(folder, kind=kind)
    except LodgerError as error:
        return error.info()
