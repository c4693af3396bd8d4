"""Ordered path rules: which sites a transform touches, and with which settings.

A rule is a regular expression over the whole name, alone (use the transform's settings) or with
settings of its own: ``('.*/fc2/kernel', {'bits': 8})``; ``('encoder/.*', None)`` leaves what it matches
alone. The first rule that matches a name wins; a name that none matches is left alone.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

Rule = str | tuple[str, Mapping[str, Any] | None]
Spec = TypeVar("Spec")

_logger = logging.getLogger(__name__)


def match_rules(rules: Sequence[Rule], names: Iterable[str], default: Spec) -> dict[str, Spec | None]:
    """The settings of every matched name: ``default`` with its rule's settings, or None.

    Args:
      rules: ordered rules.
      names: the names to choose from.
      default: a frozen dataclass of settings.

    Returns:
      Name -> settings, or None where the winning rule leaves the name alone, in the order of
      ``names``. Names without a rule are absent. The winners are logged at level INFO.

    Raises:
      TypeError: the rules are one string, or a rule is malformed, or has a setting that ``default`` does not.
      ValueError: a rule wins no name, or is no regular expression. It is named.
    """
    if isinstance(rules, str):
        raise TypeError(f"rules are a list of rules, [{rules!r}], not one pattern")
    names = list(names)
    parsed = [_parse(rule, default) for rule in rules]
    winners: dict[str, int] = {}
    for name in names:
        for index, (pattern, _) in enumerate(parsed):
            if pattern.fullmatch(name):
                winners[name] = index
                break
    for index, (pattern, spec) in enumerate(parsed):
        won = [name for name, winner in winners.items() if winner == index]
        if not won:
            taken = any(pattern.fullmatch(name) for name in names)
            reason = "earlier rules take everything it matches" if taken else f"it matches none of {len(names)} names"
            hint = f", such as '{names[0]}'" if names and not taken else ""
            raise ValueError(f"rule {index} ('{pattern.pattern}') applies to nothing: {reason}{hint}")
        _logger.info("rule %d ('%s') -> %s: %s", index, pattern.pattern, spec, ", ".join(won))
    return {name: parsed[index][1] for name, index in winners.items()}


def _parse(rule: Rule, default: Spec) -> tuple[re.Pattern, Spec | None]:
    text, settings = (rule, {}) if isinstance(rule, str) else rule if _is_pair(rule) else (None, None)
    if text is None:
        raise TypeError(f"a rule is a pattern or (pattern, settings or None), not {rule!r}")
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(f"rule '{text}' is no regular expression: {error}") from None
    if settings is None:
        return pattern, None
    known = {field.name for field in dataclasses.fields(default)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise TypeError(f"rule '{text}' sets {', '.join(unknown)}; the settings are {', '.join(sorted(known))}")
    return pattern, dataclasses.replace(default, **settings)


def _is_pair(rule: Any) -> bool:
    if not isinstance(rule, tuple) or len(rule) != 2:
        return False
    return isinstance(rule[0], str) and (rule[1] is None or isinstance(rule[1], Mapping))
