"""The alphabet of byte-level BPE (GPT-2's): every byte has a printable character, in which vocabularies are written."""

from __future__ import annotations


def _alphabet() -> dict[str, int]:
    """Character -> byte: Latin-1's printable ones are themselves, the others follow from U+0100 on in their order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _alphabet()


def token_bytes(token: str) -> bytes:
    """What a token of the vocabulary stands for. One with other characters, which was added, stands for itself."""
    try:
        return bytes(_BYTES[char] for char in token)
    except KeyError:
        return token.encode()
