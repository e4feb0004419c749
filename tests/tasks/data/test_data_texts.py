"""What is found in texts, and how they are shown."""

import html
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.texts import BLOT, Fault, Scanner, is_card, markdown_text, shown

SCANNER = Scanner(["<|user|>", "<|end|>", "</s>"])

FAULTS = {
    "Yes, it is.\nAnd\tso on\r\n": Fault(0),
    "line\x00feed": Fault.CONTROL,
    "bell \x07": Fault.CONTROL,
    "delete \x7f": Fault.CONTROL,
    "next line \x85": Fault.CONTROL,
    "no character \uffff": Fault.CONTROL,
    "lost \ufffd": Fault.GARBLED,
    "cafÃ©": Fault.GARBLED,
    "itâ€™s": Fault.GARBLED,
    "ðŸ˜€": Fault.GARBLED,
    "Â£5": Fault.GARBLED,
    "Ð¿Ñ€Ð¸Ð²ÐµÑ‚": Fault.GARBLED,
    "naïve café, “quoted”, château, Ångström, São Paulo, 5 £": Fault(0),
    "привет, שלום, مرحبا, 你好, 😀👩‍👧, e\u0301, \u202eright to left\u202c": Fault(0),
    "he said <|user|> once": Fault.SPECIAL,
    "<|users|> <user|> <s>": Fault(0),
    "done</s>": Fault.SPECIAL,
    "write to jane.doe+x@mail.corp.io.": Fault.EMAIL,
    "ana@example.org, ben@test, @home, a @ b.com, x@y.example.com": Fault(0),
    "call +49 170 1234567": Fault.PHONE,
    "call (415) 555-0132 now": Fault.PHONE,
    "call 415-555-0132": Fault.PHONE,
    "ruf 0170 1234567 an": Fault.PHONE,
    "on 2026-11-25 at 10:00, 3.14159265358979, 1,000,000 of 12 345": Fault(0),
    "order 12345678901234567890, version 10.20.30.40": Fault(0),
    "4111 1111 1111 1111": Fault.CARD,
    "5500-0055-5555-5559": Fault.CARD,
    "4111 1111 1111 1112": Fault(0),
    "0000 0000 0000 0000": Fault(0),
    "AKIAABCDEFGHIJKLMNOP": Fault.KEY,
    "key=ghp_" + "a1" * 18: Fault.KEY,
    "sk-" + "ab12" * 6: Fault.KEY,
    "-----BEGIN RSA PRIVATE KEY-----": Fault.KEY,
    "ask-me-anything-about-this-and-that, AKIA, sk-8, risk-adjusted-returns-of-the-fund": Fault(0),
    "<|end|>\x00 é Ã© a@b.cd +4915112345678": Fault.SPECIAL | Fault.CONTROL | Fault.GARBLED | Fault.EMAIL | Fault.PHONE,
}


@pytest.mark.parametrize("text", FAULTS, ids=lambda text: repr(text)[:30])
def test_faults(text):
    assert SCANNER.faults(text) == FAULTS[text]
    assert SCANNER.faults(f"Before it. {text} And after.") == FAULTS[text]


def test_without_special_tokens_nothing_is_one():
    assert Scanner().faults("<|user|></s>") == Fault(0)


@given(
    st.text(
        alphabet=st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs"), min_codepoint=0xC0, max_codepoint=0x2FF), min_size=1
    )
)
def test_text_that_was_decoded_wrongly_is_noticed(text):
    """Latin letters as UTF-8, read as Windows-1252: every one of them begins with a character that gives it away."""
    wrong = text.encode().decode("cp1252", "replace")
    assert Fault.GARBLED in SCANNER.faults(wrong) or not any("\u00c0" <= c <= "\u00ff" for c in text)


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_can_be_looked_at_and_shown(text):
    SCANNER.faults(text)
    assert len(shown(text, 40)) <= 42
    shown(text, 40).encode("utf-8")
    assert "\n" not in markdown_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "1 " * 50_000,
        "+1 2" * 30_000,
        "@a." * 30_000,
        "a@" + "b." * 50_000,
        "eyJ" * 30_000,
        "12-" * 40_000,
        "-----BEGIN " * 9_000,
        "\u00c3" * 90_000,
    ],
    ids=lambda text: text[:6],
)
def test_no_pattern_takes_long_over_a_hostile_text(text):
    begun = time.process_time()
    SCANNER.faults(text)
    shown(text, 100_000)
    assert time.process_time() - begun < 3


@given(st.text("0123456789", min_size=12, max_size=18))
def test_the_check_digit_of_cards(number):
    """By a second method: the sum over a table of doubled digits."""
    doubled = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
    total = sum(doubled[int(d)] if n % 2 == 0 else int(d) for n, d in enumerate(reversed(number)))
    right = -total % 10
    for check in range(10):
        assert is_card(f"{number}{check}") == (check == right and len({*number, str(check)}) > 1)


def test_shown_texts_keep_secrets():
    text = "Mail jane@corp.io or +49 170 1234567, card 4111 1111 1111 1111, key AKIAABCDEFGHIJKLMNOP, bell \x07."
    assert shown(text, 200) == f"Mail {BLOT} or {BLOT}, card {BLOT}, key {BLOT}, bell \ufffd."
    assert shown("  a  ", 10) == "a"
    assert shown("word " * 10, 9) == "word word …"


def test_names_in_markdown_are_only_names():
    assert markdown_text("ana, 5 %") == "ana, 5 %"
    for hostile in (
        "<b>",
        "[a](b)",
        "a|b",
        "`x`",
        "*x*",
        "_x_",
        "http://x.y",
        "www.x.y",
        "a@b.cd",
        "\\",
        "a\nb",
        "#1",
        "~x~",
        "![x](y)",
        "$x$",
    ):
        found = markdown_text(hostile)
        assert html.unescape(found) == " ".join(shown(hostile, 100).split())
        assert not {*"<>[]|`*_@\\\n~!$"} & {*found}
        assert "://" not in found
        assert "www." not in found
