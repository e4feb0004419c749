"""What is wrong with a text, or should not be in it: broken characters, the model's special tokens, personal data.
And how a text of anybody's is shown to people: cut, without what harms a page, personal data blotted out.

Cheap looks come first, for a million texts must pass: only what they can't clear is searched by patterns. No pattern
looks back over more than a few dozen characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import IntFlag
from typing import AnyStr


class Fault(IntFlag):
    """Reasons to look at a text again.

    CONTROL: characters that no keyboard types, NUL among them. GARBLED: text decoded wrongly (é became Ã©), or characters
    already lost. SPECIAL: a special token of the tokenizer, typed out. The others are kinds of personal data.
    """

    CONTROL = 1
    GARBLED = 2
    SPECIAL = 4
    EMAIL = 8
    PHONE = 16
    CARD = 32
    KEY = 64


NONE = Fault(0)
_CONTROL = frozenset({*range(9), 11, 12, *range(14, 32), 127})
_SUSPECT = _CONTROL | frozenset(b"0123456789@")
_HARMLESS = bytes(set(range(256)) - _SUSPECT)
"""Bytes that neither break a text nor belong to a number or an address."""
_NUMBERS = bytes(ord("9") if byte in b"0123456789" else ord("-") if byte in b" ().-/" else ord("x") for byte in range(256))
"""Digits as 9, what may stand between those of one number as -, all else as x."""
_LONG_NUMBER, _PERHAPS_LONG = re.compile(rb"9(?:-{0,2}9){7}"), re.compile(rb"9[9-]{7}")

_C1 = re.compile("[\x80-\x9f\ufffe\uffff]")
# UTF-8 read as Windows-1252 or Latin-1: a lead byte's character, then what the bytes 80 to BF became.
_TAIL = "[\x80-\xbf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]"
_GARBLED = re.compile(
    f"\ufffd|\u00c3{_TAIL}|\u00c2[\xa0-\xbf]|\u00e2(?:\u20ac|\x80){_TAIL}|\u00f0\u0178{_TAIL}|(?:[\u00d0\u00d1]{_TAIL}){{3}}"
)
_GARBLED_SIGNS = {b"\xc3": tuple(map(str.encode, "\u00c3\u00c2\u00e2\u00f0\u00d0\u00d1")), b"\xef": ("\ufffd".encode(),)}

_EMAIL = re.compile(r"(?<=[\w.%+\-])@((?:[A-Za-z0-9][A-Za-z0-9\-]{0,62}\.){1,6}[A-Za-z]{2,24})(?![\w\-])")
_ADDRESS = re.compile(r"[\w.%+\-]{1,64}" + _EMAIL.pattern)
_NOBODYS = re.compile(r"(?i)(?:.*\.)?(?:example\.(?:com|org|net)|example|invalid|test|localhost)\Z")
"""Domains that are reserved for examples."""
_PHONE = re.compile(
    r"(?<![\w.,+\-/])(?:\+\d[\d ().\-/]{6,20}\d|\(\d{3}\) ?\d{3}[ .\-]\d{4}|\d{3}[.\-]\d{3}[.\-]\d{4}|\d{3} \d{3} \d{4}"
    r"|0\d{2,4}[ /\-]\d{5,8})(?![\w\-])"
)
_CARD = re.compile(r"(?<![\w.,+\-])[2-6]\d{3}(?:[ \-]?\d){9,15}(?![\w\-])")
_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----|(?<!\w)(?:AKIA[0-9A-Z]{16}(?!\w)|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22}|glpat-[\w\-]{20}"
    r"|xox[abprs]-[\w\-]{10}|AIza[\w\-]{35}|hf_[A-Za-z0-9]{30}|sk-[\w\-]{20}|sk_live_\w{16}|eyJ[\w\-]{10,200}\.eyJ[\w\-]{10})"
)
_KEY_SIGNS = {
    "K": ("AKIA",),
    "J": ("eyJ",),
    "I": ("AIza",),
    "-": ("sk-", "glpat-", "-----BEGIN ", "xox"),
    "_": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "hf_", "sk_live_"),
}
"""What a key begins with, by its rarest character: to look for one character takes next to no time."""


class Scanner:
    """Looks at texts. special: the tokenizer's special tokens; a text that spells one out may be read as it."""

    def __init__(self, special: Iterable[str] = ()) -> None:
        tokens = sorted({token for token in special if token.strip()}, key=lambda token: (-len(token), token))
        self._special = re.compile("|".join(map(re.escape, tokens))) if tokens else None
        self._signs = {
            first: tuple(sorted({token[:2] for token in tokens if token[0] == first})) for first in {token[0] for token in tokens}
        }

    def faults(self, text: str) -> Fault:
        """All that is wrong with a text."""
        found = 0
        if self._special and _holds(text, self._signs) and self._special.search(text):
            found |= Fault.SPECIAL.value
        raw = text.encode("utf-8", "surrogatepass")
        left = raw.translate(None, _HARMLESS)
        if left:
            numbers = left.translate(None, b"@")
            if numbers:
                if not numbers.isdigit():
                    found |= Fault.CONTROL.value
                if len(numbers) >= 8 and _holds_long_number(raw):
                    found |= _numbers(text)
            if len(numbers) < len(left) and any(not _NOBODYS.match(match[1]) for match in _EMAIL.finditer(text)):
                found |= Fault.EMAIL.value
        if len(raw) > len(text):
            if (b"\xc2" in raw or b"\xef\xbf" in raw) and _C1.search(text):
                found |= Fault.CONTROL.value
            if _holds(raw, _GARBLED_SIGNS) and _GARBLED.search(text):
                found |= Fault.GARBLED.value
        if _holds(text, _KEY_SIGNS) and _KEY.search(text):
            found |= Fault.KEY.value
        return Fault(found) if found else NONE


