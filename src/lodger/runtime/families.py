"""`model_type` -> the transformers classes that are its model code, built without weights and without foreign code."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, __version__

from lodger.catalogue import families
from lodger.catalogue.config_files import Fields
from lodger.catalogue.facts import ModelFacts
from lodger.errors import MissingDependency, UnknownArchitecture
from lodger.runtime.attention import interface


class Classes(NamedTuple):
    """Where transformers keeps a family: package below `transformers.models`, and what its class names begin with."""

    package: str
    prefix: str
    decoder: bool
    since: str = "5.17"  # the first transformers with it, or the oldest that Lodger runs with


FAMILIES: dict[str, Classes] = {
    "qwen3": Classes("qwen3", "Qwen3", decoder=True),
    "qwen2": Classes("qwen2", "Qwen2", decoder=True),
    "llama": Classes("llama", "Llama", decoder=True),
    "bert": Classes("bert", "Bert", decoder=False),
    "roberta": Classes("roberta", "Roberta", decoder=False),
    "xlm-roberta": Classes("xlm_roberta", "XLMRoberta", decoder=False),
    "gte": Classes("gte", "Gte", decoder=False, since="5.18"),
    "new": Classes("gte", "Gte", decoder=False, since="5.18"),
}
# config.json says how the model was made. How it runs, and with whose code, is not the folder's to say.
_NOT_THE_FOLDERS = {"auto_map", "attn_implementation", "experts_implementation", "quantization_config",
                    "torch_dtype", "dtype", "trust_remote_code", "use_kernels"}  # fmt: skip


def build(facts: ModelFacts) -> PreTrainedModel:
    """The model of `facts` without memory for its weights (meta device), attending through our function.

    Decoders and embedders are their base model, which gives hidden states; cross-encoders come with their classifier.

    Raises:
        UnknownArchitecture: not served, or a family that would mix packed requests.
        MissingDependency: the transformers installed is too old for it.
    """
    classes = FAMILIES.get(facts.model_type)
    if classes is None:
        raise UnknownArchitecture(
            f"models of type {facts.model_type!r} are not served.", hint=f"Served: {', '.join(sorted(FAMILIES))}."
        )
    config, modeling = _import(facts.model_type, classes)
    options: dict[str, Any] = {}
    if facts.rerank_method == "cross-encoder":
        cls = getattr(modeling, f"{classes.prefix}ForSequenceClassification")
    else:
        cls = getattr(modeling, f"{classes.prefix}Model")
        options = {} if classes.decoder else {"add_pooling_layer": False}
    with torch.device("meta"):
        values = families.FAMILIES[facts.model_type].native(Fields("config.json", clean_config(Path(facts.path))))
        model: PreTrainedModel = cls(config.from_dict(values.values), **options)
    interface.install(model)
    model.train(False)
    return model


def _import(model_type: str, classes: Classes) -> tuple[Any, Any]:
    """The family's config class, and the module of its models."""
    package = f"transformers.models.{classes.package}"
    try:
        config = import_module(f"{package}.configuration_{classes.package}")
        modeling = import_module(f"{package}.modeling_{classes.package}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(package):
            raise
        raise MissingDependency(
            f"Models of type {model_type!r} need transformers {classes.since} or newer; {__version__} is installed.",
            hint=f'Run: pip install "transformers>={classes.since}"',
        ) from None
    return getattr(config, f"{classes.prefix}Config"), modeling


def clean_config(folder: Path) -> dict[str, Any]:
    """config.json without whatever names code or chooses an implementation."""
    values: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in values.items() if key not in _NOT_THE_FOLDERS and not key.startswith("_")}
