"""The contract of a hub: a model's name in, a complete folder out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

Report = Callable[[str, float], None]  # what is being done, and how much of it is done (0..1)


class Hub(Protocol):
    """A place that models come from."""

    def fetch(self, model: str, models_dir: Path, report: Report) -> Path:
        """The folder of `model`, complete: under `models_dir`, or where the hub keeps it already. Blocking.

        A second call finds what the first one made. One that is killed leaves no folder that looks complete, and two
        at once do not disturb each other.

        Raises:
            MissingDependency, ModelProblem, SetupProblem.
        """
        ...
