"""What is told with an answer and asked of its tokens: log probabilities, biases, ends, its prompt, its thought."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from test_native_chat import GREEDY, PROMPTS, answers, collect, counts, run, task, text

from lodger.catalogue.inspect import inspect_folder
from lodger.errors import InvalidRequest, Unsupported
from lodger.tasks import ChatTask, Constraint, Delta, SamplingParams, StopRules, TokenLogprobs

HOT = SamplingParams(temperature=1.3, top_k=40, seed=5, frequency_penalty=0.5)


def told(deltas: list[Delta]) -> list[TokenLogprobs]:
    return [one for delta in deltas for one in delta.logprobs]


def by_transformers(oracle: Any, prompt: tuple[int, ...], tokens: list[int]) -> torch.Tensor:
    """[tokens, vocab_size]: log probabilities of the places at which these tokens stand."""
    with torch.inference_mode():
        logits = oracle(torch.tensor([[*prompt, *tokens]], device=oracle.device)).logits[0]
    found: torch.Tensor = logits.float().log_softmax(-1)[len(prompt) - 1 : -1].cpu()
    return found


@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "drawn"])
def test_log_probabilities_are_those_of_the_models_own_logits(
    sampling: SamplingParams, serve: Callable[..., Any], oracle_of: Callable[[str], Any]
) -> None:
    """Whatever penalties, temperature, biases and forms make of them; alone and beside those who ask for others."""
    model, oracle = serve("qwen3"), oracle_of("qwen3")
    biased = replace(sampling, logit_bias={7: 3.0, 11: -100.0})
    bound = Constraint(kind="regex", text="[a-f ]{30}")
    asked = [
        task(PROMPTS[1], sampling=sampling, logprobs=3),
        task(PROMPTS[2], sampling=sampling),
        task(PROMPTS[3], sampling=biased, logprobs=0),
        task(PROMPTS[4], sampling=biased, logprobs=20, constraint=bound),
    ]

    async def ask() -> list[list[Delta]]:
        return await asyncio.gather(*(collect(model.generate(one)) for one in asked))

    found = run(ask())
    assert answers(model, [asked[1], task(PROMPTS[1], sampling=sampling)]) == [text(found[1]), text(found[0])]
    assert told(found[1]) == []
    for n, most in ((0, 3), (2, 0), (3, 20)):
        own = told(found[n])
        ids = [one.chosen.id for one in own]
        assert len(ids) == counts(found[n])[0][1]
        expected = by_transformers(oracle, asked[n].prompt, ids)
        for place, one in enumerate(own):
            assert one.chosen.logprob == pytest.approx(float(expected[place, one.chosen.id]), abs=2e-4)
            best = expected[place].topk(20)
            assert [likely.logprob for likely in one.top] == pytest.approx(best.values[:most].tolist(), abs=2e-4)
            assert {likely.id for likely in one.top} <= set(best.indices.tolist())


def test_log_probabilities_come_with_the_text_of_their_tokens(serve: Callable[..., Any]) -> None:
    """Half characters and what may become a stop string are held back, and so is what is told of them."""
    model = serve("llama")
    whole = answers(model, [task(PROMPTS[3], 40)])[0]
    for stop in ((), (whole[20:23],), (whole[9:11] + "never",)):
        deltas = run(collect(model.generate(task(PROMPTS[3], 40, logprobs=1, stop=stop))))
        shown, spelt = "", b""
        for delta in deltas:
            shown += delta.text
            spelt += b"".join(one.chosen.text for one in delta.logprobs)
            assert len(spelt.decode(errors="ignore")) >= len(shown.replace("\ufffd", "")), "text without its tokens"
            assert not delta.logprobs or delta.text or delta.finish_reason
        assert spelt.decode(errors="replace").startswith(shown)
        beyond = spelt[len(shown.encode()) :]
        assert not stop or len(beyond) < 12, "what was cut off is not told"
        assert len(told(deltas)) <= counts(deltas)[0][1]


def test_a_bias_bans_prefers_and_is_refused_for_what_is_no_token(serve: Callable[..., Any]) -> None:
    model = serve("qwen2")
    [first] = told(run(collect(model.generate(task(PROMPTS[1], 1, logprobs=1)))))
    banned = replace(GREEDY, logit_bias={first.chosen.id: -100.0})
    for sampling in (banned, replace(HOT, logit_bias={first.chosen.id: -100})):
        tokens = told(run(collect(model.generate(task(PROMPTS[1], 40, sampling, logprobs=0)))))
        assert first.chosen.id not in [one.chosen.id for one in tokens]
    preferred = replace(HOT, logit_bias={77: 100.0})
    tokens = told(run(collect(model.generate(task(PROMPTS[1], 10, preferred, logprobs=0)))))
    assert [one.chosen.id for one in tokens] == [77] * 10
    for wrong in (99999, -1):
        with pytest.raises(InvalidRequest, match="is not in the vocabulary") as caught:
            run(collect(model.generate(task(PROMPTS[1], 1, replace(GREEDY, logit_bias={wrong: 1.0})))))
        assert caught.value.param == "logit_bias"


def test_stop_tokens_end_an_answer_and_are_not_part_of_it(serve: Callable[..., Any]) -> None:
    model = serve("llama")
    tokens = [one.chosen.id for one in told(run(collect(model.generate(task(PROMPTS[1], 20, logprobs=0)))))]
    ending = next(token for place, token in enumerate(tokens) if place > 4 and token not in tokens[:place])
    place = tokens.index(ending)
    asked = task(PROMPTS[1], 20)
    asked = replace(asked, stopping=replace(asked.stopping, stop_token_ids=(ending, 3)))
    deltas = run(collect(model.generate(asked)))
    assert text(deltas) == model._serving.tokenizer.decode(tokens[:place])
    assert (deltas[-1].finish_reason, counts(deltas)) == ("stop", [(40, place + 1)])
    with pytest.raises(InvalidRequest, match="is not in the vocabulary"):
        run(collect(model.generate(replace(asked, stopping=StopRules(stop_token_ids=(10**6,))))))


def test_an_echo_is_the_prompt_and_then_the_answer(serve: Callable[..., Any]) -> None:
    model = serve("qwen3")
    for prompt in ("Numbers: 0 1 2", PROMPTS[1]):
        plain = task(prompt, 8)
        before = prompt if isinstance(prompt, str) else model._serving.tokenizer.decode(prompt)
        deltas = run(collect(model.generate(replace(plain, echo=True, n=2))))
        assert [text(deltas, n) for n in range(2)] == [before + answers(model, [plain])[0]] * 2
        assert counts(deltas)[0][1] == 16
    with pytest.raises(Unsupported, match="echo and logprobs"):
        run(collect(model.generate(task("a", echo=True, logprobs=1))))
    with pytest.raises(InvalidRequest, match="21 alternatives .* 0 to 20"):
        run(collect(model.generate(task("a", logprobs=21))))


def test_a_seed_gives_each_choice_its_own_text_again(serve: Callable[..., Any]) -> None:
    model = serve("qwen3")
    asked = task(PROMPTS[1], 16, SamplingParams(temperature=1.5, seed=9), n=3)
    first, again = (run(collect(model.generate(asked))) for _ in "ab")
    texts = [text(first, index) for index in range(3)]
    assert texts == [text(again, index) for index in range(3)]
    assert len(set(texts)) == 3


def test_how_much_of_a_prompt_was_known_is_told(serve: Callable[..., Any], tiny: Callable[..., Path]) -> None:
    model = serve.fresh(inspect_folder(tiny("llama")))
    usages = [run(collect(model.generate(task(PROMPTS[6], 4))))[-1].usage for _ in "ab"]
    assert [usage.cached_tokens for usage in usages if usage] == [0, 80]
    model.close()


class Scripted:
    """Grammars that hold every answer to the same words, whatever is asked."""

    def __init__(self, grammars: Any, words: str) -> None:
        self._grammars = grammars
        self._form = Constraint(kind="lark", text=f"start: {json.dumps(words, ensure_ascii=False)}")

    async def guides(self, constraint: Any, count: int) -> Any:
        return await self._grammars.guides(self._form, count)


@pytest.fixture
def saying(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Delta]]:
    """What comes of an answer in these words."""
    model = serve("qwen3")
    whole = model._grammars

    def say(words: str, **more: Any) -> list[Delta]:
        monkeypatch.setattr(model, "_grammars", Scripted(whole, words))
        more.setdefault("constraint", Constraint(kind="regex", text="any"))
        asked = ChatTask(
            model="m",
            messages=({"role": "user", "content": "x"},),
            sampling=GREEDY,
            stopping=more.pop("stopping", StopRules(max_tokens=250)),
            **more,
        )
        return run(collect(model.generate(asked)))

    return say


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def test_a_thought_is_told_apart_and_counted(saying: Callable[..., list[Delta]]) -> None:
    deltas = saying("<think>\nIs it so?\n</think>\n\nIt is.", logprobs=0)
    assert "".join(delta.reasoning for delta in deltas) == "Is it so?"
    assert text(deltas) == "It is."
    usage = deltas[-1].usage
    assert usage is not None
    assert 3 <= usage.reasoning_tokens < usage.completion_tokens
    assert b"".join(one.chosen.text for one in told(deltas)).decode() == "<think>\nIs it so?\n</think>\n\nIt is."
    together = saying("<think>\nIs it so?\n</think>\n\nIt is.", separate_reasoning=False)
    assert text(together) == "<think>\nIs it so?\n</think>\n\nIt is."
    assert together[-1].usage == replace(usage, reasoning_tokens=0, cached_tokens=together[-1].usage.cached_tokens)


def test_calls_are_told_and_end_the_answer_as_such(saying: Callable[..., list[Delta]]) -> None:
    deltas = saying("Let me see. " + CALL, tools=(TOOL,))
    [call] = [call for delta in deltas for call in delta.calls]
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Paris"})
    assert text(deltas).strip() == "Let me see."
    assert deltas[-1].finish_reason == "tool_calls"
    assert saying("Let me see.", tools=(TOOL,))[-1].finish_reason == "stop"
    stopped = saying(CALL + "\nDone now", tools=(TOOL,), stopping=StopRules(max_tokens=250, stop=("Done",)))
    assert stopped[-1].finish_reason == "stop"
    assert [call for delta in stopped for call in delta.calls] == [call]
    cut = saying("Let me see. " + CALL, tools=(TOOL,), stopping=StopRules(max_tokens=12))
    assert cut[-1].finish_reason == "length"
