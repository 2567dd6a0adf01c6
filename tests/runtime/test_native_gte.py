"""gte's published checkpoints compute what Alibaba-NLP's own code defines, and what transformers makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_requests import run, texts, vectors
from safetensors.torch import load_file, save_file
from torch.nn.functional import embedding, gelu, layer_norm, linear, normalize

from lodger.catalogue.inspect import inspect_folder
from lodger.errors import DamagedWeights
from lodger.runtime.loading import read_stored
from lodger.runtime.weights import Checkpoint
from lodger.tasks import EmbedTask, RerankTask

Tiny = Callable[..., Path]
pytest.importorskip("transformers.models.gte", reason="transformers has gte since 5.18")
INPUTS = (*texts(20), "", "word " * 900)


class NewReference:
    """NewModel of Alibaba-NLP/new-impl for one text, by its definition (arXiv 2407.19669): BERT with rotary positions
    and a gated feed-forward, norms after each sum."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.tensors = load_file(folder / "model.safetensors")

    def hidden(self, ids: Sequence[int]) -> torch.Tensor:
        """[T, hidden_size]"""
        table = self.tensors["new.embeddings.word_embeddings.weight"]
        x = embedding(torch.tensor(ids), table)
        if self.config["type_vocab_size"]:
            x = x + self.tensors["new.embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x, "embeddings.LayerNorm")
        for n in range(self.config["num_hidden_layers"]):
            at = f"encoder.layer.{n}."
            x = self._norm(x + self._attention(x, at + "attention."), at + "attn_ln")
            up, gate = self._linear(x, at + "mlp.up_gate_proj").chunk(2, dim=-1)
            x = self._norm(x + self._linear(gelu(gate) * up, at + "mlp.down_proj"), at + "mlp_ln")
        return x

    def logit(self, ids: Sequence[int]) -> float:
        pooled = self._linear(self.hidden(ids)[0], "pooler.dense").tanh()
        return float(linear(pooled, self.tensors["classifier.weight"], self.tensors["classifier.bias"]))

    def _attention(self, x: torch.Tensor, at: str) -> torch.Tensor:
        heads = self.config["num_attention_heads"]
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in self._linear(x, at + "qkv_proj").chunk(3, dim=-1))
        q, k = self._rotated(q), self._rotated(k)
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        return self._linear(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1), at + "o_proj")

    def _rotated(self, x: torch.Tensor) -> torch.Tensor:
        d, scaling = x.shape[-1], self.config["rope_scaling"]
        factor = scaling["factor"] if scaling else 1.0
        frequencies = (self.config["rope_theta"] * factor) ** -(torch.arange(0, d, 2) / d) / factor ** (2 / d)
        angles = (torch.arange(len(x))[:, None] * frequencies).repeat(1, 2)[:, None]
        half = torch.cat((-x[..., d // 2 :], x[..., : d // 2]), dim=-1)
        return x * angles.cos() + half * angles.sin()

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return linear(x, self.tensors[f"new.{name}.weight"], self.tensors.get(f"new.{name}.bias"))

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.tensors[f"new.{name}.weight"], self.tensors[f"new.{name}.bias"]
        return layer_norm(x, x.shape[-1:], weight, bias, self.config["layer_norm_eps"])


@pytest.fixture
def converted(tiny: Tiny, tmp_path: Path) -> Callable[[str], Path]:
    """The folder as transformers' community publishes it: the same weights, and a config.json for GteModel."""

    def convert(family: str) -> Path:
        folder = shutil.copytree(tiny(family), tmp_path / family)
        config = json.loads((folder / "config.json").read_text())
        kind = "GteForSequenceClassification" if family == "gte-reranker" else "GteModel"
        rope = {"rope_type": "linear", "rope_theta": 160_000.0, "factor": 8 ** (2 / 16)}
        for key in ("rope_scaling", "rope_theta", "auto_map"):
            del config[key]
        changed = config | {"model_type": "gte", "architectures": [kind], "rope_parameters": rope}
        (folder / "config.json").write_text(json.dumps(changed))
        return folder

    return convert


@pytest.mark.parametrize(
    "changes",
    [{}, {"rope_scaling": None, "rope_theta": 10000, "type_vocab_size": 0}],
    ids=["as published", "unscaled, without token types"],
)
def test_vectors_are_those_of_the_definition(changes: dict[str, Any], tiny: Tiny, serve: Any) -> None:
    folder = tiny("gte-multilingual", **changes)
    model = serve.fresh(inspect_folder(folder))
    found = vectors(run(model.embed(EmbedTask(model="m", inputs=INPUTS))))
    encoded = model._serving.tokenizer.encode_batch(INPUTS, max_length=512)
    reference = NewReference(folder)
    expected = [normalize(reference.hidden(text.tokens)[0], dim=-1).numpy() for text in encoded]
    assert np.abs(found - np.stack(expected)).max() < 1e-5
    model.close()


def test_scores_are_those_of_the_definition(tiny: Tiny, serve: Any) -> None:
    model = serve("gte-reranker")
    result = run(model.rerank(RerankTask(model="m", query="time 世界", documents=INPUTS)))
    pairs = model._serving.tokenizer.encode_pairs("time 世界", INPUTS, max_length=512)
    reference = NewReference(tiny("gte-reranker"))
    assert np.abs(np.array(result.logits) - [reference.logit(pair.tokens) for pair in pairs]).max() < 1e-5


def test_transformers_reads_the_same_model_from_the_converted_folder(converted: Any, tiny: Tiny, serve: Any) -> None:
    from transformers import AutoModel

    folder = converted("gte-multilingual")
    oracle = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected = oracle(ids)[0][0]
    assert (NewReference(tiny("gte-multilingual")).hidden(ids[0].tolist()) - expected).abs().max() < 2e-5
    published, ours = serve("gte-multilingual"), serve.fresh(inspect_folder(folder))
    both = [vectors(run(model.embed(EmbedTask(model="m", inputs=INPUTS)))) for model in (published, ours)]
    assert np.abs(both[0] - both[1]).max() < 1e-6
    ours.close()


def test_a_converted_reranker_gives_the_same_scores(converted: Any, serve: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = converted("gte-reranker")
    oracle = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    ours = serve.fresh(inspect_folder(folder))
    task = RerankTask(model="m", query="eye", documents=INPUTS)
    logits = np.array(run(ours.rerank(task)).logits)
    assert np.abs(logits - run(serve("gte-reranker").rerank(task)).logits).max() < 1e-6
    pairs = ours._serving.tokenizer.encode_pairs("eye", INPUTS, max_length=512)
    with torch.inference_mode():
        expected = [float(oracle(torch.tensor([pair.tokens])).logits) for pair in pairs]
    assert np.abs(logits - expected).max() < 1e-5
    ours.close()


def test_fused_tensors_are_cut_without_a_copy(tiny: Tiny) -> None:
    facts = inspect_folder(tiny("gte-multilingual"))
    checkpoint = Checkpoint(Path(facts.path))
    layer: Any = read_stored(facts, checkpoint).model.layers[1]  # type: ignore[index]
    whole = checkpoint.tensors["new.encoder.layer.1.attention.qkv_proj.weight"]
    for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
        assert part.weight.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


@pytest.mark.parametrize("shape", [(190, 64), (64,), ()], ids=str)
def test_a_fused_tensor_of_another_shape_is_damaged(shape: tuple[int, ...], tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("gte-multilingual"), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        tensors | {"new.encoder.layer.0.attention.qkv_proj.weight": torch.zeros(shape)}, folder / "model.safetensors"
    )
    facts = inspect_folder(folder)
    with pytest.raises(DamagedWeights, match=r"layers\.0\.self_attn\.[qkv]_proj\.weight"):
        read_stored(facts, Checkpoint(folder))
