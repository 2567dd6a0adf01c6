"""bge-m3's sparse weights and vectors of tokens, with FlagEmbedding's definitions of them as the oracle."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from encoder_requests import run, texts, vectors
from msgspec.structs import replace
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from lodger.catalogue.inspect import inspect_folder
from lodger.errors import DamagedWeights, InvalidRequest, OutOfMemory, Unsupported
from lodger.ipc.channel import encode
from lodger.ipc.messages import Vectors
from lodger.runtime.heads import LateInteraction
from lodger.runtime.loading import load_runner, read_stored, weight_bytes
from lodger.runtime.precision import precision
from lodger.runtime.runner import Runner
from lodger.runtime.weights import Checkpoint
from lodger.sched.step import Item
from lodger.tasks import EmbedResult, EmbedTask, RerankTask, SparseVector, Usage
from lodger.units import GIB, MIB

ALL = ("dense", "sparse", "colbert")
ITEM, SCALAR = torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default
COPY = torch.ops.aten.copy_.default


class Reference(NamedTuple):
    dense: np.ndarray[Any, Any]
    lexical: dict[int, float]
    colbert: np.ndarray[Any, Any]


class FlagM3:
    """BGEM3FlagModel as FlagEmbedding defines it (`encoder_only/m3.py`, `m3/modeling.py`), one text at a time."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
        self.sparse, self.colbert = (
            {
                name: tensor.float().to(device)
                for name, tensor in load_file(folder / f"{head}_linear.safetensors").items()
            }
            for head in ("sparse", "colbert")
        )

    @torch.no_grad()
    def __call__(self, text: str) -> Reference:
        inputs = self.tokenizer(text, truncation=True, max_length=512, return_tensors="pt").to(self.model.device)
        hidden = self.model(**inputs).last_hidden_state
        weights = torch.relu(hidden @ self.sparse["weight"].T + self.sparse["bias"])[0, :, 0]
        unused = {self.tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>", "<pad>", "<unk>")}
        lexical: dict[int, float] = {}
        for weight, token in zip(weights.tolist(), inputs.input_ids[0].tolist(), strict=True):
            if token not in unused and weight > lexical.get(token, 0):
                lexical[token] = weight
        colbert = hidden[:, 1:] @ self.colbert["weight"].T + self.colbert["bias"]
        normalize = torch.nn.functional.normalize
        return Reference(
            normalize(hidden[0, 0], dim=-1).cpu().numpy(), lexical, normalize(colbert, dim=-1)[0].cpu().numpy()
        )

    def score(self, query: str, document: str) -> float:
        """`colbert_score`."""
        q, d = torch.tensor(self(query).colbert), torch.tensor(self(document).colbert)
        return float(torch.einsum("in,jn->ij", q, d).max(-1).values.sum() / len(q))


@pytest.fixture(scope="session")
def flag_m3(tiny: Callable[..., Path], device: torch.device) -> FlagM3:
    return FlagM3(tiny("bge-m3-heads"), device)


def lexical(vector: SparseVector) -> dict[int, float]:
    ids, weights = np.frombuffer(vector.ids, "<i4").tolist(), np.frombuffer(vector.weights, "<f4").tolist()
    assert len(set(ids)) == len(ids)
    return dict(zip(ids, weights, strict=True))


def colbert(result: EmbedResult) -> list[np.ndarray[Any, Any]]:
    return [np.frombuffer(own, "<f4").reshape(-1, result.colbert_dimensions) for own in result.colbert]


def close(result: EmbedResult, other: EmbedResult) -> bool:
    pairs = list(zip(colbert(result), colbert(other), strict=True))
    if result.vectors or other.vectors:
        pairs.append((vectors(result), vectors(other)))
    for mine, theirs in zip(result.sparse, other.sparse, strict=True):
        pairs.append((np.array(sorted(lexical(mine).items())), np.array(sorted(lexical(theirs).items()))))
    return all(one.shape == two.shape and np.abs(one - two).max(initial=0) < 1e-5 for one, two in pairs)


def test_dense_sparse_and_token_vectors_are_those_of_flagembedding(serve: Any, flag_m3: FlagM3) -> None:
    inputs = (*texts(20), "", "time time 北京 time", "word " * 900)
    result = run(serve("bge-m3-heads").embed(EmbedTask(model="m", inputs=inputs, outputs=ALL)))
    assert result.truncated == 1
    found = zip(inputs, vectors(result), result.sparse, colbert(result), strict=True)
    for text, dense, sparse, tokens in found:
        expected = flag_m3(text)
        assert np.abs(dense - expected.dense).max() < 1e-5
        assert tokens.shape == expected.colbert.shape
        assert np.abs(tokens - expected.colbert).max() < 1e-5
        weights = lexical(sparse)
        assert weights.keys() == expected.lexical.keys()
        assert all(abs(weights[token] - expected.lexical[token]) < 1e-5 for token in weights)
    assert any(lexical(sparse) for sparse in result.sparse)


def test_only_what_was_asked_for_is_in_the_answer(serve: Any) -> None:
    model = serve("bge-m3-heads")
    whole = run(model.embed(EmbedTask(model="m", inputs=("time person",), outputs=ALL)))
    for output in ALL:
        result = run(model.embed(EmbedTask(model="m", inputs=("time person",), outputs=(output,))))
        assert (len(result.vectors) > 0, len(result.sparse), len(result.colbert)) == (
            output == "dense",
            output == "sparse",
            output == "colbert",
        )
        expected = {"dense": {"sparse": (), "colbert": ()}, "sparse": {"vectors": b"", "colbert": ()},
                    "colbert": {"vectors": b"", "sparse": ()}}[output]  # fmt: skip
        assert replace(result, colbert_dimensions=64) == replace(whole, **expected)


def test_fewer_dimensions_are_of_the_dense_vector_alone(serve: Any) -> None:
    task = EmbedTask(model="m", inputs=("time person",), outputs=ALL, dimensions=8)
    result = run(serve("bge-m3-heads").embed(task))
    assert (len(result.vectors), result.dimensions, result.colbert_dimensions) == (4 * 8, 8, 64)


@pytest.mark.parametrize("step_tokens", [1, 70])
def test_how_texts_are_cut_into_steps_changes_nothing(step_tokens: int, serve: Any) -> None:
    task = EmbedTask(model="m", inputs=texts(20), outputs=ALL)
    whole = run(serve("bge-m3-heads", step_tokens=4096).embed(task))
    assert close(run(serve("bge-m3-heads", step_tokens=step_tokens).embed(task)), whole)


def test_callers_who_want_different_things_share_one_forward(
    runner_of: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_of("bge-m3-heads")
    dense, sparse, tokens = (runner.heads[name] for name in ALL)
    items = [Item(0, n, (0, *range(5, 5 + 3 * n), 2)) for n in range(6)]
    query = runner.encode([items[2]], [(tokens,)])[0][0]
    late = LateInteraction(tokens, query)
    heads = [(dense,), (late,), (dense, sparse, tokens), (sparse,), (late,), (tokens, dense)]
    alone = [runner.encode([item], [own])[0] for item, own in zip(items, heads, strict=True)]
    forwards: list[int] = []
    by_layer = Runner.by_layer
    monkeypatch.setattr(Runner, "by_layer", lambda *given, **named: (forwards.append(1), by_layer(*given, **named))[1])
    together = runner.encode(items, heads)
    assert len(forwards) == 1
    for mine, own, wanted in zip(together, alone, heads, strict=True):
        assert len(mine) == len(wanted)
        for one, two in zip(mine, own, strict=True):
            assert one.shape == two.shape
            assert (one - two).abs().max() < 1e-5


class CopiesBack(TorchDispatchMode):
    """Counts what is copied from a GPU to RAM, whether it is waited for or not."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        in_ram = isinstance(found, torch.Tensor) and not found.is_cuda or func in (ITEM, SCALAR)
        source = args[func is COPY] if len(args) > (func is COPY) else None
        self.count += in_ram and isinstance(source, torch.Tensor) and source.is_cuda
        return found


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda:0"], indirect=True)
def test_a_step_copies_back_once(runner_of: Callable[..., Runner]) -> None:
    runner = runner_of("bge-m3-heads")
    items = [Item(0, n, (0, 5, 6, 2)) for n in range(3)]
    dense, sparse, tokens = (runner.heads[name] for name in ALL)
    with CopiesBack() as copies:
        runner.encode(items, [(dense, sparse, tokens), (dense,), (sparse,)])
    assert copies.count == 1


def test_requests_for_different_outputs_at_once_get_what_each_gets_alone(serve: Any) -> None:
    model = serve("bge-m3-heads")
    asked: list[tuple[Any, ...]] = [("dense",), ("sparse", "colbert"), ("colbert",), ALL, ("dense",), ("sparse",)]
    tasks = [EmbedTask(model="m", inputs=texts(18)[3 * n : 3 * n + 3], outputs=own) for n, own in enumerate(asked)]

    async def ask() -> list[EmbedResult]:
        return await asyncio.gather(*(model.embed(task) for task in tasks))

    for task, together in zip(tasks, run(ask()), strict=True):
        alone = run(model.embed(task))
        assert close(together, alone)
        assert together.usage == alone.usage


def test_rerank_scores_are_flagembeddings_colbert_scores(serve: Any, flag_m3: FlagM3) -> None:
    documents = (*texts(12), "", "word " * 900)
    model = serve("bge-m3-heads", "rerank")
    result = run(model.rerank(RerankTask(model="m", query="time 世界 hand", documents=documents)))
    expected = [flag_m3.score("time 世界 hand", document) for document in documents]
    assert np.abs(np.array(result.logits) - expected).max() < 1e-5
    assert np.allclose(result.scores, (1 + np.array(result.logits)) / 2)
    assert result.truncated == 1


def test_a_query_with_more_tokens_than_a_vector_has_numbers_is_compared_whole(serve: Any, flag_m3: FlagM3) -> None:
    query, documents = "time person " * 60, texts(3)
    result = run(serve("bge-m3-heads", "rerank").rerank(RerankTask(model="m", query=query, documents=documents)))
    assert np.abs(np.array(result.logits) - [flag_m3.score(query, document) for document in documents]).max() < 1e-5


def test_rerankings_at_the_same_time_keep_to_their_own_query(serve: Any) -> None:
    model = serve("bge-m3-heads", "rerank", step_tokens=64)
    tasks = [RerankTask(model="m", query=query, documents=texts(8)) for query in texts(5, most=6)]

    async def ask() -> list[Any]:
        return await asyncio.gather(*(model.rerank(task) for task in tasks))

    for task, together in zip(tasks, run(ask()), strict=True):
        alone = run(model.rerank(task))
        assert np.abs(np.array(together.logits) - alone.logits).max() < 1e-5
        assert together.usage == alone.usage


def test_vectors_of_tokens_may_be_smaller_than_hidden_states(
    serve: Any, tiny: Callable[..., Path], device: torch.device
) -> None:
    folder = tiny("bge-m3-heads", colbert_dimensions=16)
    oracle = FlagM3(folder, device)
    model = serve.fresh(inspect_folder(folder))
    result = run(model.embed(EmbedTask(model="m", inputs=("time person year",), outputs=("colbert",))))
    assert result.colbert_dimensions == 16
    assert np.abs(colbert(result)[0] - oracle("time person year").colbert).max() < 1e-5
    model.close()


def test_embedding_and_late_interaction_share_one_folders_weights(serve: Any, tiny: Callable[..., Path]) -> None:
    folder = tiny("bge-m3-heads", num_hidden_layers=1)
    embedding = serve.fresh(inspect_folder(folder))
    reranker = serve.fresh(inspect_folder(folder, "rerank"), weights=0)
    assert reranker.info.memory["weights"] == 0
    embedding.close()
    assert run(reranker.rerank(RerankTask(model="m", query="a", documents=("b",)))).scores
    reranker.close()


def test_a_request_that_runs_out_of_memory_costs_the_others_nothing(
    serve: Any, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = serve.fresh(inspect_folder(tiny("bge-m3-heads")))
    start = Runner.start

    def guarded(self: Runner, items: Any, heads: Any, **how: Any) -> Any:
        if any(9 in item.tokens for item in items):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return start(self, items, heads, **how)

    monkeypatch.setattr(Runner, "start", guarded)

    async def together() -> list[Any]:
        tasks = [EmbedTask(model="m", inputs=((5, n, 6), (5, 6)), outputs=ALL) for n in (10, 9, 11)]
        return await asyncio.gather(*(model.embed(task) for task in tasks), return_exceptions=True)

    first, failed, last = run(together())
    assert isinstance(failed, OutOfMemory)
    assert [len(result.colbert) for result in (first, last)] == [2, 2]
    model.close()


def test_an_answer_too_large_for_one_message_is_refused_with_its_size(serve: Any) -> None:
    inputs = ((0, *range(5, 155)) * 3,) * 600  # 453 tokens of 64 dimensions each
    model = serve("bge-m3-heads")
    message = r"the colbert vectors of 600 inputs with 271,800 tokens are 66 MiB, and one answer has at most 63"
    with pytest.raises(InvalidRequest, match=message):
        run(model.embed(EmbedTask(model="m", inputs=inputs, outputs=("colbert",))))
    assert not model.running()


def test_the_largest_answer_fits_into_a_message() -> None:
    share = bytes(63 * MIB // 2048)
    vector = SparseVector(ids=share[: len(share) // 4], weights=share[: len(share) // 4])
    whole = EmbedResult(vectors=share[: len(share) // 2] * 1024, count=2048, dimensions=1, sparse=(vector,) * 2048,
                        colbert=(share[: len(share) // 4],) * 2048, usage=Usage())  # fmt: skip
    assert len(encode(Vectors(1, whole))) > 62 * MIB


def test_an_output_that_a_model_does_not_make_is_named(serve: Any) -> None:
    with pytest.raises(Unsupported, match="makes no sparse, colbert output; it makes dense"):
        run(serve("minilm").embed(EmbedTask(model="m", inputs=("a",), outputs=ALL)))


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_heads_are_counted_and_are_float32_in_every_precision(
    name: str, tiny: Callable[..., Path], device: torch.device
) -> None:
    folder = tiny("bge-m3-heads")
    facts, how = inspect_folder(folder), precision(name, device)
    runner = load_runner(facts, GIB, [how], device, lambda _: None)
    assert runner.weight_bytes == weight_bytes(read_stored(facts, Checkpoint(folder)), facts, how, device)
    (made,) = runner.encode([Item(0, 0, (0, 5, 6, 2))], [tuple(runner.heads[name] for name in ALL)])
    assert {rows.dtype for rows in made} == {torch.float32}
    assert torch.allclose(made[2].norm(dim=-1), torch.ones(3), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda head: {"weight": head["weight"]}, "sparse_linear.safetensors holds 'weight', not a weight and a bias"),
        (lambda head: head | {"weight": head["weight"][:, :32]}, r"has the shape \[1, 32\], .* asks for \[1, 64\]"),
        (lambda head: None, "sparse_linear.safetensors cannot be read"),
    ],
)
def test_a_damaged_head_is_named(
    change: Callable[[Any], Any], message: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny("bge-m3-heads"), tmp_path / "m3")
    facts, file = inspect_folder(folder), folder / "sparse_linear.safetensors"
    changed = change(load_file(file))
    file.unlink()
    if changed is not None:
        save_file({name: tensor.contiguous() for name, tensor in changed.items()}, file)
    cpu = torch.device("cpu")
    with pytest.raises(DamagedWeights, match=message):
        load_runner(facts, GIB, [precision("float32", cpu)], cpu, lambda _: None)
