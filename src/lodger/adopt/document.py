"""lodger.yaml as text: what was found, and beside each model what of it could not be kept."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from lodger.adopt import Adopted, Adoption
from lodger.config import load_config
from lodger.errors import ConfigProblem
from lodger.settings import DEFAULT_PORT
from lodger.units import gib

_PLAIN = re.compile(r"[A-Za-z/~][A-Za-z0-9/._~-]*")


def text(adoption: Adoption) -> str:
    """The file. Lodger's own reader takes it."""
    return "\n".join(_lines(adoption)) + "\n"


def write(adoption: Adoption, path: Path, *, over: bool) -> None:
    """Write the file, whole or not at all.

    Raises:
        ConfigProblem: there is one already, and `over` is False; or nothing to write.
    """
    if not adoption.models:
        raise ConfigProblem("Nothing of it can be served.", hint=" ".join(adoption.left))
    descriptor, name = tempfile.mkstemp(prefix=".lodger-", suffix=".yaml", dir=path.absolute().parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text(adoption))
        load_config(Path(name))  # it must be one that `lodger up` takes
        os.chmod(name, 0o644)
        if over:
            os.replace(name, path)
        else:
            os.link(name, path)  # fails where there is one
    except FileExistsError:
        raise ConfigProblem(f"{path} is there already.", hint="Name another with --file, or give --force.") from None
    finally:
        Path(name).unlink(missing_ok=True)


def _lines(adoption: Adoption) -> Iterator[str]:
    yield f"# Taken over from {adoption.source}. `lodger plan` says what it takes, `lodger up -d` starts it."
    for left in adoption.left:
        yield f"# not taken over: {_one_line(left)}"
    if adoption.port not in (None, DEFAULT_PORT):
        yield f"port: {adoption.port}"
    yield "models:"
    for model in adoption.models:
        yield from _model(model)


def _model(model: Adopted) -> Iterator[str]:
    spec = model.spec
    yield f"  {scalar(spec.uid)}:"
    for note in model.notes:
        yield f"    # {_one_line(note)}"
    values = {
        "name": spec.name,
        "path": spec.path,
        "kind": spec.kind,
        "size_in_billions": spec.size_in_billions if spec.path is None else None,
        "context_length": spec.context_length,
        "memory": gib(spec.memory) if spec.memory else None,
        "dtype": spec.dtype,
        "quantization": spec.quantization,
        "replicas": spec.replicas if spec.replicas > 1 else None,
    }
    for name, value in values.items():
        if value is not None:
            yield f"    {name}: {value if isinstance(value, int) else scalar(value)}"
    if spec.gpu:
        yield f"    gpu: {spec.gpu[0] if len(spec.gpu) == 1 else list(spec.gpu)}"


def scalar(value: str) -> str:
    """Plain where YAML reads it as this very text, which `no` and `~` are not, else quoted."""
    plain = _PLAIN.fullmatch(value) and yaml.safe_load(value) == value
    return value if plain else yaml.safe_dump(value, default_style='"', allow_unicode=True, width=sys.maxsize).strip()


def _one_line(said: str) -> str:
    return " ".join(said.split())
