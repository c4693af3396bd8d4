"""Foreign text in messages: one printable line, whatever it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmq_jax.io.wording import listed, plain, quoted


@given(st.text(), st.integers(0, 50))
def test_text_is_one_printable_line_and_short(text, most):
    assert plain(text, most).isprintable() and len(plain(text, most)) <= most + 3
    if text.isprintable() and len(text) <= most:
        assert plain(text, most) == text


@pytest.mark.parametrize(
    "value, shown",
    [
        ("a\nb\x1b[2J", r"'a\nb\x1b[2J'"),
        ("x" * 10**6, f"'{'x' * 100}...'"),
        ("\ud800", r"'\ud800'"),
        (["x" * 10**6], f"['{'x' * 98}..."),
        (3.5, "3.5"),
        ({"n": 1 << 20000}, "a dict too long to show"),
    ],
    ids=["text", "long", "surrogate", "list", "number", "integer"],
)
def test_values(value, shown):
    assert quoted(value) == shown


def test_lists_are_cut_and_counted():
    assert listed(["a", "b\n"]) == r"a, b\n"
    assert listed(range(23), 20, "; ").endswith("18; 19; and 3 more")
    assert listed([]) == ""
