"""What a chat model of the native engine promises, with transformers' generate as the oracle."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import torch
from msgspec.structs import replace

from lodger.catalogue.inspect import inspect_folder
from lodger.errors import Cancelled, ContextExceeded, EmptyInput, InvalidRequest, Unsupported, WrongKind
from lodger.tasks import (
    ChatTask,
    CompletionTask,
    Delta,
    EmbedTask,
    RerankTask,
    SamplingParams,
    StopRules,
    Usage,
)

Result = TypeVar("Result")
GREEDY = SamplingParams(temperature=0, repetition_penalty=1.0)
PROMPTS = [
    tuple((7 * n + 3 * k) % 290 + 5 for k in range(length)) for n, length in enumerate((3, 40, 17, 61, 5, 33, 90, 2))
]


def task(prompt: tuple[int, ...] | str, most: int | None = 24, sampling: SamplingParams = GREEDY, **more: Any) -> Any:
    stopping = StopRules(max_tokens=most, ignore_eos=more.pop("ignore_eos", True), stop=more.pop("stop", ()))
    return CompletionTask(model="m", prompt=prompt, sampling=sampling, stopping=stopping, **more)


async def collect(deltas: AsyncIterator[Delta]) -> list[Delta]:
    return [delta async for delta in deltas]


def counts(deltas: list[Delta]) -> list[tuple[int, int]]:
    """Tokens of prompt and answer; how much of the prompt was in the cache depends on the tests before."""
    return [(delta.usage.prompt_tokens, delta.usage.completion_tokens) for delta in deltas if delta.usage]


def text(deltas: list[Delta], index: int = 0) -> str:
    return "".join(delta.text for delta in deltas if delta.index == index)


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def answers(model: Any, tasks: list[Any]) -> list[str]:
    """All at once."""

    async def ask() -> list[list[Delta]]:
        return await asyncio.gather(*(collect(model.generate(one)) for one in tasks))

    return [text(deltas) for deltas in run(ask())]


def greedy_by_transformers(oracle: Any, model: Any, prompt: tuple[int, ...], most: int) -> str:
    ids = torch.tensor([prompt], device=oracle.device)
    settings = {"do_sample": False, "repetition_penalty": 1.0, "temperature": None, "top_p": None, "top_k": None}
    out = oracle.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, min_new_tokens=most, eos_token_id=None,
        pad_token_id=0, **settings,
    )  # fmt: skip
    return cast(str, model._serving.tokenizer.decode(out[0, len(prompt) :].tolist()))


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_greedy_text_is_transformers_alone_and_in_company(
    family: str, serve: Callable[..., Any], oracle_of: Callable[[str], Any]
) -> None:
    model, oracle = serve(family), oracle_of(family)
    expected = [greedy_by_transformers(oracle, model, prompt, 24) for prompt in PROMPTS]
    assert answers(model, [task(PROMPTS[1])]) == expected[1:2]
    assert answers(model, [task(prompt) for prompt in PROMPTS]) == expected


def test_small_steps_give_the_same_text_as_large_ones(serve: Callable[..., Any]) -> None:
    tasks = [task(prompt) for prompt in PROMPTS]
    assert answers(serve("qwen3", step_tokens=7), tasks) == answers(serve("qwen3"), tasks)


def test_preempted_chats_give_the_same_text_as_undisturbed_ones(serve: Callable[..., Any]) -> None:
    tight = serve("qwen3", blocks=11)  # 176 tokens for eight chats that grow to 443
    seen = preemptions_of(tight)
    tasks = [task(prompt) for prompt in PROMPTS]
    assert answers(tight, tasks) == answers(serve("qwen3"), tasks)
    assert seen(), "nothing was preempted: the cache is not tight"


def preemptions_of(model: Any) -> Callable[[], int]:
    """Counts sequences that are put back while they run. More are let in than can stay: it learns no lengths."""
    scheduler = model._lane._scheduler
    scheduler.finish = scheduler.cancel
    queue, total = scheduler._queue, [0]

    def counting(sequence: Any) -> None:
        total[0] += bool(sequence.preemptions)
        queue(sequence)

    scheduler._queue = counting
    return lambda: total[0]


def test_a_repeated_prompt_takes_its_beginning_from_the_cache_and_says_the_same(
    serve: Callable[..., Any], tiny: Callable[..., Path]
) -> None:
    model = serve.fresh(inspect_folder(tiny("llama")))
    generations: list[Any] = []
    add = model._lane.add
    model._lane.add = lambda generation: (generations.append(generation), add(generation))
    cold, warm = answers(model, [task(PROMPTS[6])]), answers(model, [task(PROMPTS[6])])
    assert warm == cold
    assert [g.sequence.cached_tokens for g in generations] == [0, 80]
    assert run(collect(model.generate(task(PROMPTS[6]))))[-1].usage == Usage(len(PROMPTS[6]), 24, cached_tokens=80)
    model.close()


def test_seeded_text_does_not_depend_on_the_company(serve: Callable[..., Any]) -> None:
    model = serve("qwen2")
    seeded = task(PROMPTS[2], sampling=SamplingParams(temperature=1.2, top_p=0.9, seed=11))
    alone = answers(model, [seeded])
    others = [task(prompt, sampling=SamplingParams(temperature=1.0)) for prompt in PROMPTS]
    assert answers(model, [*others, seeded])[-1:] == alone
    assert answers(model, [task(PROMPTS[2], sampling=SamplingParams(temperature=1.2, top_p=0.9, seed=12))]) != alone


def test_choices_of_one_request_differ_and_are_counted_together(serve: Callable[..., Any]) -> None:
    hot = SamplingParams(temperature=1.5, seed=1)
    deltas = run(collect(serve("qwen3").generate(task(PROMPTS[2], sampling=hot, n=3))))
    assert len({text(deltas, index) for index in range(3)}) == 3
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["length"] * 3
    assert counts(deltas) == [(len(PROMPTS[2]), 3 * 24)]
    assert deltas[-1].usage is not None


def test_usage_is_each_requests_own(serve: Callable[..., Any]) -> None:
    async def ask() -> list[list[Delta]]:
        model = serve("llama")
        return await asyncio.gather(*(collect(model.generate(task(p, n + 1))) for n, p in enumerate(PROMPTS)))

    assert [counts(d) for d in run(ask())] == [[(len(p), n + 1)] for n, p in enumerate(PROMPTS)]


def test_tokens_come_one_step_at_a_time(serve: Callable[..., Any]) -> None:
    deltas = run(collect(serve("llama").generate(task(PROMPTS[0], 24))))
    assert len([delta for delta in deltas if delta.text]) > 12  # a few tokens are parts of one character


def test_a_stop_string_ends_the_text_before_it(serve: Callable[..., Any]) -> None:
    model = serve("llama")
    whole = answers(model, [task(PROMPTS[3], 40)])[0]
    stop = whole[20:23]
    deltas = run(collect(model.generate(task(PROMPTS[3], 40, stop=(stop, "never")))))
    assert text(deltas) == whole[: whole.index(stop)]
    assert (deltas[-1].finish_reason, deltas[-1].stopped_by) == ("stop", stop)
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens < 40


def test_the_end_of_text_ends_the_answer_and_is_not_part_of_it(
    serve: Callable[..., Any], tiny: Callable[..., Path]
) -> None:
    facts = inspect_folder(tiny("qwen3"))
    model = serve.fresh(replace(facts, eos_token_ids=tuple(range(facts.vocab_size))))
    deltas = run(collect(model.generate(task(PROMPTS[1], 12, ignore_eos=False))))
    assert (text(deltas), deltas[-1].finish_reason, counts(deltas)) == ("", "stop", [(len(PROMPTS[1]), 1)])
    deltas = run(collect(model.generate(task(PROMPTS[1], 12, ignore_eos=True))))
    assert (deltas[-1].finish_reason, counts(deltas)) == ("length", [(len(PROMPTS[1]), 12)])
    model.close()


def test_without_max_tokens_an_answer_goes_on_to_the_end_of_the_context(serve: Callable[..., Any]) -> None:
    model = serve("qwen2", context_length=64)
    deltas = run(collect(model.generate(task(PROMPTS[1], None))))
    assert (deltas[-1].finish_reason, counts(deltas)) == ("length", [(40, 24)])
    deltas = run(collect(model.generate(task(PROMPTS[1], 1000))))
    assert counts(deltas) == [(40, 24)]


def test_the_chat_template_and_its_tokens_are_the_models_own(
    serve: Callable[..., Any], oracle_of: Callable[[str], Any], tiny: Callable[..., Path]
) -> None:
    from transformers import AutoTokenizer

    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "请用中文介绍一下你自己"})
    model = serve("qwen3")
    theirs = AutoTokenizer.from_pretrained(tiny("qwen3"))
    prompt = tuple(theirs.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False))
    stopping = StopRules(max_tokens=16, ignore_eos=True)
    deltas = run(collect(model.generate(ChatTask(model="m", messages=messages, sampling=GREEDY, stopping=stopping))))
    assert text(deltas) == greedy_by_transformers(oracle_of("qwen3"), model, prompt, 16)
    assert counts(deltas) == [(len(prompt), 16)]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (task((5,) * 512), ContextExceeded, "prompt is too long: 512 tokens, .* maximum context length of .* is 512,"),
        (task("word " * 9000), ContextExceeded, "prompt is too long: more than 2,048 tokens, .* is 512,"),
        (task(()), EmptyInput, "the prompt is empty"),
        (task((5, 99999)), InvalidRequest, "token id 99999 is not in the vocabulary"),
        (task((5,), 0), InvalidRequest, "max_tokens is 0"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_numbers(
    wrong: Any, error: type[Exception], message: str, serve: Callable[..., Any]
) -> None:
    model = serve("qwen3")
    with pytest.raises(error, match=message):
        run(collect(model.generate(wrong)))
    assert model.running() == 0


def test_a_model_without_a_template_says_where_to_go(
    serve: Callable[..., Any], tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "plain")
    (folder / "tokenizer_config.json").write_text("{}")
    model = serve.fresh(inspect_folder(folder))
    with pytest.raises(Unsupported, match="has no chat template. *") as caught:
        run(collect(model.generate(ChatTask(model="m", messages=({"role": "user", "content": "hi"},)))))
    assert "/v1/completions" in caught.value.text
    model.close()


def test_a_chat_model_refuses_the_other_kinds(serve: Callable[..., Any]) -> None:
    model = serve("qwen3")
    with pytest.raises(WrongKind, match="is a model for chat, not for embeddings"):
        run(model.embed(EmbedTask(model="m", inputs=("a",))))
    with pytest.raises(WrongKind, match="is a model for chat, not for rerank"):
        run(model.rerank(RerankTask(model="m", query="a", documents=("b",))))


def test_whoever_goes_away_leaves_the_model_at_the_next_step(serve: Callable[..., Any]) -> None:
    model = serve("llama")

    async def leave() -> None:
        async with aclosing(cast(Any, model.generate(task(PROMPTS[0], 400, n=2)))) as deltas:
            async for _ in deltas:
                break
        await asyncio.to_thread(model._serving.loop.wait)
        assert model.running() == 0
        assert model._lane._scheduler.running == model._lane._scheduler.waiting == 0

    run(leave())


def test_unloading_ends_running_requests_with_cancelled(serve: Callable[..., Any], tiny: Callable[..., Path]) -> None:
    model = serve.fresh(inspect_folder(tiny("qwen2")))

    async def ask() -> None:
        deltas = model.generate(task(PROMPTS[0], 400))
        await anext(deltas)
        await asyncio.to_thread(model.close)
        with pytest.raises(Cancelled, match="unloaded"):
            await collect(deltas)

    run(ask())
