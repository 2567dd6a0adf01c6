"""How an embedding model makes one vector of a text: sentence-transformers' files, or what holds without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lodger.catalogue.config_files import Fields, is_text, read_fields, read_json
from lodger.catalogue.facts import Pooling
from lodger.errors import ModelProblem

# "pooling_mode_*" flags of sentence-transformers up to 5, "pooling_mode" names from 6 on.
_MODES: dict[str, Pooling] = {"cls_token": "cls", "cls": "cls", "mean_tokens": "mean", "mean": "mean",
                              "lasttoken": "last"}  # fmt: skip
_LENGTH_FILES = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_xlm-roberta_config.json")


class SentenceFacts(NamedTuple):
    """What the files say. Without modules.json vectors are normalised, as Xinference does by default."""

    pooling: Pooling
    normalize: bool
    max_length: int | None  # tokens
    lowercase: bool
    prompts: dict[str, str]


def has_modules(folder: Path) -> bool:
    """Whether sentence-transformers saved this folder, so that it makes vectors."""
    return (folder / "modules.json").exists()


def read_sentence_facts(folder: Path, default: Pooling) -> SentenceFacts:
    """
    Raises:
        ModelProblem: a file is damaged, or wants a module or pooling that is not served.
    """
    modules = _modules(folder)
    pooling_folder = modules.get("Pooling", "1_Pooling")
    lengths = Fields(_LENGTH_FILES[0], {})
    for name in _LENGTH_FILES:
        if (folder / name).exists():
            lengths = read_fields(folder, name)
            break
    return SentenceFacts(
        pooling=_pooling(read_fields(folder, f"{pooling_folder}/config.json"), default),
        normalize="Normalize" in modules or not modules,
        max_length=lengths.count("max_seq_length") if "max_seq_length" in lengths else None,
        lowercase=lengths.flag("do_lower_case"),
        prompts=read_fields(folder, "config_sentence_transformers.json").strings("prompts"),
    )


def _modules(folder: Path) -> dict[str, str]:
    """Class name -> folder of each module of modules.json, in order."""
    entries: Any = read_json(folder / "modules.json", [])
    found: dict[str, str] = {}
    for entry in entries if isinstance(entries, list) else [None]:
        kind, path = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if not is_text(kind) or not is_text(path) or path.startswith("/") or ".." in path or "\0" in path:
            raise ModelProblem("modules.json is no list of modules with type and path.")
        found[kind.rsplit(".", 1)[-1]] = path
    other = [name for name in found if name not in {"Transformer", "Pooling", "Normalize"}]
    if other:
        raise ModelProblem(f"modules.json asks for the module {other[0][:40]!r}, which is not served.")
    return found


def _pooling(fields: Fields, default: Pooling) -> Pooling:
    if not fields.values:
        return default
    named = fields.values.get("pooling_mode")
    names = [named] if isinstance(named, str) else [*_flags(fields.values)]
    if len(names) != 1 or names[0] not in _MODES:
        shown = str(names)[1:-1][:80] or "none"
        raise ModelProblem(f"{fields.file} asks for the pooling {shown}.", hint="Served: cls, mean, lasttoken.")
    return _MODES[names[0]]


def _flags(values: dict[str, Any]) -> list[str]:
    prefix = "pooling_mode_"
    return [key[len(prefix) :] for key, value in values.items() if key.startswith(prefix) and value is True]
