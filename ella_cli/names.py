"""Which texts of a stranger's file may be a name, and how others are shown."""

from __future__ import annotations

import unicodedata

# Unicode's controls, surrogates, and separators of lines and paragraphs.
_UNNAMEABLE = {"Cc", "Cs", "Zl", "Zp"}
# Embeddings, overrides and isolates: they show what follows in another order than it is in.
_REORDERING = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def is_nameable(text: str) -> bool:
    """Whether it has no control character, no line break and no half of a character, and shows
    its letters in their order.

    What a stranger's file names is shown on terminals and written into files.
    """
    return text.isprintable() or not any(map(_is_unnameable, text))


def nameable(text: str, *, keep: str = "") -> str:
    """The same with a question mark in place of what no name has, but for characters of `keep`."""
    if text.isprintable():
        return text
    return "".join("?" if _is_unnameable(one) and one not in keep else one for one in text)


def has_half_characters(text: str) -> bool:
    """Whether it was cut in the middle of a character, which UTF-8 cannot write."""
    return not text.isascii() and any("\ud800" <= one <= "\udfff" for one in text)


def _is_unnameable(character: str) -> bool:
    return character in _REORDERING or unicodedata.category(character) in _UNNAMEABLE
