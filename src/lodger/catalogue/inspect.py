"""`inspect_folder`: everything Lodger knows of a model, read from its folder in milliseconds, nothing loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from lodger.catalogue.config_files import Fields, is_text, read_fields, read_text
from lodger.catalogue.facts import ModelFacts
from lodger.catalogue.families import FAMILIES, TIED_TENSORS, Family, served
from lodger.catalogue.safetensors_header import StoredTensor, read_folder
from lodger.catalogue.sentence import SentenceFacts, has_modules, read_sentence_facts
from lodger.errors import FolderMissing, ModelProblem, UnknownArchitecture, WrongKind
from lodger.tasks import Kind

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_SANE_LENGTH = 10**9  # tokenizer_config.json has 10**30 for "unknown"
_TOOLS = re.compile(r"\btools\b")


class _Identity(NamedTuple):
    architecture: str
    model_type: str
    family: Family
    kind: Kind  # what the architecture is made for


def inspect_folder(path: str | os.PathLike[str], kind: Kind | None = None) -> ModelFacts:
    """Facts of the model in folder `path`. Only `kind="rerank"` for an embedding model says more than the folder does.

    Raises:
        FolderMissing, FolderWithoutWeights, DamagedWeights, UnknownArchitecture.
        WrongKind: the folder holds a model of another kind.
        ModelProblem: a file is missing or damaged, or asks for what is not served (quantised weights, other poolings).
    """
    folder = Path(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FolderMissing(f"There is no folder {folder.name!r}.", hint="Check the path.")
    if not is_text(str(folder)):
        raise ModelProblem(f"The folder's path is not UTF-8: {folder.name!r}.", hint="Rename it.")
    config = read_fields(folder, "config.json")
    if not config.values:
        raise ModelProblem(f"{folder.name} has no config.json.", hint="A model folder has one, beside its weights.")
    identity = _identify(config)
    _refuse_unserved(folder, config, identity)
    chosen = _choose_kind(folder, identity, kind)
    tied = config.flag("tie_word_embeddings", identity.family.tied_by_default)
    parameters, stored = _weigh(read_folder(folder), tied)
    return ModelFacts(
        path=str(folder),
        kind=chosen,
        architecture=identity.architecture,
        model_type=identity.model_type,
        parameters=parameters,
        stored_bytes=stored,
        tied_embeddings=tied,
        causal=identity.kind == "chat",
        **_shape(config),
        **(_chat(folder, config) if chosen == "chat" else _encoder(folder, config, identity, chosen)),
    )


def _identify(config: Fields) -> _Identity:
    listed, model_type = config.values.get("architectures"), config.values.get("model_type")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    for name in names:
        if family and name in family.architectures:
            return _Identity(name, str(model_type), family, family.architectures[name])
    raise UnknownArchitecture(
        f"config.json names the architectures {str(names)[:80]} of type {str(model_type)[:40]!r}, which is not served.",
        hint=f"Served are the types {served()}.",
    )


def _refuse_unserved(folder: Path, config: Fields, identity: _Identity) -> None:
    if "quantization_config" in config:
        raise ModelProblem(
            f"{folder.name} holds quantised weights, which are not served.",
            hint="Use the same model in bfloat16, float16 or float32.",
        )
    if config.values.get("position_embedding_type", "absolute") != "absolute":
        raise ModelProblem(f"{folder.name} has relative positions in its attention, which are not served.")
    if identity.kind == "chat" and has_modules(folder):
        raise ModelProblem(
            f"{folder.name} makes vectors with a chat model ({identity.architecture}), which is not served.",
            hint="Embedding models of these families are: bert, roberta, xlm-roberta.",
        )
    _check_tokenizer(folder)


def _check_tokenizer(folder: Path) -> None:
    """tokenizer.json is there and begins like JSON; 10 MB are not parsed for a plan."""
    try:
        with (folder / "tokenizer.json").open("rb") as file:
            first = file.read(64).lstrip()
    except FileNotFoundError:
        raise ModelProblem(
            f"{folder.name} has no tokenizer.json.", hint="Fetch it; other tokenizer formats are not read."
        ) from None
    except OSError as error:
        raise ModelProblem(f"tokenizer.json cannot be read: {error.strerror}.") from None
    if not first.startswith(b"{"):
        lfs = ", but a Git LFS pointer" if first.startswith(b"version ") else ""
        raise ModelProblem(f"tokenizer.json is not JSON{lfs}.", hint="Fetch the file again.")


def _choose_kind(folder: Path, identity: _Identity, asked: Kind | None) -> Kind:
    if asked in (None, identity.kind):
        return identity.kind
    if asked == "rerank" and identity.kind == "embedding":
        return "rerank"
    fits = "embedding or rerank" if identity.kind == "embedding" else identity.kind
    raise WrongKind(
        f"{folder.name} holds {identity.architecture}, which serves {fits}, not {asked}.",
        hint=f"Ask for {fits}, or leave the kind out.",
        param="model_type",
    )


def _weigh(tensors: dict[str, StoredTensor], tied: bool) -> tuple[int, dict[str, int]]:
    """Parameters, and bytes by dtype. Whole numbers are buffers (position ids), not parameters."""
    parameters, stored = 0, dict[str, int]()
    for tensor in tensors.values():
        if "float" in tensor.dtype and not (tied and tensor.name in TIED_TENSORS):
            parameters += tensor.elements
            stored[tensor.dtype] = stored.get(tensor.dtype, 0) + tensor.size
    return parameters, stored


def _shape(config: Fields) -> dict[str, Any]:
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads = config.count("num_key_value_heads", heads)
    if ("head_dim" not in config and hidden % heads) or heads % kv_heads:
        raise ModelProblem(f"config.json: {heads} heads and {kv_heads} KV heads do not divide {hidden} evenly.")
    return {
        "layers": config.count("num_hidden_layers"),
        "hidden_size": hidden,
        "intermediate_size": config.count("intermediate_size"),
        "attention_heads": heads,
        "kv_heads": kv_heads,
        "head_dim": config.count("head_dim", hidden // heads),
        "vocab_size": config.count("vocab_size"),
    }


def _chat(folder: Path, config: Fields) -> dict[str, Any]:
    tokenizer, generation = read_fields(folder, "tokenizer_config.json"), read_fields(folder, "generation_config.json")
    template = _template(folder, tokenizer)
    return {
        "context_length": min([config.count("max_position_embeddings"), *_tokenizer_limit(tokenizer)]),
        "chat_template": bool(template),
        "tools": bool(_TOOLS.search(template)),
        "eos_token_ids": generation.token_ids("eos_token_id") or config.token_ids("eos_token_id"),
        "generation": {key: generation.number(key) for key in _SAMPLING if key in generation},
    }


def _template(folder: Path, tokenizer: Fields) -> str:
    """The chat template's text, of several all of them; the file of its own wins, as in transformers."""
    own = read_text(folder / "chat_template.jinja")
    listed = tokenizer.values.get("chat_template")
    entries = listed if isinstance(listed, list) else []
    texts = [entry.get("template") if isinstance(entry, dict) else None for entry in entries] or [listed]
    return own or "\n".join(text for text in texts if isinstance(text, str))


