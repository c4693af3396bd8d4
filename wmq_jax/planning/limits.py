"""Ranges that settings keep to, refused in one sentence, and the largest that plans may be."""

# No plan needs more. Beyond them arrays do not fit and counters overflow, or a slip of the finger takes days to show.
MAX_HORIZON = 100
MAX_ITERATIONS = 1000
MAX_STEPS = 10_000
MAX_SAMPLES = 1_000_000


def check_range(where: str, value: int | float, least: int | float, most: int | float) -> int | float:
    """The value, if it is within ``least..most``.

    Args:
      where: what the message calls it.
      value: the value; NaN is in no range.
      least, most: the ends, which are accepted.

    Raises:
      ValueError: it is not.
    """
    if not least <= value <= most:
        raise ValueError(f"{where} must be {least}..{most}, not {value}")
    return value


def check_positive(where: str, value: float, most: float) -> float:
    """The value, if it is more than 0 and at most ``most``.

    Raises:
      ValueError: it is not; ``where`` names it.
    """
    if not 0 < value <= most:
        raise ValueError(f"{where} must be more than 0 and at most {most}, not {value}")
    return value
