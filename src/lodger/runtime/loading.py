"""From a folder to a `Runner` that has been tested, inside its budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from lodger.catalogue.facts import ModelFacts
from lodger.errors import OutOfMemory
from lodger.runtime import attention, families
from lodger.runtime.arena import for_weights
from lodger.runtime.backbone import Backbone, TransformersBackbone, place
from lodger.runtime.decoder import DenseDecoder, is_dense
from lodger.runtime.encoder import DenseEncoder, is_bert_like
from lodger.runtime.heap import exact_allocations
from lodger.runtime.int4_stored import StoredInt4Linear
from lodger.runtime.layers import Placement, PlainLinear, linear_bytes, stored_linear_bytes
from lodger.runtime.precision import Precision
from lodger.runtime.runner import Runner
from lodger.runtime.selftest import SelfTest
from lodger.runtime.stored_heads import LM_HEAD, StoredHead, make_heads, output_projection, read_heads
from lodger.runtime.weights import Checkpoint
from lodger.units import gib

Report = Callable[[float], None]  # is told 0..1


class Stored(NamedTuple):
    """A model and its heads with the tensors of the folder, in their stored dtype."""

    model: PreTrainedModel
    heads: dict[str, StoredHead]


@torch.inference_mode()
@exact_allocations()
def load_runner(
    facts: ModelFacts,
    weight_budget: int,
    precisions: Sequence[Precision],
    device: torch.device,
    progress: Report,
    answers: tuple[int, int] | None = None,
) -> Runner:
    """The model in the first of `precisions` that fits `weight_budget` bytes and passes the self-test.

    Args:
        answers: token ids of "yes" and "no", of a "yes-no" reranker.

    Raises:
        ModelProblem: the folder cannot be served; DamagedWeights names tensors.
        UnknownArchitecture: packed requests would influence each other.
        OutOfMemory: no precision fits; with both numbers.
    """
    checkpoint = Checkpoint(Path(facts.path), facts.int4)
    stored = read_stored(facts, checkpoint, answers)
    sizes = {precision: weight_bytes(stored, facts, precision, device) for precision in precisions}
    fitting = [precision for precision, size in sizes.items() if size <= weight_budget]
    if not fitting:
        raise _too_big(facts, min(sizes, key=sizes.__getitem__), min(sizes.values()), weight_budget)
    with ThreadPoolExecutor(1) as beside:  # a CPU computes what to expect while a GPU gets its weights
        testing = beside.submit(_expected, facts, stored.model)
        if device.type == "cpu":
            testing.result()
        for precision in fitting:
            arena = for_weights(device, sizes[precision])
            placement = Placement(device, precision, _reporter(stored, precision, progress), arena)
            runner = _assemble(facts, checkpoint, answers, placement)
            if testing.result().error(runner) <= precision.tolerance:
                return runner
    raise testing.result().refusal(runner)


@torch.inference_mode()
def _expected(facts: ModelFacts, model: PreTrainedModel) -> SelfTest:
    return SelfTest(facts, model)


def weight_bytes(stored: Stored, facts: ModelFacts, precision: Precision, device: torch.device) -> int:
    """Bytes of the weights on the device. An output projection that cannot use the embedding's table counts as well."""
    size = sum(_module_bytes(module, precision, device) for module in stored.model.modules())
    size += sum(head.placed_bytes for head in stored.heads.values())
    if facts.generates and not (facts.tied_embeddings and _one_table(precision)):
        size += linear_bytes(torch.Size((facts.vocab_size, facts.hidden_size)), device, precision.dense)
    return size


def _module_bytes(module: torch.nn.Module, precision: Precision, device: torch.device) -> int:
    """Of its own parameters: matrices are stored in the weights' dtype, vectors in that of the activations."""
    if isinstance(module, torch.nn.Linear | StoredInt4Linear):
        bias = 0 if module.bias is None else module.bias.numel() * precision.compute.itemsize
        return stored_linear_bytes(module.weight, device, precision) + bias
    own = module.parameters(recurse=False)
    return sum(p.numel() * (precision.weights if p.dim() == 2 else precision.compute).itemsize for p in own)


