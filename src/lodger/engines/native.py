"""`NativeEngine`: Lodger's own runtime behind the contract of engines. All models of a worker share one device loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import psutil
import torch

from lodger.budget import SMALL_CAPTURED
from lodger.catalogue.facts import ModelFacts, RerankMethod, TokenHead
from lodger.engines.base import LoadedInfo, LoadRequest
from lodger.engines.native_embed import EmbeddingModel
from lodger.engines.native_encode import EncodingModel
from lodger.engines.native_generate import GenerateModel
from lodger.engines.native_model import ServedModel, Serving, out_of_memory
from lodger.engines.native_rerank import BiEncoder, CrossEncoder, MultiVector, YesNo
from lodger.engines.native_weights import Weights
from lodger.errors import ModelProblem
from lodger.runtime import compiler, kv
from lodger.runtime.allocator import Grant, allowance, capture_pool, make_workspace, trim
from lodger.runtime.device_loop import DeviceLoop
from lodger.runtime.dtype import precisions
from lodger.runtime.loading import load_runner
from lodger.runtime.partition import partition
from lodger.runtime.virtual_memory import virtual_memory
from lodger.text.grammar import GrammarThreads
from lodger.text.tokenizer import Tokenizer
from lodger.units import gib

_TOKENIZER_THREADS = 2
Result = TypeVar("Result")
_ENCODERS: dict[RerankMethod | None, type[EncodingModel]] = {
    None: EmbeddingModel,
    "cross-encoder": CrossEncoder,
    "bi-encoder": BiEncoder,
    "multi-vector": MultiVector,
    "yes-no": YesNo,
}


class _Key(NamedTuple):
    """What makes two models use the same weights."""

    path: str
    architecture: str
    dtype: str | None  # as asked for
    quantization: str | None
    output_rows: int  # of the output projection
    token_heads: tuple[TokenHead, ...]


class NativeEngine:
    """Models of one folder share its weights, so an embedding model can be the reranker too without a second copy.

    `load` is called by one thread at a time.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._loop = DeviceLoop(device)
        self._pool = ThreadPoolExecutor(_TOKENIZER_THREADS, thread_name_prefix="tokenizer")
        self._grammars = GrammarThreads()
        if self._device.type == "cuda":
            self._loop.post(partial(_own_products, self._device))
            compiler.begin(self._device)
        self._weights: dict[_Key, Weights] = {}
        self._users: dict[str, _Key] = {}  # uid -> whose weights it uses
        self._allowance = allowance(self._device) if self._device.type == "cuda" else None

    def load(self, request: LoadRequest, progress: Callable[[float], None]) -> ServedModel:
        """
        Raises:
            ModelProblem: the folder cannot be served; its subclasses say why.
            OutOfMemory: the weights or the KV cache do not fit into what was granted, or the device has no more.
        """
        meanwhile = f"{request.facts.name} was loaded into {gib(request.budget.total)}"
        try:
            with out_of_memory(meanwhile), self._granted(request):
                model = _in_own_thread(partial(self._load, request, progress))
        except BaseException:
            self._release(request.spec.uid)
            raise
        self._reserve()
        return model

    def used(self) -> int:
        """Bytes this process holds on its device.

        Raises:
            InternalError: the device's thread has ended, so nothing is served any more.
        """
        self._loop.check()
        if self._device.type == "cpu":
            return int(psutil.Process().memory_info().rss)
        memory = virtual_memory(self._device)
        return torch.cuda.memory_reserved(self._device) + (memory.mapped if memory else 0)

    def close(self) -> None:
        self._loop.close()
        self._pool.shutdown()
        self._grammars.close()

    def _load(self, request: LoadRequest, progress: Callable[[float], None]) -> ServedModel:
        start = time.monotonic()
        facts, budget, uid = request.facts, request.budget, request.spec.uid
        tokenizer = Tokenizer.load(facts.path, lowercase=facts.lowercase)
        asked = request.dtype, request.spec.quantization
        key = _Key(facts.path, facts.architecture, *asked, facts.output_rows, facts.token_heads)
        if key not in self._weights:
            candidates = precisions(facts, request.dtype, self._device, request.spec.quantization)
            answers = _answers(facts, tokenizer)
            read = partial(load_runner, facts, budget.weights, device=self._device, answers=answers)
            runner = read(precisions=candidates, progress=progress)
            again = partial(read, precisions=[runner.precision], progress=_quietly)
            self._weights[key] = Weights(runner, partial(_in_own_thread, again))
        self._users[uid] = key
        weights = self._weights[key]
        runner = weights.wake(uid)
        limit = min(budget.context_length or facts.context_length, facts.context_length)
        memory = weights.held(uid)
        cache = None
        if facts.generates:
            cache = kv.allocate(facts, budget, runner.precision.compute, self._device)
            limit = min(limit, cache.blocks * cache.block_size)
            memory["kv_cache"] = cache.nbytes
        if budget.graphs:
            capture_pool(self._device).grow(budget.graphs - SMALL_CAPTURED)
        progress(1.0)
        info = LoadedInfo(
            dtype=runner.precision.name, context_length=limit, memory=memory, load_seconds=time.monotonic() - start
        )
        serving = Serving(
            uid,
            facts,
            info,
            tokenizer,
            self._loop,
            self._pool,
            self._grammars,
            weights,
            partial(self._asleep, uid),
            partial(self._waking, uid),
            partial(self._release, uid),
        )
        if cache is not None:
            return GenerateModel(serving, runner, cache, budget)
        beside = partition(self._device) if budget.beside else None
        if beside is not None:
            beside.pool.grow(budget.beside - SMALL_CAPTURED)
        return _ENCODERS[facts.rerank_method](serving, runner, budget.step_tokens, beside)

    @contextmanager
    def _granted(self, request: LoadRequest) -> Iterator[None]:
        """While a model loads and from then on torch's allocator may hold what it was granted, on a GPU. Weights and KV
        cache are not in there where their memory is mapped by us."""
        if self._allowance is None:
            yield
            return
        budget = request.budget
        kept = (budget.captured if virtual_memory(self._device) else budget.kept) + budget.made_beside
        pieces = budget.sequences if request.facts.generates else 1
        step = budget.activations - budget.resumed
        grant = Grant(kept, step, budget.unfinished, pieces, budget.graphs, budget.beside, budget.gaps)
        self._allowance.grant((id(self), request.spec.uid), grant)
        with self._allowance.loading():
            yield

    def _asleep(self, uid: str) -> None:
        """A model has gone to sleep."""
        if self._allowance is not None:
            self._allowance.turn((id(self), uid), asleep=True)
            self._reserve()

    @contextmanager
    def _waking(self, uid: str) -> Iterator[None]:
        """While a model wakes it may hold what one that loads may: where RAM has no copy of its weights the folder is
        read again, and where they moved steps are captured again."""
        if self._allowance is None:
            yield
            return
        self._allowance.turn((id(self), uid), asleep=False)
        try:
            with self._allowance.loading():
                yield
        except BaseException:
            self._allowance.turn((id(self), uid), asleep=True)
            raise
        finally:
            self._reserve()

    def _reserve(self) -> None:
        if self._allowance is not None:
            self._loop.post(self._allowance.reserve)

    def _release(self, uid: str) -> None:
        """Forget a model; the last one that uses some weights takes them along."""
        if self._allowance is not None:
            self._allowance.revoke((id(self), uid))
        key = self._users.pop(uid, None)
        if key is not None and self._weights[key].leave(uid):
            del self._weights[key]
        trim()
        self._reserve()


