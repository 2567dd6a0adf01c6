"""Which spellings ask for weights of one byte, and what is said of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_service import facts_of
from msgspec.structs import replace

from lodger.api.describe import description
from lodger.api.launching import LaunchRequest
from lodger.catalogue.facts import Int4Weights
from lodger.config import load_config
from lodger.errors import ConfigProblem
from lodger.service import ModelStatus


def spec(quantization: Any) -> Any:
    return LaunchRequest.model_validate({"model_path": "/models/m", "quantization": quantization}).spec(())


@pytest.mark.parametrize("word", ["int8", "INT8", "8-bit", "8bit", 8])
def test_int8_in_every_spelling(word: Any) -> None:
    assert (spec(word).quantization, spec(word).notes) == ("int8", ())


@pytest.mark.parametrize("word", [None, "none", "None"])
def test_no_quantization_is_nothing_to_speak_of(word: Any) -> None:
    assert (spec(word).quantization, spec(word).notes) == (None, ())


@pytest.mark.parametrize("word", ["4-bit", "Q4_K_M", "fp8", 4])
def test_any_other_is_answered_by_a_note(word: Any) -> None:
    assert spec(word).quantization is None
    assert spec(word).notes == ("quantization has no effect: weights are served as the folder has them, or as int8.",)


def test_a_model_of_the_file_asks_for_it_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "lodger.yaml"
    file.write_text("models:\n  chat:\n    path: /models/m\n    quantization: int8\n")
    assert load_config(file).models[0].quantization == "int8"
    file.write_text("models:\n  chat:\n    path: /models/m\n    quantization: int4\n")
    with pytest.raises(ConfigProblem, match=r"quantization should be 'int8', not 'int4'"):
        load_config(file)


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_quantised_checkpoint_is_described_as_xinference_does(method: Any) -> None:
    facts = replace(facts_of("chat", "m"), int4=Int4Weights(method=method, group=128), causal=True)
    told = description(ModelStatus(spec=spec(None), state="ready", created=0, facts=facts), "localhost:9997")
    assert (told["model_format"], told["quantization"]) == (method, "Int4")
