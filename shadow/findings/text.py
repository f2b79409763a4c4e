"""Findings in BYTES: the baseline's text in other bytes."""

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

import orjson

_ELEMENTS: Final = 64  # that differ, of one output
_LONGEST_BYTES: Final = 65_536
_PROSE_BYTES: Final = 16  # of print, that no binary has by chance: (95/256)^16 < 1e-6, and then (1/2)^16 not UTF-8
_BASE64_BYTES: Final = 24  # so long that it is no label with a hyphen
_BOM: Final = "\ufeff"
_ALPHABET: Final = bytes.maketrans(b"-_", b"+/")  # of URLs, as the standard one
_CHARSETS: Final = ("latin-1", "cp1252", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")


def encoded_otherwise(before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Whether some element of ``after`` is the text of ``before``, or text as there, but encoded otherwise.

    * the same text in another character set, with a byte order mark, with NULs after it, or as mojibake (its UTF-8
      read as Latin-1 or Windows-1252 and written as UTF-8 again);
    * another text, of which the same is plain: bytes that are no UTF-8, a mark, NULs or mojibake where the baseline
      answers 16 bytes of print or more;
    * the same bytes in or out of base64, or in its other alphabet; the same JSON value, spelled otherwise.

    Another text as such is no finding, nor is any difference of binary. Looks at 64 elements that differ, of 64 KiB.
    """
    pairs = ((_raw(left), _raw(right)) for left, right in zip(before, after, strict=True) if left != right)
    unlike = ((left, right) for left, right in pairs if left != right and max(len(left), len(right)) <= _LONGEST_BYTES)
    return any(_is_otherwise(left, right) for left, right in islice(unlike, _ELEMENTS))


def _raw(element: object) -> bytes:
    """An element's bytes; none of what is neither bytes nor text."""
    if isinstance(element, str):
        return element.encode(errors="surrogatepass")
    return element if isinstance(element, bytes) else b""


def _is_otherwise(left: bytes, right: bytes) -> bool:
    text = _text(left)
    if text is not None and "".join(text.removeprefix(_BOM).split()).isprintable():
        if right in _spellings(text.removeprefix(_BOM)) or right.rstrip(b"\0") == left:
            return True
        if len(left) >= _PROSE_BYTES and _is_damaged(right, text):
            return True
    return _same_base64(left, right) or _same_json(left, right)


def _spellings(text: str) -> Iterator[bytes]:
    """The text in other character sets, and as mojibake."""
    for charset in _CHARSETS:
        try:
            raw = text.encode(charset)
        except UnicodeEncodeError:
            continue
        yield raw
    for charset in ("latin-1", "cp1252"):
        try:
            yield text.encode().decode(charset).encode()
        except UnicodeDecodeError:
            continue


def _is_damaged(right: bytes, text: str) -> bool:
    """Whether bytes are not the clean UTF-8 that ``text`` came in."""
    found = _text(right)
    if found is None or "\0" in found:
        return True
    return (found.startswith(_BOM) and not text.startswith(_BOM)) or (_is_mojibake(found) and not _is_mojibake(text))


def _is_mojibake(text: str) -> bool:
    """Whether a text becomes other UTF-8 when its characters are taken for bytes."""
    if text.isascii():
        return False
    for charset in ("latin-1", "cp1252"):
        try:
            text.encode(charset).decode()
        except UnicodeError:
            continue
        return True
    return False


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _same_base64(left: bytes, right: bytes) -> bool:
    """Whether one is the other in base64, or both are the same bytes in its two alphabets."""
    if b64encode(left) == right or b64encode(right) == left:
        return True
    if min(len(left), len(right)) < _BASE64_BYTES:
        return False
    mine, theirs = _base64(left), _base64(right)
    return mine is not None and mine == theirs


def _base64(raw: bytes) -> bytes | None:
    standard = raw.translate(_ALPHABET, b"=\r\n")
    try:
        return b64decode(standard + b"=" * (-len(standard) % 4), validate=True)
    except Base64Error:
        return None


def _same_json(left: bytes, right: bytes) -> bool:
    """Whether both are one JSON value, or one is the other as a JSON string."""
    mine, theirs = _json(left), _json(right)
    try:
        if mine is not None and mine == theirs:
            return True
    except RecursionError:  # a thousand brackets
        return False
    return (isinstance(theirs, str) and theirs == _text(left)) or (isinstance(mine, str) and mine == _text(right))


def _json(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
