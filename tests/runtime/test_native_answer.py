"""Tokens of many chats become text in one go: all of them, in order, each in its own answer, whatever befalls one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import cache

import pytest
import tiny_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lodger.engines.native_answer import Answer, Arrivals, Choice
from lodger.errors import InternalError, OutOfMemory
from lodger.runtime.generating import Made
from lodger.tasks import Delta, Usage
from lodger.text.tokenizer import Tokenizer

TEXT = "The capital of France is Paris. 你好，中国的首都是哪里？ A model serves a chat, an embedding and a rerank."


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny_tokenizers.qwen())


def ids(text: str = TEXT) -> list[int]:
    return tokenizer().encode(text, special=False)


class Chat:
    """An answer, what was put out of it, and which sequences were taken from the device."""

    def __init__(self, n: int = 1, stop: tuple[str, ...] = ()) -> None:
        self.deltas: list[Delta] = []
        self.cancelled: list[int] = []
        self.answer = Answer(7, self.deltas.append, self.cancelled.append)
        self.answer.choices += [Choice(index, frozenset({999}), tokenizer(), stop) for index in range(n)]

    def text(self, index: int = 0) -> str:
        return "".join(delta.text for delta in self.deltas if delta.index == index)


def made(tokens: list[int]) -> list[Made]:
    """What the device makes of an answer that ends at its limit."""
    return [*map(Made, tokens[:-1]), Made(tokens[-1], finish="length")]


def run(main: Callable[[], object]) -> None:
    async def call() -> None:
        main()

    asyncio.run(call())


def test_a_threads_tokens_arrive_whole_and_in_order_with_few_wake_ups() -> None:
    chats, tokens = 40, ids() * 3

    async def main() -> None:
        loop = asyncio.get_running_loop()
        arrivals, served = Arrivals(loop), [Chat() for _ in range(chats)]
        calls = 0
        call = loop.call_soon_threadsafe

        def counted(*what: object) -> object:
            nonlocal calls
            calls += 1
            return call(*what)  # type: ignore[arg-type]

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign,assignment]

        def device() -> None:
            for step in made(tokens):
                for chat in served:
                    arrivals.deliver(chat.answer, 0, step)

        thread = threading.Thread(target=device)
        thread.start()
        await asyncio.gather(*(chat.answer.done for chat in served))
        thread.join()
        for chat in served:
            assert chat.text() == tokenizer().decode(tokens)
            assert chat.deltas[-1].usage == Usage(7, len(tokens))
            assert [delta.usage for delta in chat.deltas[:-1]] == [None] * (len(chat.deltas) - 1)
        assert calls < len(tokens) * chats / 4

    asyncio.run(main())


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 60), st.integers(1, 12))
def test_a_stop_string_ends_a_text_wherever_its_tokens_are_cut(at: int, length: int) -> None:
    def main() -> None:
        stop = TEXT[at : at + length]
        chat = Chat(stop=(stop,))
        for step in made(ids()):
            chat.answer.push(0, step)
        assert chat.text() == TEXT[: TEXT.index(stop)]
        assert chat.deltas[-1].finish_reason == "stop"
        assert chat.answer.done.done()

    run(main)


def test_a_stop_string_takes_the_sequence_from_the_device_and_later_tokens_are_nobodys() -> None:
    def main() -> None:
        chat = Chat(n=2, stop=("France",))
        for step in made(ids()):
            chat.answer.push(0, step)
        assert chat.cancelled == [0]
        assert sum(delta.finish_reason is not None for delta in chat.deltas) == 1
        assert not chat.answer.done.done()

    run(main)


def test_an_error_in_one_answer_leaves_the_others() -> None:
    async def main() -> None:
        arrivals = Arrivals(asyncio.get_running_loop())
        good, bad, other = Chat(), Chat(), Chat()
        for number, step in enumerate(made(ids())):
            for chat in (good, bad, other):
                wrong = chat is bad and number == 3
                arrivals.deliver(chat.answer, 0, Made(error=OutOfMemory("no room.")) if wrong else step)
        await asyncio.gather(good.answer.done, other.answer.done)
        assert good.text() == other.text() == TEXT
        with pytest.raises(OutOfMemory, match="no room"):
            await bad.answer.done
        assert TEXT.startswith(bad.text())
        bad.answer.close()
        assert bad.cancelled == [0]

    asyncio.run(main())


def test_a_defect_at_one_token_ends_that_answer_alone() -> None:
    async def main() -> None:
        loop, told = asyncio.get_running_loop(), []
        loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
        arrivals, bad, good = Arrivals(loop), Chat(), Chat()
        for step in made(ids()):
            arrivals.deliver(bad.answer, 0, Made("not a number") if step.finish else step)  # type: ignore[arg-type]
            arrivals.deliver(good.answer, 0, step)
        await good.answer.done
        assert good.text() == TEXT
        with pytest.raises(InternalError, match="could not be turned into text"):
            await bad.answer.done
        assert [type(error) for error in told] == [TypeError]

    asyncio.run(main())


def test_the_usage_comes_with_the_last_choice_of_all() -> None:
    def main() -> None:
        chat = Chat(n=2)
        for step in made(ids("a b c")):
            chat.answer.push(0, step)
        assert not chat.answer.done.done()
        for step in made(ids("d e")):
            chat.answer.push(1, step)
        assert chat.answer.done.done()
        assert [delta.usage for delta in chat.deltas if delta.finish_reason] == [
            None,
            Usage(7, len(ids("a b c")) + len(ids("d e"))),
        ]
        assert (chat.text(0), chat.text(1)) == ("a b c", "d e")

    run(main)


def test_who_leaves_takes_only_what_still_runs() -> None:
    def main() -> None:
        chat = Chat(n=2)
        for step in made(ids("a b")):
            chat.answer.push(0, step)
        chat.answer.push(1, Made(ids("a")[0]))
        shown = len(chat.deltas)
        chat.answer.close()
        assert chat.cancelled == [1]
        chat.answer.push(1, Made(ids("a")[0]))
        assert len(chat.deltas) == shown

    run(main)
