"""How many tokens of one sequence a model really supports."""

from __future__ import annotations

from lodger.catalogue.config_files import Fields
from lodger.errors import ModelProblem

_SANE_LENGTH = 10**9  # tokenizer_config.json has 10**30 for "unknown"


def learned_positions(config: Fields, offset: int) -> int:
    """Of an encoder with a table of positions whose first `offset` rows stand for padding.

    Encoders with rotary positions are published with the length after scaling (gte-multilingual-base: 8,192)."""
    return config.count("max_position_embeddings") - offset


def rotary_positions(config: Fields) -> int:
    """With rotary positions; `rope_parameters` is how transformers 5 spells `rope_scaling`.

    A factor stretches the length that was trained (transformers, modeling_rope_utils.py, `RopeParameters`): for yarn
    `original_max_position_embeddings`, which is `max_position_embeddings` unless said (`standardize_rope_params`),
    for linear `max_position_embeddings`. llama3 has counted its factor in already. Of the types whose angles depend on
    the longest sequence of a batch (`dynamic_rope_update`), only the lengths at which they do not are supported.

    Raises:
        ModelProblem: a type of scaling that transformers does not know, or a factor that is none.
    """
    longest = config.count("max_position_embeddings")
    said = config.values.get("rope_scaling") or config.values.get("rope_parameters") or {}
    if not isinstance(said, dict):
        raise config.problem("rope_scaling" if config.values.get("rope_scaling") else "rope_parameters", "an object")
    rope = Fields(f"{config.file} (rope scaling)", said)
    kind = str(said.get("rope_type", said.get("type", "default")))
    if kind in {"default", "llama3", "dynamic"}:
        return longest
    if kind == "linear":
        return _stretched(rope, longest, rope.number("factor"))
    trained = config.count("original_max_position_embeddings", rope.count("original_max_position_embeddings", longest))
    if kind == "yarn":
        return _stretched(rope, trained, rope.number("factor") if "factor" in rope else longest / trained)
    if kind == "longrope":
        return min(trained, longest)
    raise ModelProblem(
        f"{config.file} asks for the rope scaling {kind[:40]!r}, which is not served.",
        hint="Served: linear, dynamic, yarn, longrope and llama3.",
    )


def _stretched(rope: Fields, length: int, factor: float) -> int:
    if not 1 <= factor <= _SANE_LENGTH / length:
        raise rope.problem("factor", "a number from 1 on that gives a sane length")
    return round(length * factor)


def tokenizer_limit(tokenizer: Fields) -> list[int]:
    """model_max_length of tokenizer_config.json where it says something."""
    value = tokenizer.values.get("model_max_length")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= _SANE_LENGTH:
        return []
    return [int(value)]
