"""Decoders that encode: embedders against sentence-transformers, rerankers against their model card's code."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_requests import run, texts, vectors
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from lodger.catalogue.facts import ModelFacts
from lodger.catalogue.identify import complete
from lodger.catalogue.inspect import inspect_folder
from lodger.errors import ContextExceeded, DamagedWeights, EmptyInput, InvalidRequest, ModelProblem
from lodger.runtime import loading
from lodger.runtime.precision import precision
from lodger.tasks import CompletionTask, EmbedTask, RerankTask, StopRules
from lodger.units import GIB

PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


@pytest.fixture(scope="session")
def sentence_oracle(tiny: Callable[..., Path], device: torch.device) -> Any:
    from sentence_transformers import SentenceTransformer

    oracle = SentenceTransformer(str(tiny("qwen3-embedding")), device=str(device))
    oracle.max_seq_length = 512
    return oracle


@pytest.mark.parametrize("prompt", [None, "", "query", "document"])
def test_embeddings_are_those_of_sentence_transformers(prompt: str | None, serve: Any, sentence_oracle: Any) -> None:
    inputs = (*texts(20), "", "word " * 900)
    result = run(serve("qwen3-embedding").embed(EmbedTask(model="m", inputs=inputs, prompt_name=prompt)))
    expected = sentence_oracle.encode(list(inputs), prompt_name=prompt or None, batch_size=4)
    assert np.abs(vectors(result) - expected).max() < 1e-5
    before = sentence_oracle.prompts["query"] if prompt == "query" else ""
    tokenizer = sentence_oracle.tokenizer
    lengths = [len(tokenizer(before + text, truncation=True, max_length=512).input_ids) for text in inputs]
    assert (result.usage.prompt_tokens, result.truncated) == (sum(lengths), 1)


def test_fewer_dimensions_are_sentence_transformers_truncation(serve: Any, sentence_oracle: Any) -> None:
    result = run(serve("qwen3-embedding").embed(EmbedTask(model="m", inputs=texts(6), dimensions=24)))
    expected = sentence_oracle.encode(list(texts(6)), truncate_dim=24, normalize_embeddings=True)
    assert np.abs(vectors(result) - expected).max() < 1e-5


@pytest.mark.parametrize("step_tokens", [1, 90])
def test_how_texts_are_cut_into_steps_changes_nothing(step_tokens: int, serve: Any) -> None:
    task = EmbedTask(model="m", inputs=texts(20))
    whole = run(serve("qwen3-embedding", step_tokens=4096).embed(task))
    cut = run(serve("qwen3-embedding", step_tokens=step_tokens).embed(task))
    assert np.abs(vectors(cut) - vectors(whole)).max() < 1e-5


def test_the_models_default_prompt_stands_before_texts_unless_the_request_says_otherwise(
    serve: Any, tiny: Callable[..., Path]
) -> None:
    facts = inspect_folder(tiny("qwen3-embedding"))
    model = serve.fresh(replace(facts, default_prompt="query"))

    def embed(**asked: Any) -> Any:
        return vectors(run(model.embed(EmbedTask(model="m", inputs=("time",), **asked))))

    assert np.array_equal(embed(), embed(prompt_name="query"))
    assert np.array_equal(embed(prompt_name=""), embed(prompt_name="document"))
    assert not np.array_equal(embed(), embed(prompt_name=""))
    model.close()


def test_a_prompt_that_the_model_does_not_have_is_refused_with_those_it_has(serve: Any) -> None:
    with pytest.raises(InvalidRequest, match="has no prompt 'passage'") as caught:
        run(serve("qwen3-embedding").embed(EmbedTask(model="m", inputs=("a",), prompt_name="passage")))
    assert (caught.value.hint, caught.value.param) == ("It has: query, document.", "prompt_name")
    with pytest.raises(InvalidRequest, match="has no prompt 'query'"):
        run(serve("minilm").embed(EmbedTask(model="m", inputs=("a",), prompt_name="query")))


def test_token_ids_get_no_prompt(serve: Any) -> None:
    model = serve("qwen3-embedding")
    ids = tuple(model._serving.tokenizer.encode("time person", special=True))
    given = run(model.embed(EmbedTask(model="m", inputs=(ids,), prompt_name="query")))
    bare = run(model.embed(EmbedTask(model="m", inputs=("time person",))))
    assert (given.usage, given.vectors) == (bare.usage, bare.vectors)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_any_decoder_may_be_an_embedder(
    family: str, serve: Any, tiny: Callable[..., Path], oracle_of: Callable[[str], Any], device: torch.device
) -> None:
    model = serve.fresh(embedder(inspect_folder(tiny(family))))
    assert set(model.info.memory) == {"weights"}
    found = vectors(run(model.embed(EmbedTask(model="m", inputs=texts(5)))))
    for text, vector in zip(texts(5), found, strict=True):
        ids = torch.tensor([model._serving.tokenizer.encode(text, special=True)], device=device)
        last = oracle_of(family).model(ids, use_cache=False)[0][0, -1]
        assert np.abs(vector - torch.nn.functional.normalize(last, dim=-1).detach().cpu().numpy()).max() < 1e-5
    model.close()


def test_a_text_without_tokens_never_gets_its_neighbours_vector(serve: Any, tiny: Callable[..., Path]) -> None:
    model = serve.fresh(embedder(inspect_folder(tiny("llama"))))  # its tokenizer adds nothing to an empty text
    with pytest.raises(EmptyInput, match="a text has no tokens"):
        run(model.embed(EmbedTask(model="m", inputs=("time", ""))))
    model.close()


@pytest.mark.parametrize("family", ["qwen3-embedding", "qwen3-reranker"])
def test_the_generic_forward_serves_a_decoder_that_the_fast_one_does_not(
    family: str, tiny: Callable[..., Path], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lodger.sched.step import Item

    kind, answers = ("rerank", (258, 257)) if "rerank" in family else (None, None)
    facts, how = inspect_folder(tiny(family), kind), [precision("float32", device)]
    fast = loading.load_runner(facts, GIB, how, device, lambda _: None, answers)
    monkeypatch.setattr(loading, "is_dense", lambda model: False)
    generic = loading.load_runner(facts, GIB, how, device, lambda _: None, answers)
    items = [Item(0, n, tuple(range(5, 12 + n))) for n in range(4)]
    for name in fast.heads:
        found = [runner.encode(items, [(runner.heads[name],)] * 4) for runner in (fast, generic)]
        assert all((mine[0] - other[0]).abs().max() < 1e-5 for mine, other in zip(*found, strict=True))
    assert fast.weight_bytes == generic.weight_bytes


class OfficialReranker:
    """Qwen3-Reranker as its model card computes it, with transformers."""

    def __init__(self, folder: Path, device: torch.device, max_length: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
        self.answers = [self.tokenizer.convert_tokens_to_ids(word) for word in ("no", "yes")]
        self.max_length = max_length

    @torch.no_grad()
    def __call__(self, query: str, documents: Sequence[str], instruction: str = INSTRUCTION) -> list[float]:
        bodies = [f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}" for document in documents]
        prefix, suffix = (self.tokenizer.encode(text, add_special_tokens=False) for text in (PREFIX, SUFFIX))
        room = self.max_length - len(prefix) - len(suffix)
        inputs = self.tokenizer(bodies, padding=False, truncation="longest_first", max_length=room)
        ids = [prefix + own + suffix for own in inputs["input_ids"]]
        padded = self.tokenizer.pad({"input_ids": ids}, padding=True, return_tensors="pt").to(self.model.device)
        logits = self.model(**padded).logits[:, -1, self.answers]
        return torch.nn.functional.log_softmax(logits, dim=1)[:, 1].exp().tolist()


def reranker_facts(folder: Path) -> ModelFacts:
    return complete(inspect_folder(folder, "rerank"), None)


@pytest.fixture
def reranker(serve: Any, tiny: Callable[..., Path]) -> Any:
    model = serve.fresh(reranker_facts(tiny("qwen3-reranker")))
    yield model
    model.close()


@pytest.fixture(scope="session")
def official(tiny: Callable[..., Path], device: torch.device) -> OfficialReranker:
    return OfficialReranker(tiny("qwen3-reranker"), device, max_length=512)


@pytest.mark.parametrize("instruction", [None, "Find {query} or {document} about birds"])
def test_scores_are_those_of_the_model_cards_code(
    instruction: str | None, reranker: Any, official: OfficialReranker
) -> None:
    query, documents = "what is {document} in 北京?", (*texts(12), "", "word " * 900)
    task = RerankTask(model="m", query=query, documents=documents, instruction=instruction)
    result = run(reranker.rerank(task))
    assert np.abs(np.array(result.scores) - official(query, documents, instruction or INSTRUCTION)).max() < 1e-5
    assert np.allclose(result.scores, 1 / (1 + np.exp(-np.array(result.logits))), atol=1e-12)
    assert result.truncated == 1
    assert len(set(result.logits)) == len(documents)


def test_only_the_document_is_cut(reranker: Any) -> None:
    long, longer = (
        run(reranker.rerank(RerankTask(model="m", query="time", documents=("word " * count,)))) for count in (900, 950)
    )
    assert long == longer
    assert long.usage.prompt_tokens == 512
    tokenizer = reranker._serving.tokenizer
    (text,) = reranker._tokenise(RerankTask(model="m", query="time", documents=("word " * 900,)))
    asked = tokenizer.decode(text.tokens, skip_special=False)
    assert asked.startswith(f"{PREFIX}<Instruct>: {INSTRUCTION}\n<Query>: time\n<Document>: word word")
    assert asked.endswith(SUFFIX)


def test_a_query_that_leaves_no_room_for_documents_is_refused(reranker: Any) -> None:
    with pytest.raises(ContextExceeded, match="leave no room for documents: .* serves 512 tokens"):
        run(reranker.rerank(RerankTask(model="m", query="word " * 500, documents=("a",))))


def test_rerankings_at_the_same_time_get_what_each_gets_alone(reranker: Any) -> None:
    tasks = [RerankTask(model="m", query=query, documents=texts(4, most=20)) for query in texts(4, most=6)]

    async def ask() -> list[Any]:
        return await asyncio.gather(*(reranker.rerank(task) for task in tasks))

    for task, together in zip(tasks, run(ask()), strict=True):
        alone = run(reranker.rerank(task))
        assert np.abs(np.array(together.logits) - alone.logits).max() < 1e-5
        assert together.usage == alone.usage


@pytest.fixture
def untied(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """The reranker with an output projection of its own, twice its embedding's table."""
    folder = shutil.copytree(tiny("qwen3-reranker"), tmp_path / "untied")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": 2 * tensors["model.embed_tokens.weight"]}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return folder


