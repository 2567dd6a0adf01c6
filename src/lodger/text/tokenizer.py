"""`Tokenizer`: text to token ids and back, by the folder's tokenizer.json.

Results equal those of transformers' fast tokenizer on the same file, and so those of sentence-transformers. Nothing is
switched on the shared Rust object after loading (its truncation and padding are global state), so every method may be
called from several threads at once; the tokenising itself releases the GIL.

Cost is linear: one to three seconds a MB on one core. Where a limit is given, only as much text is tokenised as gives
that many tokens, so 10 MB against a limit of 512 tokens take milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers

from lodger.text.byte_level import token_bytes
from lodger.text.detokenizer import ByteDetokenizer, Detokenizer, MarkDetokenizer, WindowDetokenizer
from lodger.text.files import read_json, read_well_formed
from lodger.text.frame import Encoded, read_frame

_CHARS_PER_TOKEN = 16  # first guess of how much text gives enough tokens; where it does not, `_GROWTH` times as much
_GROWTH = 8
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # a byte of a character that the vocabulary lacks
_MARGIN = 64  # tokens before a cut that may differ from those of the whole text


class Tokenizer:
    """One model's tokenizer. Made by `Tokenizer.load`."""

    def __init__(
        self, backend: Any, *, declared: Mapping[str, Any] = MappingProxyType({}), from_left: bool = False
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._declared = declared  # tokenizer_config.json
        self._from_left = from_left  # which end truncation takes away
        self._single = read_frame(backend, pair=False)
        self._pair = read_frame(backend, pair=True)
        self._special = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
        self._pieces: dict[int, str | bytes] = {}  # of tokens that were met

    @classmethod
    def load(cls, folder: str | Path, *, lowercase: bool = False) -> Tokenizer:
        """The tokenizer of a model folder. `lowercase`: sentence-transformers' do_lower_case.

        Raises:
            ModelProblem: tokenizer.json is missing or damaged, or adds tokens in a way that we do not understand.
        """
        config = read_json(Path(folder), "tokenizer_config.json")
        backend = tokenizers.Tokenizer.from_buffer(read_well_formed(Path(folder), "tokenizer.json"))
        side = config.get("truncation_side") or (backend.truncation or {}).get("direction")
        _add_missing(backend, config)
        if lowercase:
            steps = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
            backend.normalizer = normalizers.Sequence(steps)
        return cls(backend, declared=config, from_left=side == "left")

    @property
    def vocab_size(self) -> int:
        """Tokens known, added ones included; the model's own table may have more rows."""
        size: int = self._backend.get_vocab_size()
        return size

    def encode(self, text: str, *, special: bool, limit: int | None = None) -> list[int]:
        """Token ids of `text`, with `special` inside what the model puts around one text.

        With `limit` the work stops once there are certainly more than `limit` tokens: the result is then some number
        of tokens over it, enough to refuse the text and not fit for anything else.
        """
        ids = self._ids([text], limit)[0]
        return list(self._single.put(ids).tokens) if special else ids

    def encode_batch(self, texts: Sequence[str], *, max_length: int) -> list[Encoded]:
        """Each text with its special tokens, cut to `max_length` tokens in all."""
        room = max(max_length - self._single.added, 0)
        return [self._single.put(self._cut(ids, room), truncated=len(ids) > room) for ids in self._ids(texts, room)]

    def encode_pairs(self, query: str, documents: Sequence[str], *, max_length: int) -> list[Encoded]:
        """The query with each document, as `tokenizer(query, document, truncation=True, max_length=...)` does.

        That is truncation "longest_first": the longer of the two gives way, down to half of the room each.
        """
        room = max(max_length - self._pair.added, 0)
        first, *others = self._ids([query, *documents], room)
        found = []
        for second in others:
            keep, keep_second = _longest_first(len(first), len(second), room)
            cut = keep < len(first) or keep_second < len(second)
            found.append(self._pair.put(self._cut(first, keep), self._cut(second, keep_second), truncated=cut))
        return found

    def encode_between(self, prefix: str, texts: Sequence[str], suffix: str, *, max_length: int) -> list[Encoded]:
        """Each text between two others that stay whole, cut to `max_length` tokens in all.

        The three are tokenised on their own, and nothing that the model else puts around a text is added.
        """
        before, after = self._ids([prefix, suffix], None)
        room = max(max_length - len(before) - len(after), 0)
        return [
            Encoded((*before, *self._cut(ids, room), *after), None, len(ids) > room) for ids in self._ids(texts, room)
        ]

    def id_of(self, token: str) -> int | None:
        """None where the vocabulary has no such token."""
        id: int | None = self._backend.token_to_id(token)
        return id

    def special_ids(self, names: Sequence[str]) -> set[int]:
        """Ids of the tokens that tokenizer_config.json declares under `names` ("cls_token"); those that it has."""
        tokens = [self._declared.get(name) for name in names]
        contents = [token.get("content") if isinstance(token, dict) else token for token in tokens]
        ids = [self.id_of(content) for content in contents if isinstance(content, str)]
        return {id for id in ids if id is not None}

    def tokens_of(self, ids: Sequence[int]) -> list[str]:
        """The tokens' own spelling in the vocabulary; empty for an id that there is not."""
        return [(self._backend.id_to_token(id) if 0 <= id < 2**32 else None) or "" for id in ids]

    @property
    def special(self) -> frozenset[int]:
        """Ids of tokens that are no text: beginnings, ends, and marks between messages."""
        return frozenset(self._special)

    def bytes_of(self, id: int) -> bytes:
        """What a token stands for within a text; a special one for its own spelling. Empty for an id that is none."""
        token = self._backend.id_to_token(id) or ""
        if id in self._special:
            return token.encode()
        if isinstance(self._backend.decoder, decoders.ByteLevel):
            return token_bytes(token)
        if byte := _BYTE.fullmatch(token):
            return bytes([int(byte[1], 16)])
        return token.replace("▁", " ").encode()

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        text: str = self._backend.decode(ids, skip_special_tokens=skip_special)
        return text

    def detokenizer(self, shown: Sequence[str] = ()) -> Detokenizer:
        """Text of one generation, token by token, without special tokens but those `shown`."""
        plain: Detokenizer
        if isinstance(self._backend.decoder, decoders.ByteLevel):
            plain = ByteDetokenizer(self._piece)
        else:
            plain = WindowDetokenizer(self._decode_window)
        marks = {id: token for token in shown if (id := self.id_of(token)) is not None and id in self._special}
        return MarkDetokenizer(plain, marks) if marks else plain

    def _piece(self, id: int) -> str | bytes:
        """What a byte-level decoder makes of a token, or its bytes where they are not whole characters."""
        piece = self._pieces.get(id)
        if piece is None:
            token = None if id in self._special else self._backend.id_to_token(id)
            raw = token_bytes(token or "")
            try:
                piece = raw.decode()
            except UnicodeDecodeError:
                piece = raw
            self._pieces[id] = piece
        return piece

    def _decode_window(self, ids: Sequence[int]) -> str:
        """The same as `decode`, quick for a token alone, as which most are decoded too."""
        if len(ids) != 1:
            return self.decode(ids)
        piece = self._pieces.get(ids[0])
        if piece is None:
            piece = self._pieces[ids[0]] = self.decode(ids)
        return str(piece)

    def _ids(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
        """Ids without special tokens. Of a text with more than `limit` of them, more than `limit`, perhaps not all."""
        if limit is None:
            return self._encode(texts)
        chars = (limit + _MARGIN) * _CHARS_PER_TOKEN
        found = self._encode([self._end(text, chars) for text in texts])
        short = [i for i, text in enumerate(texts) if len(text) > chars and len(found[i]) < limit + _MARGIN]
        while short:
            chars *= _GROWTH
            for i, ids in zip(short, self._encode([self._end(texts[i], chars) for i in short]), strict=True):
                found[i] = ids
            short = [i for i in short if len(texts[i]) > chars and len(found[i]) < limit + _MARGIN]
        return found

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _end(self, text: str, chars: int) -> str:
        return text[-chars:] if self._from_left else text[:chars]

    def _cut(self, ids: list[int], room: int) -> list[int]:
        return ids[max(len(ids) - room, 0) :] if self._from_left else ids[:room]


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens kept of each of two texts; the arithmetic of tokenizers' `TruncationStrategy::LongestFirst`."""
    if first + second <= room:
        return first, second
    short = min(first, second)
    long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)


def _add_missing(backend: Any, config: dict[str, Any]) -> None:
    """Tokens that only tokenizer_config.json declares, in the order of their ids."""
    declared = sorted((config.get("added_tokens_decoder") or {}).items(), key=lambda entry: int(entry[0]))
    fields = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    for _, token in declared:
        if backend.token_to_id(token["content"]) is None:
            backend.add_tokens([tokenizers.AddedToken(**{name: token[name] for name in fields if name in token})])