def _encoder(folder: Path, config: Fields, identity: _Identity, kind: Kind) -> dict[str, Any]:
    family = identity.family
    offset = config.count("pad_token_id", 1, least=0) + 1 if family.positions_after_pad else 0
    limits = [config.count("max_position_embeddings") - offset]
    limits += _tokenizer_limit(read_fields(folder, "tokenizer_config.json"))
    facts: dict[str, Any] = {"position_offset": offset}
    if identity.kind == "embedding":
        sentence = read_sentence_facts(folder, family.pooling or "mean")
        limits += [sentence.max_length] if sentence.max_length else []
        facts |= _vector(config, sentence)
    facts |= {"context_length": min(limits)}
    if facts["context_length"] < 1:
        raise ModelProblem(f"config.json leaves {facts['context_length']} positions for text.")
    if identity.kind == "rerank":
        facts["num_labels"] = _one_label(folder, config)
    if kind == "rerank":
        facts["rerank_method"] = "cross-encoder" if identity.kind == "rerank" else "bi-encoder"
    return facts


def _vector(config: Fields, sentence: SentenceFacts) -> dict[str, Any]:
    return {
        "pooling": sentence.pooling,
        "normalize": sentence.normalize,
        "dimensions": config.count("hidden_size"),
        "prompts": sentence.prompts,
        "lowercase": sentence.lowercase,
    }


def _one_label(folder: Path, config: Fields) -> int:
    labels = config.values.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.count("num_labels", 2)
    if count != 1:
        raise ModelProblem(f"{folder.name} sorts texts into {count} classes; a reranker has one score.")
    return count


def _tokenizer_limit(tokenizer: Fields) -> list[int]:
    """model_max_length where it says something."""
    value = tokenizer.values.get("model_max_length")
    return [int(value)] if isinstance(value, int | float) and 1 <= value <= _SANE_LENGTH else []