def test_of_an_output_projection_only_two_rows_are_kept(untied: Path, reranker: Any, serve: Any) -> None:
    model = serve.fresh(reranker_facts(untied))
    assert model.info.memory == reranker.info.memory
    task = RerankTask(model="m", query="time", documents=texts(3))
    assert np.allclose(run(model.rerank(task)).logits, 2 * np.array(run(reranker.rerank(task)).logits), atol=1e-5)
    model.close()


def test_an_output_projection_that_is_missing_or_cut_is_named(untied: Path, device: torch.device) -> None:
    facts, tensors = inspect_folder(untied, "rerank"), load_file(untied / "model.safetensors")
    how = [precision("float32", device)]
    for changed, message in ((tensors["lm_head.weight"][:100].clone(), r"\[100, 64\], .* asks for \[496, 64\]"),
                             (None, "the weights lack lm_head.weight")):  # fmt: skip
        own = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
        save_file(own | ({} if changed is None else {"lm_head.weight": changed}), untied / "model.safetensors")
        with pytest.raises(DamagedWeights, match=message):
            loading.load_runner(facts, GIB, how, device, lambda _: None, (258, 257))


def test_one_folder_may_chat_and_rerank_at_once(serve: Any, tiny: Callable[..., Path]) -> None:
    folder = tiny("qwen3-reranker", num_hidden_layers=1)
    models = [serve.fresh(inspect_folder(folder)), serve.fresh(reranker_facts(folder))]

    async def ask() -> tuple[Any, Any]:
        rules = StopRules(max_tokens=3, ignore_eos=True)
        said = [delta async for delta in models[0].generate(CompletionTask(model="m", prompt="time", stopping=rules))]
        return said[-1], await models[1].rerank(RerankTask(model="m", query="a", documents=("b",)))

    last, ranked = run(ask())
    assert last.usage.completion_tokens == 3
    assert ranked.scores
    for model in models:
        model.close()


def test_a_reranker_that_cannot_be_asked_is_refused_at_load(serve: Any, tiny: Callable[..., Path]) -> None:
    facts = inspect_folder(tiny("qwen3-reranker"), "rerank")
    with pytest.raises(ModelProblem, match="it is not known how to ask it"):
        serve.fresh(replace(facts, rerank_template=None))
    template = reranker_facts(tiny("qwen3-reranker")).rerank_template
    assert template is not None
    with pytest.raises(ModelProblem, match="cannot answer certainly or no"):
        serve.fresh(replace(facts, rerank_template=replace(template, yes="certainly")))


def embedder(facts: ModelFacts) -> ModelFacts:
    return replace(facts, kind="embedding", pooling="last", normalize=True, dimensions=facts.hidden_size)
