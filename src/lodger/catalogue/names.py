"""The many names that a model goes by: ours, the hubs' and Xinference's, in any spelling."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache

from lodger.catalogue.builtin import Entry, builtin
from lodger.catalogue.repository import Repository
from lodger.errors import UnknownName

# The address of a model's page, which people paste, holds its id.
_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:modelscope\.(?:cn|ai)/models|huggingface\.co|hf\.co|hf-mirror\.com)"
    r"/([^/?#]+/[^/?#]+)(?:[/?#].*)?",
    re.IGNORECASE | re.DOTALL,
)
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?!\.)){0,95}"
_ID = re.compile(f"{_PART}/{_PART}")
_SIZE = re.compile(r"-[0-9.]+[bm](?![a-z0-9])")  # "-0.6b" of a key
_NOT_MODELS = ("datasets/", "spaces/")  # the pages of Hugging Face that have the same shape


def repository(name: str, size: str | None = None) -> Repository:
    """Where the model of a name can be fetched: a name of the catalogue, or any ``org/name`` of a hub.

    Args:
        size: billions of parameters; picks where a name covers several sizes.

    Raises:
        UnknownName: names the near misses or the sizes, each with the line that fetches it.
    """
    entry = find(name, size)
    if entry is not None:
        return entry.repository
    repo = hub_id(name)
    if repo is None:
        raise unknown(name)
    return Repository(folder=repo.partition("/")[2], modelscope=repo, huggingface=repo)


def named(name: str) -> Entry | None:
    """The catalogue's model of which `name` is its own, in any spelling."""
    return _index().get(key(hub_id(name) or name))


def find(name: str, size: str | None = None) -> Entry | None:
    """The catalogue's model for its own name or for Xinference's and a size; None if no entry has it.

    Raises:
        UnknownName: the name needs a size, or has no such size.
    """
    own = named(name)
    if own is not None:
        return own
    family = [entry for entry in builtin().models if entry.xinference and key(entry.xinference) == key(name)]
    chosen = [entry for entry in family if size is None or entry.size == billions(size)]
    if family and len(chosen) != 1:
        raise _which_size(name, size, family)
    return chosen[0] if chosen else None


def key(name: str) -> str:
    """What two spellings of a name have in common: ``'Qwen3-0___6B'`` (ModelScope's folders) and ``'qwen3_0.6b'``."""
    return re.sub(r"[-_ ]+", "-", name.strip().replace("___", ".").casefold())


def hub_id(text: str) -> str | None:
    """``'org/name'`` of what may be an id on a hub, or the address of a model's page there; None for anything else."""
    page = _PAGE.fullmatch(text.strip())
    found = (page.group(1) if page else text.strip()).replace("___", ".")
    return found if _ID.fullmatch(found) and not found.startswith(_NOT_MODELS) else None


def unknown(name: str) -> UnknownName:
    """The error for a name that is neither in the catalogue nor a hub's."""
    near = _near(key(name[:100]))
    meant = f"Did you mean {', '.join(near)}? {_lines(near[:1])} fetches {near[0]}. " if near else ""
    return UnknownName(
        f"No model is known as {name[:100]!r}.",
        hint=f"{meant}Any model of a hub works by its id (org/name), any folder by its path.",
        param="model_name",
    )


def _near(wanted: str) -> list[str]:
    """At most three of our names: those spelt like `wanted` or like Xinference's name, then those that hold it. Where
    `wanted` has no size, names are compared without theirs, and the smallest of a family stands for it."""
    known: dict[str, str] = {}
    for entry in builtin().models:  # the smallest of a family is the first
        for one in (entry.xinference or entry.name, entry.name):
            known.setdefault(key(one) if _SIZE.search(wanted) else _SIZE.sub("", key(one)), entry.name)
    near = [known[one] for one in difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)]
    holding = [name for one, name in known.items() if len(wanted) > 1 and wanted in one]
    return list(dict.fromkeys(near + holding))[:3]


def _which_size(name: str, size: str | None, family: list[Entry]) -> UnknownName:
    known = ", ".join(f"{entry.size:g}" for entry in family)
    problem = f"is needed for {name[:100]}" if size is None else f"{size[:20]!r} is not a known one of {name[:100]}"
    return UnknownName(
        f"A size in billions {problem}; there are {known}.",
        hint=f"Give --size-in-billions, or the model itself: {_lines(entry.name for entry in family)}.",
        param="model_name",
    )


def _lines(names: Iterable[str]) -> str:
    """The commands that fetch these models, as one line of text."""
    ids = (_index()[key(name)].repository for name in names)
    return ", ".join(f"`lodger pull {repo.modelscope or repo.huggingface}`" for repo in ids)


@cache
def _index() -> dict[str, Entry]:
    """Every entry by the keys of the names that are its own."""
    return {key(name): entry for entry in builtin().models for name in entry.names}


def billions(size: str) -> float | None:
    """``'4'``, ``'1_7'``, ``'0.6'``, ``'8B'`` -> billions; None for anything else."""
    try:
        return float(size.strip().lower().removesuffix("b").replace("_", "."))
    except ValueError:
        return None