def _holds(text: AnyStr, signs: Mapping[AnyStr, tuple[AnyStr, ...]]) -> bool:
    """signs: by a character that each of them has."""
    return any(rare in text and any(sign in text for sign in with_it) for rare, with_it in signs.items())


def _holds_long_number(raw: bytes) -> bool:
    marked = raw.translate(_NUMBERS)
    return bool(_PERHAPS_LONG.search(marked) and _LONG_NUMBER.search(marked))


def _numbers(text: str) -> int:
    found = 0
    if any(is_card(match[0]) for match in _CARD.finditer(text)):
        found |= Fault.CARD.value
    if any(8 <= sum(map(str.isdigit, match[0])) <= 15 for match in _PHONE.finditer(text)):
        found |= Fault.PHONE.value
    return found


def is_card(number: str) -> bool:
    """Do the digits pass the check of ISO/IEC 7812 (Luhn's sum), as those of payment cards do?"""
    digits = [int(digit) for digit in number if digit in "0123456789"]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 13 <= len(digits) <= 19 and (sum(doubled) + sum(digits[-1::-2])) % 10 == 0 and len(set(digits)) > 1


# Showing ------------------------------------------------------------------------------------------------------------

BLOT = "\u2588\u2588\u2588"


def shown(text: str, longest: int) -> str:
    """The beginning of a text, fit for a page: control characters replaced, personal data blotted out."""
    begin = text[: 4 * longest]
    for pattern in (_KEY, _ADDRESS, _CARD, _PHONE):
        begin = pattern.sub(BLOT, begin)
    begin = re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", begin).strip()
    return begin if len(begin) <= longest and len(text) <= 4 * longest else f"{begin[:longest]} …"


def markdown_text(text: str, longest: int = 100) -> str:
    """The beginning of a text as Markdown shows it in a table's cell: on one line, nothing in it is mark-up, link or HTML."""
    line = " ".join(shown(text, longest).split())
    return re.sub(r"""[^\w .,:;()+=%/█…'"-]|_|:(?=//)|(?<=www)\.""", lambda mark: f"&#{ord(mark[0])};", line)