def _own_products(device: torch.device) -> None:
    """The device's thread gets its handle of cuBLAS first. Each thread that multiplies has one, with a workspace for
    each stream; those of threads that ended go to the next ones, so that no more than two are ever made."""
    with torch.cuda.device(device):
        make_workspace()


def _in_own_thread(load: Callable[[], Result]) -> Result:
    """In a thread that ends with it, and with the thread its OpenMP helpers: while more of them exist than there are
    cores, libgomp lets all threads sleep between products, and waking them costs more than a product."""
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as thread:
        return thread.submit(load).result()


def _quietly(fraction: float) -> None:
    """Nobody watches how far it is."""


def _answers(facts: ModelFacts, tokenizer: Tokenizer) -> tuple[int, int] | None:
    """Token ids of "yes" and "no", for rerankers that answer so.

    Raises:
        ModelProblem: it is not known what to ask, or the answers are not one token each.
    """
    if facts.rerank_method != "yes-no":
        return None
    if facts.rerank_template is None:
        raise ModelProblem(f"{facts.name} answers yes or no, and it is not known how to ask it about a document.")
    words = facts.rerank_template.yes, facts.rerank_template.no
    yes, no = map(tokenizer.id_of, words)
    if yes is None or no is None or max(yes, no) >= facts.vocab_size:
        raise ModelProblem(f"{facts.name} cannot answer {' or '.join(words)}: they are not one token each.")
    return yes, no
