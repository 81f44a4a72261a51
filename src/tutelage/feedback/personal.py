"""Personal data in what people type: e-mail, phone, card, IP, IBAN and identity numbers, by pattern and check digit.

Patterns find what has a form; names and addresses in words they do not find. Checked numbers (Luhn, ISO 7064, mod 97)
keep the false alarms few. Borders are those of ASCII letters and digits, so that "电话13800138000。" is found as well.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any

import phonenumbers
from stdnum import iban, luhn
from stdnum.cn import ric
from stdnum.exceptions import ValidationError
from stdnum.us import ssn

Span = tuple[str, int, int]
REGIONS = ("US", "CN", "GB")
"""Where a phone number without a country's prefix may be from."""
_BEFORE, _AFTER = r"(?<![0-9A-Za-z])", r"(?![0-9A-Za-z])"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _passes(check: Callable[[str], Any]) -> Callable[[str], bool]:
    def valid(text: str) -> bool:
        try:
            check(text)
        except ValidationError:
            return False
        return True

    return valid


def _is_card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return 13 <= len(digits) <= 19 and digits[0] in "23456" and luhn.is_valid(digits)


_PATTERNS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool] | None], ...] = (
    ("email", re.compile(r"(?<![0-9A-Za-z._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}"),
     None),
    ("ip", re.compile(r"(?<![0-9A-Za-z.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?[0-9A-Za-z])", re.ASCII), _is_ip),
    ("ip", re.compile(r"(?<![0-9A-Za-z:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![0-9A-Za-z:])"),
     lambda text: len(text) > 6 and _is_ip(text)),
    ("id_number", re.compile(rf"{_BEFORE}\d{{17}}[\dXx]{_AFTER}"), _passes(lambda text: ric.validate(text.upper()))),
    ("id_number", re.compile(rf"{_BEFORE}\d{{3}}-\d{{2}}-\d{{4}}{_AFTER}"), _passes(ssn.validate)),
    ("iban", re.compile(rf"{_BEFORE}[A-Z]{{2}}\d{{2}}(?: ?[A-Z0-9]{{4}}){{2,7}}(?: ?[A-Z0-9]{{1,3}})?{_AFTER}"),
     _passes(lambda text: iban.validate(text, check_country=False))),
    ("card", re.compile(rf"{_BEFORE}\d(?:[ -]?\d){{12,18}}{_AFTER}"), _is_card),
)  # fmt: skip


def find_personal(text: str) -> list[Span]:
    """(kind, start, end) of what looks like personal data, in order and without overlaps.

    Kinds: email, ip, id_number (Chinese resident, US social security), iban, card, phone.
    """
    found: list[Span] = []
    taken = bytearray(len(text))

    def keep(kind: str, start: int, end: int) -> None:
        if not any(taken[start:end]):
            taken[start:end] = b"\1" * (end - start)
            found.append((kind, start, end))

    for kind, pattern, check in _PATTERNS:
        for match in pattern.finditer(text):
            if check is None or check(match[0]):
                keep(kind, *match.span())
    for region in REGIONS:
        for phone in phonenumbers.PhoneNumberMatcher(text, region):
            keep("phone", int(phone.start), int(phone.end))
    return sorted(found, key=lambda span: span[1])


def mask_personal(text: str) -> str:
    """The text with every such place replaced by its kind, as "[email]"."""
    out, at = [], 0
    for kind, start, end in find_personal(text):
        out += [text[at:start], f"[{kind}]"]
        at = end
    return "".join([*out, text[at:]])
