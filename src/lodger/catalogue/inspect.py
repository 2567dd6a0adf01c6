"""`inspect_folder`: everything Lodger knows of a model, read from its folder in milliseconds, nothing loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from lodger.catalogue.chat_files import read_chat_facts
from lodger.catalogue.config_files import Fields, is_text, read_fields
from lodger.catalogue.context import learned_positions, rotary_positions, tokenizer_limit
from lodger.catalogue.facts import ModelFacts, RerankMethod
from lodger.catalogue.families import FAMILIES, LANGUAGE_HEADS, Family, served
from lodger.catalogue.folder_files import AGAIN, LFS_POINTER, open_file
from lodger.catalogue.int4 import read_packing
from lodger.catalogue.sentence import (
    Modules,
    check_logit_score,
    length_limit,
    read_modules,
    read_prompts,
    read_sentence_facts,
)
from lodger.catalogue.token_heads import head_files
from lodger.catalogue.weights import weigh
from lodger.errors import FolderMissing, ModelProblem, UnknownArchitecture, WrongKind
from lodger.tasks import Kind


class _Identity(NamedTuple):
    """What a folder is, before anybody asks for something."""

    architecture: str
    model_type: str
    family: Family
    modules: Modules
    kind: Kind

    @property
    def served(self) -> tuple[Kind, ...]:
        """What can be asked of it, its own kind first. Embedding models rerank by their vectors."""
        by_logits = self.kind == "chat" and self.family.yes_no
        return (self.kind, "rerank") if by_logits or self.kind == "embedding" else (self.kind,)


def inspect_folder(path: str | os.PathLike[str], kind: Kind | None = None) -> ModelFacts:
    """Facts of the model in folder `path`. Only `kind="rerank"` says more than the folder does: an embedding model
    compares vectors then, and a chat model answers yes or no.

    Raises:
        FolderMissing, FolderWithoutWeights, DamagedWeights, UnknownArchitecture.
        WrongKind: the folder holds a model of another kind.
        ModelProblem: a file is missing or damaged, or asks for what is not served (quantised weights, other poolings).
    """
    folder = _existing(path)
    config = read_fields(folder, "config.json")
    if not config.values:
        raise ModelProblem(f"{folder.name} has no config.json.", hint="A model folder has one, beside its weights.")
    identity = _identify(config, read_modules(folder))
    _refuse_unserved(folder, config, identity)
    packing = read_packing(folder.name, config)
    config = identity.family.native(config)
    _check_tokenizer(folder)
    chosen = _choose_kind(folder, identity, kind)
    tied = config.flag("tie_word_embeddings", identity.family.tied_by_default)
    with_head = chosen == "chat" and not tied  # the output projection is served, and is no copy of the embedding
    shape = _shape(config)
    may_have = identity.family.token_heads and identity.kind == "embedding"
    heads = head_files(folder, shape["hidden_size"]) if may_have else {}
    weights = weigh(
        folder, config, heads.values(), lambda name: with_head or not name.startswith(LANGUAGE_HEADS), packing
    )
    return ModelFacts(
        path=str(folder),
        kind=chosen,
        architecture=identity.architecture,
        model_type=identity.model_type,
        parameters=weights.parameters,
        stored_bytes=weights.stored,
        weights_format=weights.format,
        int4=weights.int4,
        tied_embeddings=tied,
        causal=identity.family.causal,
        token_heads=tuple(heads),
        **shape,
        **_lengths(folder, config, identity, chosen),
        **_served_as(folder, config, identity, chosen, "colbert" in heads),
    )


def _existing(path: str | os.PathLike[str]) -> Path:
    folder = Path(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FolderMissing(f"There is no folder {folder.name!r}.", hint="Check the path.")
    if not is_text(str(folder)):
        raise ModelProblem(f"The folder's path is not UTF-8: {folder.name!r}.", hint="Rename it.")
    return folder


def _identify(config: Fields, modules: Modules) -> _Identity:
    listed, model_type = config.values.get("architectures"), config.values.get("model_type")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    for name in names:
        if family and name in family.architectures:
            return _Identity(name, str(model_type), family, modules, modules.kind or family.architectures[name])
    hint = f"Served of this type: {', '.join(family.architectures)}." if family else f"Served are the types {served()}."
    raise UnknownArchitecture(
        f"config.json names the architectures {str(names)[:80]} of type {str(model_type)[:40]!r}, which is not served.",
        hint=hint,
    )


def _refuse_unserved(folder: Path, config: Fields, identity: _Identity) -> None:
    if "quantization_config" in config and not identity.family.causal:
        raise ModelProblem(
            f"{folder.name} holds quantised weights, which are not served of a {identity.model_type} model.",
            hint="Use the same model in bfloat16, float16 or float32.",
        )
    positions = "rope" if identity.family.rotary else "absolute"
    if (said := config.values.get("position_embedding_type", positions)) != positions:
        raise ModelProblem(
            f"{folder.name} has {str(said)[:40]!r} positions, served of its type are {positions!r} ones."
        )
    made_for = identity.family.architectures[identity.architecture]
    judges: tuple[Kind, ...] = ("rerank",) if identity.family.yes_no else ()
    chains: dict[Kind, tuple[Kind, ...]] = {"chat": ("embedding", *judges), "embedding": ("embedding",), "rerank": ()}
    if identity.modules.kind and identity.modules.kind not in chains[made_for]:
        raise ModelProblem(f"modules.json is for {identity.kind}, which {identity.architecture} is not served for.")
    # Embedders made of decoders that see the whole text bring their own code, or a flag that transformers follows.
    own_code = identity.kind == "embedding" and "AutoModel" in config.object("auto_map")
    if identity.family.causal and (own_code or not config.flag("is_causal", default=True)):
        raise ModelProblem(f"{folder.name} looks at a text in both directions with a decoder, which is not served.")
    if identity.modules.kind == "rerank":
        check_logit_score(folder, identity.modules)


def _check_tokenizer(folder: Path) -> None:
    """tokenizer.json is there and begins like JSON; 10 MB are not parsed for a plan."""
    try:
        with open_file(folder, "tokenizer.json") as file:
            first = file.read(64)
    except FileNotFoundError:
        raise ModelProblem(
            f"{folder.name} has no tokenizer.json.", hint="Fetch it; other tokenizer formats are not read."
        ) from None
    except OSError as error:
        raise ModelProblem(f"tokenizer.json cannot be read: {error.strerror}.") from None
    if not first.lstrip().startswith(b"{"):
        lfs = ", but a Git LFS pointer" if first.startswith(LFS_POINTER) else ""
        raise ModelProblem(f"tokenizer.json is not JSON{lfs}.", hint=AGAIN)


def _choose_kind(folder: Path, identity: _Identity, asked: Kind | None) -> Kind:
    if asked is None:
        return identity.kind
    if asked in identity.served:
        return asked
    fits = " or ".join(identity.served)
    hint = f"Ask for {fits}, or leave the kind out."
    if (identity.kind, asked) == ("chat", "embedding"):
        hint = f"An embedding model of this type has a modules.json: fetch it, or ask for {fits}."
    raise WrongKind(
        f"{folder.name} holds {identity.architecture}, which serves {fits}, not {asked}.", hint=hint, param="model_type"
    )


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


def _lengths(folder: Path, config: Fields, identity: _Identity, kind: Kind) -> dict[str, Any]:
    """The least of what positions, tokenizer and sentence-transformers' files allow."""
    offset = config.count("pad_token_id", 1, least=0) + 1 if identity.family.positions_after_pad else 0
    limits = [rotary_positions(config) if identity.family.causal else learned_positions(config, offset)]
    limits += [rotary_positions(config)] if identity.family.rotary else []
    limits += tokenizer_limit(read_fields(folder, "tokenizer_config.json"))
    limits += [] if kind == "chat" else length_limit(folder)
    if min(limits) < 1:
        raise ModelProblem(f"config.json leaves {min(limits)} positions for text.")
    return {"context_length": min(limits), "position_offset": offset}


