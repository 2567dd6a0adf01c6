"""The folder that Xinference was set up in by hand: model folders, and scripts with `xinference launch` lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

from lodger.adopt import Adopted, Adoption
from lodger.adopt.launched import adopted, usable_uid
from lodger.catalogue.folders import model_folders
from lodger.catalogue.identify import identify
from lodger.errors import FolderMissing, LodgerError
from lodger.spec import ModelSpec

# Folders that the guide downloads into, and the uids that it then launches; others get their name and "-local".
GUIDE_UIDS = {"qwen3-4b-instruct-2507": "qwen3-4b-chat-local"}
_SCRIPTS = ("*.sh", "*.bash", "*.txt", "*.md", "*/*.sh", "*/*.bash")
_LARGEST = 1 << 20  # bytes of a script
_SHORT = {
    "n": "model_name", "u": "model_uid", "t": "model_type", "en": "model_engine", "f": "model_format",
    "q": "quantization", "mp": "model_path", "r": "replica", "s": "size_in_billions",
}  # fmt: skip
_SWITCHES = ("disable_virtual_env", "enable_virtual_env")
_PAIRS = ("lora_modules", "lm", "quantization_config", "qc", "env", "ev")  # two values each
_CLIENTS = ("endpoint", "e", "api_key", "ak")


def read_folder(base: Path, *, card: int | None) -> Adoption:
    """
    Raises:
        FolderMissing: there is no such folder, or nothing of a model in it.
    """
    base = base.expanduser().absolute()
    if not base.is_dir():
        raise FolderMissing(f"There is no folder {str(base)!r}.", hint="Check the path.")
    places = tuple(folder for folder in (base / "models", base) if folder.is_dir())
    models: list[Adopted] = []
    left: list[str] = []
    for launch in launches(base):
        try:
            models.append(adopted(launch, card=card, folders=places, taken=[one.spec.uid for one in models]))
        except LodgerError as error:
            left.append(f"{launch.get('model_uid') or launch.get('model_name')}: {error.text}")
    seen = {_real(one.spec.path) for one in models if one.spec.path}
    for folder in _models_in(places):
        if _real(str(folder)) not in seen:
            _add(folder, models, left)
            seen.add(_real(str(folder)))
    if not models and not left:
        raise FolderMissing(
            f"There is no model in {str(base)!r}.", hint="Name the folder that holds the model folders, or models/."
        )
    return Adoption(models=tuple(models), left=tuple(left), source=str(base))


def launches(base: Path) -> Iterator[dict[str, Any]]:
    """The `xinference launch` lines in scripts of the folder, each uid once; the last one said wins."""
    found: dict[str, dict[str, Any]] = {}
    for script in sorted({file for pattern in _SCRIPTS for file in base.glob(pattern) if file.is_file()}):
        if script.stat().st_size <= _LARGEST:
            for launch in launches_in(script.read_text(encoding="utf-8", errors="replace")):
                found[str(launch.get("model_uid") or launch.get("model_name"))] = launch
    yield from found.values()


def launches_in(text: str) -> Iterator[dict[str, Any]]:
    """Options of each `xinference launch` in a script; variables that the script sets are put in, and no other."""
    joined = re.sub(r"\\\r?\n\s*", " ", text)
    variables = {"HOME": str(Path.home())}
    for line in joined.splitlines():
        if assigned := re.match(r"\s*(?:export\s+)?(\w+)=([^\s;&|]+)\s*$", line):
            value = assigned[2].strip("\"'")
            variables[assigned[1]] = Template(value).safe_substitute(variables)
            continue
        if "xinference" not in line or " launch " not in line:
            continue
        try:
            words = shlex.split(Template(line).safe_substitute(variables), comments=True)
        except ValueError:
            continue  # a quotation that goes on, as in a text about it
        yield from _launch(words)


def _launch(words: list[str]) -> Iterator[dict[str, Any]]:
    if "launch" not in words or not any(Path(word).name == "xinference" for word in words):
        return
    options: dict[str, Any] = {}
    rest = iter(words[words.index("launch") + 1 :])
    for word in rest:
        if not word.startswith("-"):
            break  # `&`, `>`, `||`: what the shell does with it
        name, _, value = word.lstrip("-").replace("-", "_").partition("=")
        if name in _SWITCHES:
            continue
        value = value or next(rest, "")
        if name in _PAIRS:
            next(rest, "")
        if name not in _CLIENTS:
            options[_named(name)] = value
    if options.get("model_name") or options.get("model_path"):
        kind = options.get("model_type")
        yield options | ({"model_type": "LLM"} if kind and kind.lower() == "llm" else {})


def _named(name: str) -> str:
    name = _SHORT.get(name, name)
    return "model_size_in_billions" if name == "size_in_billions" else name


def _models_in(places: tuple[Path, ...]) -> Iterator[Path]:
    for place in places:
        yield from (place / folder.name for folder in model_folders(place) if folder.whole)


def _add(folder: Path, models: list[Adopted], left: list[str]) -> None:
    """A model folder that no script launches."""
    name = folder.name
    uid = GUIDE_UIDS.get(name.lower(), usable_uid(f"{name.lower()}-local"))
    try:
        _, facts = identify(ModelSpec(uid=uid, path=str(folder)), folder.parent)
    except LodgerError as error:
        left.append(f"{folder}: {error.text}")
        return
    models.append(Adopted(spec=ModelSpec(uid=uid, path=str(folder), kind=facts.kind)))


def _real(path: str) -> str:
    return str(Path(path).expanduser().resolve())
