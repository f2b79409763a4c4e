"""BYTES for runtimes whose strings must be valid text: any bytes go in and come out exactly as they were.

Bytes that are UTF-8 become that text, so that a graph which works on text sees text. A byte that is not becomes the
private-use character U+10FF00 + byte, and so does each byte of such a character that occurs in the input, which makes
the mapping one to one.
"""

import re
from typing import Final

from models.tensor import Array

_BASE: Final = 0x10FF00
_ESCAPES: Final = re.compile("[\U0010ff00-\U0010ffff]")
_ESCAPED: Final = re.compile("[\U0010ff00-\U0010ffff]+")
_SURROGATES: Final = re.compile("[\udc80-\udcff]")


def to_text(element: bytes | str) -> str:
    """One BYTES element as text that encodes as UTF-8."""
    text = element if isinstance(element, str) else bytes(element).decode("utf-8", "surrogateescape")
    if text.isascii():
        return text
    text = _ESCAPES.sub(lambda match: "".join(chr(_BASE + byte) for byte in match[0].encode()), text)
    return _SURROGATES.sub(lambda match: chr(_BASE + ord(match[0]) - 0xDC00), text)


def to_bytes(text: str) -> bytes:
    """The element that ``to_text`` made ``text`` of; the UTF-8 form of a text that the model itself made."""
    if text.isascii():
        return text.encode()
    parts: list[bytes] = []
    at = 0
    for match in _ESCAPED.finditer(text):
        parts += (text[at : match.start()].encode(), bytes(ord(character) - _BASE for character in match[0]))
        at = match.end()
    return b"".join((*parts, text[at:].encode()))


def array_to_text(array: Array) -> Array:
    """A BYTES array with every element as text."""
    texts = array.astype(object)
    texts.reshape(-1)[:] = [to_text(element) for element in array.ravel().tolist()]
    return texts


def array_to_bytes(array: Array) -> Array:
    """A text array with every element as bytes."""
    elements = array.astype(object)
    elements.reshape(-1)[:] = [to_bytes(element) for element in array.ravel().tolist()]
    return elements
