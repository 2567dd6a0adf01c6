"""What sentence-transformers' files say of a folder: whether and how it makes a vector or a score of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lodger.catalogue.config_files import Fields, is_text, read_fields, read_json
from lodger.catalogue.facts import Pooling
from lodger.catalogue.folder_files import AGAIN
from lodger.errors import ModelProblem
from lodger.tasks import Kind

# "pooling_mode_*" flags of sentence-transformers up to 5, "pooling_mode" names from 6 on.
_MODES: dict[str, Pooling] = {"cls_token": "cls", "cls": "cls", "mean_tokens": "mean", "mean": "mean",
                              "lasttoken": "last"}  # fmt: skip
_LENGTH_FILES = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_xlm-roberta_config.json")
# What a chain of modules is for; one that only wraps the transformer leaves that to the architecture. The LogitScore
# of sentence-transformers 5.4 and later compares the logits of two tokens.
_CHAINS: dict[tuple[str, ...], Kind | None] = {
    (): None,
    ("Transformer",): None,
    ("Transformer", "Pooling"): "embedding",
    ("Transformer", "Pooling", "Normalize"): "embedding",
    ("Transformer", "LogitScore"): "rerank",
}


class Modules(NamedTuple):
    """modules.json: what the chain is for, and the folder of each module by the name of its class."""

    kind: Kind | None
    folders: dict[str, str]


class SentenceFacts(NamedTuple):
    """How texts become vectors. Without modules.json they are normalised, as Xinference does by default."""

    pooling: Pooling
    normalize: bool
    lowercase: bool


class Prompts(NamedTuple):
    """Of config_sentence_transformers.json: texts before a text by what that is for; which one stands there unasked."""

    texts: dict[str, str]
    default: str | None


def read_modules(folder: Path) -> Modules:
    """
    Raises:
        ModelProblem: modules.json is damaged, or wants modules that are not served.
    """
    entries: Any = read_json(folder, "modules.json", [])
    found: list[tuple[str, str]] = []
    for entry in entries if isinstance(entries, list) else [None]:
        kind, path = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if not is_text(kind) or not is_text(path) or path.startswith("/") or ".." in path or "\0" in path:
            raise ModelProblem("modules.json is no list of modules with type and path.", hint=AGAIN)
        # A module of another package is code that the folder brings along.
        own = kind.startswith("sentence_transformers.") and not kind.endswith(".")
        found.append((kind.rsplit(".", 1)[-1] if own else kind, path))
    names = tuple(name for name, _ in found)
    if names not in _CHAINS:
        known = {name for chain in _CHAINS for name in chain}
        other = next((name for name in names if name not in known), " then ".join(names))
        raise ModelProblem(f"modules.json asks for the module {other[:60]!r}, which is not served.")
    return Modules(_CHAINS[names], dict(found))


def read_sentence_facts(folder: Path, modules: Modules, default: Pooling) -> SentenceFacts:
    """
    Raises:
        ModelProblem: a file is damaged, or wants a pooling that is not served.
    """
    pooling = read_fields(folder, f"{modules.folders.get('Pooling', '1_Pooling')}/config.json")
    if not pooling.flag("include_prompt", default=True):
        raise ModelProblem(f"{pooling.file} leaves prompts out of the pooling, which is not served.")
    return SentenceFacts(
        pooling=_pooling(pooling, default),
        normalize="Normalize" in modules.folders or not modules.folders,
        lowercase=_transformer(folder).flag("do_lower_case"),
    )


def length_limit(folder: Path) -> list[int]:
    """max_seq_length of a text in tokens where a file says it."""
    fields = _transformer(folder)
    return [fields.count("max_seq_length")] if "max_seq_length" in fields else []


def read_prompts(folder: Path) -> Prompts:
    """
    Raises:
        ModelProblem: the file is damaged, or its default is none of its prompts.
    """
    fields = read_fields(folder, "config_sentence_transformers.json")
    texts = fields.strings("prompts")
    default = fields.values.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in texts):
        raise fields.problem("default_prompt_name", "one of its prompts")
    return Prompts(texts, default)


def check_logit_score(folder: Path, modules: Modules) -> None:
    """
    Raises:
        ModelProblem: the score is not what the logits of "yes" and "no" make.
    """
    fields = read_fields(folder, f"{modules.folders['LogitScore']}/config.json")
    vocabulary = Fields("tokenizer.json", read_fields(folder, "tokenizer.json").object("model")).object("vocab")
    ids = {"yes": fields.values.get("true_token_id"), "no": fields.values.get("false_token_id")}
    if any(where is None or vocabulary.get(word) != where for word, where in ids.items()):
        raise ModelProblem(f"{fields.file} scores by other tokens than yes and no, which is not served.")


def _transformer(folder: Path) -> Fields:
    """The file of the Transformer module, whichever of its names it has."""
    for name in _LENGTH_FILES:
        fields = read_fields(folder, name)
        if fields.values:
            return fields
    return Fields(_LENGTH_FILES[0], {})


def _pooling(fields: Fields, default: Pooling) -> Pooling:
    if not fields.values:
        return default
    named = fields.values.get("pooling_mode")
    listed = named if isinstance(named, list) else [named] if isinstance(named, str) else _flags(fields.values)
    names = [name for name in listed if isinstance(name, str)]
    if len(listed) != 1 or not names or names[0] not in _MODES:
        shown = str(names)[1:-1][:80] or "none"
        raise ModelProblem(f"{fields.file} asks for the pooling {shown}.", hint="Served: cls, mean, lasttoken.")
    return _MODES[names[0]]


def _flags(values: dict[str, Any]) -> list[str]:
    prefix = "pooling_mode_"
    return [key[len(prefix) :] for key, value in values.items() if key.startswith(prefix) and value is True]
