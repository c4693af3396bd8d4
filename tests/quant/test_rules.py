"""Ordered path rules: the first match wins, a rule that wins nothing is an error."""

import dataclasses
import logging

import pytest

from wmq_jax.quant import match_rules


@dataclasses.dataclass(frozen=True)
class Settings:
    bits: int = 4
    size: int = 8


NAMES = ["a/kernel", "a/bias", "b/kernel", "c/kernel"]


def test_the_first_matching_rule_wins_and_the_rest_is_left_alone():
    rules = ["a/kernel", ("b/.*", None), (".*/kernel", {"bits": 2})]
    expected = {"a/kernel": Settings(), "b/kernel": None, "c/kernel": Settings(bits=2)}
    assert match_rules(rules, NAMES, Settings()) == expected


def test_a_pattern_has_to_match_the_whole_name():
    message = r"rule 0 \('kernel'\) applies to nothing: it matches none of 4 names, such as 'a/kernel'"
    with pytest.raises(ValueError, match=message):
        match_rules(["kernel"], NAMES, Settings())


def test_a_rule_in_the_shadow_of_another_is_named():
    with pytest.raises(ValueError, match=r"rule 1 \('a/.\*'\) applies to nothing: earlier rules take everything"):
        match_rules([".*", ("a/.*", {"bits": 8})], NAMES, Settings())


def test_malformed_rules_are_refused():
    with pytest.raises(TypeError, match=r"sets width; the settings are bits, size"):
        match_rules([("a/.*", {"width": 1})], NAMES, Settings())
    with pytest.raises(TypeError, match="a rule is a pattern or"):
        match_rules([("a/.*", 4)], NAMES, Settings())
    with pytest.raises(ValueError, match="no regular expression"):
        match_rules(["a/("], NAMES, Settings())


def test_matches_are_logged(caplog):
    with caplog.at_level(logging.INFO, logger="wmq_jax.quant.rules"):
        match_rules(["[ab]/kernel"], NAMES, Settings())
    assert "a/kernel, b/kernel" in caplog.text
