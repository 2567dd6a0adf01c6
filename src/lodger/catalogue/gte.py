"""The gte models as Alibaba-NLP publishes them, in the words of transformers' `GteConfig`.

Their config.json is for code of their own (Alibaba-NLP/new-impl on Hugging Face: model_type "new"); transformers has
had the same architecture since 5.18 as "gte".
"""

from __future__ import annotations

from typing import Any

from lodger.catalogue.config_files import Fields
from lodger.errors import ModelProblem


def as_gte(config: Fields) -> Fields:
    """config.json of new-impl for `GteConfig`.

    Raises:
        ModelProblem: it asks for what new-impl can do and `GteModel` cannot.
    """
    if config.values.get("layer_norm_type", "layer_norm") != "layer_norm":
        raise config.problem("layer_norm_type", "'layer_norm', no other is served")
    if config.flag("logn_attention_scale"):
        raise ModelProblem(f"{config.file} scales attention by the text's length, which is not served.")
    kept = {key: value for key, value in config.values.items() if key not in {"rope_scaling", "rope_theta"}}
    return Fields(config.file, {**kept, "model_type": "gte", "rope_parameters": _rope(config)})


def _rope(config: Fields) -> dict[str, Any]:
    """Static NTK scaling by s with base b and heads of d is base s * b, and every frequency divided by s ** (2 / d)
    (`NTKScalingRotaryEmbedding` of new-impl; https://kexue.fm/archives/9706), which transformers calls linear."""
    theta = config.number("rope_theta")
    scaling = config.values.get("rope_scaling")
    if scaling is None:
        return {"rope_type": "default", "rope_theta": float(theta)}
    if not isinstance(scaling, dict) or scaling.get("type") != "ntk" or scaling.get("mixed_b") is not None:
        raise config.problem("rope_scaling", "of type 'ntk' without 'mixed_b', no other is served")
    factor = Fields(f"{config.file} (rope_scaling)", scaling).number("factor")
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    if factor < 1:
        raise config.problem("rope_scaling", "a factor from 1 on")
    if hidden % heads:
        raise config.problem("hidden_size", f"a multiple of its {heads} heads")
    return {"rope_type": "linear", "rope_theta": float(theta * factor), "factor": factor ** (2 * heads / hidden)}