def _one_table(precision: Precision) -> bool:
    """Whether the output projection can multiply with the very table that tokens are looked up in."""
    return precision.weights == precision.compute


def read_stored(facts: ModelFacts, checkpoint: Checkpoint, answers: tuple[int, int] | None = None) -> Stored:
    """
    Raises:
        DamagedWeights, UnknownArchitecture.
    """
    model = families.build(facts)
    checkpoint.fill(model)
    if facts.generates:
        output_projection(facts, model, checkpoint)  # raises where it is missing
    return Stored(model, read_heads(facts, model, checkpoint, answers))


def _assemble(
    facts: ModelFacts, checkpoint: Checkpoint, answers: tuple[int, int] | None, placement: Placement
) -> Runner:
    model, stored_heads = read_stored(facts, checkpoint, answers)
    backbone, table = _backbone(facts, model, placement)
    lm_head = _lm_head(facts, checkpoint, table, placement) if facts.generates else None
    heads = {} if facts.generates else make_heads(facts, model, stored_heads, placement)
    device, precision = placement.device, placement.precision
    return Runner(
        facts, device, precision, attention.choose(device), backbone, placement.held, lm_head, heads, placement.arena
    )


def _backbone(facts: ModelFacts, model: PreTrainedModel, placement: Placement) -> tuple[Backbone, torch.nn.Module]:
    """The fast path or the generic one, and the table that tokens are looked up in; all of `model` is placed."""
    if facts.causal and is_dense(model):
        decoder = _decoder(placement.device)(model, placement)
        return decoder, decoder.embed
    base: Any = model.base_model
    if not facts.causal and is_bert_like(base):
        encoder = _encoder(placement.device)(base, placement)
        del base.embeddings, base.encoder
        place(model, placement)  # what is left: the pooler, the classifier
        return encoder, encoder.words
    place(model, placement)
    return TransformersBackbone(base, takes_token_types=not facts.causal), model.get_input_embeddings()


def _decoder(device: torch.device) -> type[DenseDecoder]:
    """The class of the fast path there. Our kernels, and so Triton, are imported only where they run."""
    if not attention.runs_kernels(device):
        return DenseDecoder
    from lodger.runtime.fused import FusedDecoder

    return FusedDecoder


def _encoder(device: torch.device) -> type[DenseEncoder]:
    """As `_decoder`, for encoders."""
    if not attention.runs_kernels(device):
        return DenseEncoder
    from lodger.runtime.fused_encoder import FusedEncoder

    return FusedEncoder


def _lm_head(
    facts: ModelFacts, checkpoint: Checkpoint, table: torch.nn.Module, placement: Placement
) -> torch.nn.Module:
    """Hidden states -> logits."""
    weight = table.weight if facts.tied_embeddings else checkpoint.tensors[LM_HEAD]
    assert isinstance(weight, torch.Tensor)
    if facts.tied_embeddings and _one_table(placement.precision):
        return PlainLinear(weight, None)
    return placement.dense([weight], [None])


def _reporter(stored: Stored, precision: Precision, progress: Report) -> Callable[[int], None]:
    """Bytes read, one tensor after the other, as a fraction of all."""
    total = sum(parameter.nbytes for parameter in stored.model.parameters())
    packed = (module.weight for module in stored.model.modules() if isinstance(module, StoredInt4Linear))
    total += sum(
        weight.nbytes if precision.int4 else weight.shape.numel() * precision.weights.itemsize for weight in packed
    )
    done = 0

    def read(size: int) -> None:
        nonlocal done
        done += size
        progress(min(done / total, 1.0))

    return read


def _too_big(facts: ModelFacts, precision: Precision, needed: int, granted: int) -> OutOfMemory:
    return OutOfMemory(
        f"the weights of {facts.name} need {gib(needed)} in {precision.name}, and {gib(granted)} were granted.",
        hint="Give this model more memory or choose a smaller one.",
    )