def _served_as(folder: Path, config: Fields, identity: _Identity, kind: Kind, colbert: bool) -> dict[str, Any]:
    """What only one kind has."""
    if kind == "chat":
        return read_chat_facts(folder, config, read_fields(folder, "tokenizer_config.json"))
    facts: dict[str, Any] = {}
    if identity.kind == "embedding":
        facts = _vector(folder, config, identity)
        method: RerankMethod = "multi-vector" if colbert else "bi-encoder"
    elif identity.family.causal:
        facts = _prompts(folder)
        method = "yes-no"
    else:
        facts = {"num_labels": _one_label(folder, config)}
        method = "cross-encoder"
    return facts | ({"rerank_method": method} if kind == "rerank" else {})


def _vector(folder: Path, config: Fields, identity: _Identity) -> dict[str, Any]:
    sentence = read_sentence_facts(folder, identity.modules, identity.family.pooling or "mean")
    return {
        "pooling": sentence.pooling,
        "normalize": sentence.normalize,
        "lowercase": sentence.lowercase,
        "dimensions": config.count("hidden_size"),
        "matryoshka": config.values.get("is_matryoshka") is True or bool(config.values.get("matryoshka_dimensions")),
        **_prompts(folder),
    }


def _prompts(folder: Path) -> dict[str, Any]:
    prompts = read_prompts(folder)
    return {"prompts": prompts.texts, "default_prompt": prompts.default}


def _one_label(folder: Path, config: Fields) -> int:
    labels = config.values.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.count("num_labels", 2)
    if count != 1:
        raise ModelProblem(f"{folder.name} sorts texts into {count} classes; a reranker has one score.")
    return count
