"""`model_type` -> the transformers classes that are its model code, built without weights and without foreign code."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from lodger.catalogue.facts import ModelFacts
from lodger.errors import UnknownArchitecture
from lodger.runtime.attention import interface


class Classes(NamedTuple):
    """Where transformers keeps a family: package below `transformers.models`, and what its class names begin with."""

    package: str
    prefix: str
    decoder: bool


FAMILIES: dict[str, Classes] = {
    "qwen3": Classes("qwen3", "Qwen3", decoder=True),
    "qwen2": Classes("qwen2", "Qwen2", decoder=True),
    "llama": Classes("llama", "Llama", decoder=True),
    "bert": Classes("bert", "Bert", decoder=False),
    "roberta": Classes("roberta", "Roberta", decoder=False),
    "xlm-roberta": Classes("xlm_roberta", "XLMRoberta", decoder=False),
}
# config.json says how the model was made. How it runs, and with whose code, is not the folder's to say.
_NOT_THE_FOLDERS = {"auto_map", "attn_implementation", "experts_implementation", "quantization_config",
                    "torch_dtype", "dtype", "trust_remote_code", "use_kernels"}  # fmt: skip


def build(facts: ModelFacts) -> PreTrainedModel:
    """The model of `facts` without memory for its weights (meta device), attending through our function.

    Decoders and embedders are their base model, which gives hidden states; cross-encoders come with their classifier.

    Raises:
        UnknownArchitecture: not served, or a family that would mix packed requests.
    """
    classes = FAMILIES.get(facts.model_type)
    if classes is None:
        raise UnknownArchitecture(
            f"models of type {facts.model_type!r} are not served.", hint=f"Served: {', '.join(sorted(FAMILIES))}."
        )
    package = f"transformers.models.{classes.package}"
    config = getattr(import_module(f"{package}.configuration_{classes.package}"), f"{classes.prefix}Config")
    modeling = import_module(f"{package}.modeling_{classes.package}")
    options: dict[str, Any] = {}
    if facts.rerank_method == "cross-encoder":
        cls = getattr(modeling, f"{classes.prefix}ForSequenceClassification")
    else:
        cls = getattr(modeling, f"{classes.prefix}Model")
        options = {} if classes.decoder else {"add_pooling_layer": False}
    with torch.device("meta"):
        model: PreTrainedModel = cls(config.from_dict(clean_config(Path(facts.path))), **options)
    interface.install(model)
    model.train(False)
    return model


def clean_config(folder: Path) -> dict[str, Any]:
    """config.json without whatever names code or chooses an implementation."""
    values: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in values.items() if key not in _NOT_THE_FOLDERS and not key.startswith("_")}
