"""Bodies that no request can have: of a valid one, all that clients, proxies and attackers make of it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

WRONG: list[Any] = [
    *(None, True, 5, -1, 2**62, 0.5, 1e300, "", "\0", "x" * 5000, "😀" * 100, [], [None], [[[]]], {}, {"a": {}}, [{}]),
    *(["", {}], {"text": 5}, {"$ref": "#"}, [2**62], ["x"] * 3000),
]
DEEP = 3000


def broken_texts(body: dict[str, Any], chance: random.Random) -> Iterator[bytes]:
    """Bytes that are no JSON object of 64-bit numbers and UTF-8, whatever the route."""
    text = json.dumps(body).encode()
    for _ in range(100):
        yield text[: chance.randrange(1, len(text))]
    for _ in range(60):
        place = chance.randrange(1, len(text))
        yield text[:place] + bytes([chance.randrange(0x80, 0x100)]) + text[place:]
    for value in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"0x10", b"01", b"1_000", b".5", b"+1", b"'a'", b"None"):
        yield text[:-1] + b', "ignored": ' + value + b"}"
    for value in (b"9" * 20, b"-" + b"9" * 20, b"9" * 400, b"18446744073709551616", b"[[[9223372036854775808]]]"):
        yield text[:-1] + b', "ignored": ' + value + b"}"
    for value in (
        rb'"\ud800"',
        rb'"\udfff\ud800"',
        rb'"\uD83D"',
        b'"\xed\xa0\x80"',
        b'"\xc0\x80"',
        b'"\x01"',
        rb'"\x41"',
    ):
        yield text[:-1] + b', "ignored": ' + value + b"}"
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        for depth in (65, 500, DEEP):
            nested = opening * depth + b"1" + closing * depth
            yield nested
            yield text[:-1] + b', "ignored": ' + nested + b"}"
        yield opening * DEEP
    yield from (text + b"x", text + text, b"[" + text, text[1:], text.replace(b'"', b"'"), text.replace(b":", b"=", 1))
    yield from (text.decode().encode("utf-16"), b"\xef\xbb\xbf" + text, b"\x1f\x8b" + text, text.replace(b"{", b"(", 1))
    yield from (
        b" ",
        b"\n\n",
        b"\0",
        b"model=x&input=y",
        b"--boundary\r\n\r\nx",
        b"<xml/>",
        b"null x",
        b"// no\n" + text,
    )


def wrong_shapes(body: dict[str, Any], needed: list[str], chance: random.Random) -> Iterator[bytes]:
    """JSON without what the route needs, or with it twice and wrong at last."""
    for value in (b"null", b"true", b"0", b'"text"', b"[]", b"[[]]", json.dumps([body]).encode(), b"{}"):
        yield value
    for field in needed:
        yield json.dumps({key: value for key, value in body.items() if key != field}).encode()
        for value in (5, {}, {"a": 1}, True, [{}], 0.5, [[{}]], None):
            changed = json.dumps(body | {field: value}).encode()
            yield changed
            yield json.dumps(body)[:-1].encode() + f', "{field}": {json.dumps(value)}}}'.encode()


def odd_fields(body: dict[str, Any], known: list[str], chance: random.Random) -> Iterator[bytes]:
    """Any value in any known field: some are fine, none may break anything."""
    while known:
        some = {field: chance.choice(WRONG) for field in chance.sample(known, min(len(known), chance.randrange(1, 4)))}
        yield json.dumps(body | some).encode()
