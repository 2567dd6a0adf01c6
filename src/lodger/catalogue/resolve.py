"""From what someone typed to a model folder: a path, or one of the many names a model goes by."""

from __future__ import annotations

import difflib
import os
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath

import msgspec

from lodger.errors import FolderMissing, UnknownName
from lodger.spec import ModelSpec
from lodger.tasks import Kind


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of builtin.yaml, which explains the fields."""

    name: str
    kind: Kind
    hub: str | None = None
    huggingface: str | None = None
    modelscope: str | None = None
    xinference: str | None = None
    size: float | None = None  # billions of parameters
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that means this model and no other, our own name first."""
        named = (self.name, self.hub, self.huggingface, self.modelscope, *self.aliases)
        own = self.xinference if self.size is None else None
        return tuple(dict.fromkeys(name for name in (*named, own) if name))


def resolve(spec: ModelSpec, models_dir: Path) -> ModelSpec:
    """`spec` with `path` as an absolute folder, and `kind` where the catalogue knows it and the spec does not say.

    A path wins over a name. A spec with neither is looked up by its uid.

    Raises:
        FolderMissing: no such folder, or the model's folder is not under `models_dir`.
        UnknownName: names the near misses, or the sizes to choose from.
    """
    if spec.path is not None:
        return msgspec.structs.replace(spec, path=_existing(spec.path))
    asked = spec.name or spec.uid
    entry = find(asked, spec.size_in_billions)
    looked = _folders(asked, entry)
    for folder in looked:
        path = os.path.abspath(models_dir / folder)
        if os.path.isdir(path):
            return msgspec.structs.replace(spec, path=path, kind=spec.kind or (entry.kind if entry else None))
    if entry is None:
        raise _unknown(asked)
    raise FolderMissing(
        f"{entry.name} is not on this machine: no {' and no '.join(looked)} in Lodger's folder for models.",
        hint="This version does not download; give the model's folder with --model-path.",
        param="model_path",
    )


def find(name: str, size: str | None) -> Entry | None:
    """The catalogue's model for a name; None if no entry has it. `size` picks where a name covers several sizes.

    Raises:
        UnknownName: the name needs a size, or has no such size.
    """
    wanted = name.strip().casefold()
    for entry in catalogue():
        if wanted in (known.casefold() for known in entry.names):
            return entry
    family = [entry for entry in catalogue() if entry.xinference and entry.xinference.casefold() == wanted]
    chosen = [entry for entry in family if size is None or entry.size == _billions(size)]
    if len(chosen) == 1:
        return chosen[0]
    if not family:
        return None
    sizes = ", ".join(f"{entry.size:g}" for entry in family)
    problem = f"is needed for {name}" if size is None else f"{size[:20]!r} is not a known one of {name}"
    raise UnknownName(
        f"A size in billions {problem}.", hint=f"Known: {sizes}. Give --size-in-billions, or --model-path."
    )


@cache
def catalogue() -> tuple[Entry, ...]:
    """The models of builtin.yaml, read once."""
    import yaml

    text = files("lodger.catalogue").joinpath("builtin.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return msgspec.convert(yaml.load(text, Loader=loader), tuple[Entry, ...])


def _existing(path: str) -> str:
    folder = os.path.abspath(os.path.expanduser(path))
    if os.path.isfile(folder):
        raise FolderMissing(
            f"{path!r} is a file.", hint="Give the folder that holds config.json and the weights.", param="model_path"
        )
    if not os.path.isdir(folder):
        raise FolderMissing(f"There is no folder {path[:300]!r}.", hint="Check the path.", param="model_path")
    return folder


def _folders(asked: str, entry: Entry | None) -> list[str]:
    """Where under the models folder a model may be: by our name, by a hub's id, or by the name as it was typed."""
    names = [*(entry.names if entry else ()), asked]
    return list(dict.fromkeys(name for name in names if _is_inside(name)))


def _is_inside(name: str) -> bool:
    """Whether a typed name can only mean a folder under the models folder, at most one deeper."""
    parts = PurePosixPath(name).parts
    return 1 <= len(parts) <= 2 and not {"/", "..", "~"} & set(parts)


def _billions(size: str) -> float | None:
    """``'4'``, ``'1_7'``, ``'0.6'``, ``'8B'`` -> billions; None for anything else."""
    try:
        return float(size.strip().lower().removesuffix("b").replace("_", "."))
    except ValueError:
        return None


def _unknown(asked: str) -> UnknownName:
    known = {name.casefold(): name for entry in catalogue() for name in (*entry.names, entry.xinference or entry.name)}
    near = difflib.get_close_matches(asked.casefold()[:100], known, n=3, cutoff=0.5)
    hint = f"Did you mean {', '.join(known[name] for name in near)}? " if near else ""
    return UnknownName(
        f"No model is known as {asked[:100]!r}.",
        hint=f"{hint}Any model folder works with --model-path.",
        param="model_name",
    )
