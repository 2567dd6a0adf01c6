"""Which files of a repository serving needs: pure, by their names alone.

Repositories hold the same weights several times (safetensors, pickles, ONNX, OpenVINO, GGUF, TensorFlow, Flax, Meta's
`original/`). Each folder's weights are taken once: safetensors where there are any, else PyTorch's pickles, which
`lodger.hub.convert` turns into safetensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from lodger.errors import FolderWithoutWeights, ModelProblem
from lodger.hub.base import Listing, RemoteFile

SMALL = frozenset({
    "config.json", "generation_config.json",
    # Lodger reads the first two; other tools want their own format, and together these are a few MiB.
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "spm.model",
    "chat_template.jinja", "chat_template.json",
    "modules.json", "config_sentence_transformers.json",
})  # fmt: skip
SENTENCE = re.compile(r"sentence_\w+_config\.json", re.ASCII)  # sentence_bert_config.json, sentence_xlnet_config.json
LEGAL = re.compile(r"(README|LICEN[CS]E|NOTICE|USE_POLICY|COPYING)([_-][\w-]*)?(\.md|\.txt)?", re.ASCII | re.IGNORECASE)
TEMPLATES = "additional_chat_templates"
MODULE = re.compile(r"\d+_\w+", re.ASCII)  # a module of sentence-transformers: 1_Pooling, 2_Dense
HEADS = frozenset({"sparse_linear.pt", "colbert_linear.pt"})  # of bge-m3, beside its weights
# In the order of preference: all weights in one file; or the index, and the shards that it names
WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json", re.compile(r"model-\d+-of-\d+\.safetensors", re.ASCII)),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", re.compile(r"pytorch_model-\d+-of-\d+\.bin", re.ASCII)),
)
FOREIGN = (".gguf", ".onnx", ".h5", ".msgpack", ".pth", ".pt", ".ckpt", ".bin", ".safetensors")


def select(listing: Listing) -> tuple[RemoteFile, ...]:
    """The files to have, in the listing's order. A path that leads out of the folder is never among them.

    Raises:
        FolderWithoutWeights: there are none in a format that Lodger reads; names those there are.
        ModelProblem: no config.json.
    """
    safe = [file for file in listing.files if _is_inside(file.path)]
    wanted = {file.path for file in safe if _is_small(PurePosixPath(file.path))}
    weights = {path for folder in _model_folders(safe) for path in _weights(folder, safe)}
    if not weights:
        raise _no_weights(listing)
    if not any(PurePosixPath(path).name == "config.json" for path in wanted):
        raise ModelProblem(f"{listing.repo} has weights but no config.json.", hint="Is it a whole model?")
    return tuple(file for file in safe if file.path in wanted | weights)


def _is_inside(path: str) -> bool:
    parts = path.split("/")
    return not {"", ".", ".."} & set(parts) and path.isprintable() and "\\" not in path


def _is_small(path: PurePosixPath) -> bool:
    """Configuration, tokenizer, templates, licence."""
    match path.parts:
        case [name]:
            return name in SMALL or bool(SENTENCE.fullmatch(name) or LEGAL.fullmatch(name))
        case [folder, name]:
            if folder == TEMPLATES:
                return name.endswith(".jinja")
            return bool(MODULE.fullmatch(folder)) and (name in SMALL or bool(SENTENCE.fullmatch(name)))
    return False


def _model_folders(files: Iterable[RemoteFile]) -> set[str]:
    """``''`` for the model itself, and the folders of sentence-transformers' modules."""
    tops = {file.path.split("/")[0] for file in files if file.path.count("/") == 1}
    return {"", *(f"{top}/" for top in tops if MODULE.fullmatch(top))}


def _weights(folder: str, files: Iterable[RemoteFile]) -> set[str]:
    names = {file.path.removeprefix(folder) for file in files if file.path.startswith(folder)}
    for single, index, shard in WEIGHTS:
        found = {single} & names or {name for name in names if shard.fullmatch(name)}
        if found:
            found |= {index} & names if single not in found else set()
            return {folder + name for name in found | (HEADS & names if not folder else set())}
    return set()


def _no_weights(listing: Listing) -> FolderWithoutWeights:
    others = sorted(file.path for file in listing.files if file.path.endswith(FOREIGN))
    if not others:
        return FolderWithoutWeights(f"{listing.repo} has no weights.", hint="Name the repository of a model.")
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return FolderWithoutWeights(
        f"{listing.repo} has no safetensors and no pytorch_model.bin, only {', '.join(others[:3])}{more}.",
        hint="Name the repository with the original weights.",
    )
