"""Foreign text in messages: printable, on one line and short, whatever a file says."""

from collections.abc import Iterable


def plain(text: object, most: int = 100) -> str:
    """Text of somebody else's file, or an error about it: unprintable characters as escapes, cut after `most`."""
    text = str(text)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1])
    return shown if len(shown) <= most else f"{shown[:most]}..."


def quoted(value: object, most: int = 100) -> str:
    """A value of somebody else's file: text in quotation marks, anything else as Python writes it; see `plain`."""
    if isinstance(value, str):
        return f"'{plain(value, most)}'"
    try:
        return plain(repr(value), most)
    except ValueError:  # integers of thousands of digits
        return f"a {type(value).__name__} too long to show"


def listed(names: Iterable[object], most: int = 20, separator: str = ", ") -> str:
    """The first `most` of some names of somebody else's file, and how many more there are; see `plain`."""
    names = list(names)
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return separator.join([plain(name) for name in names[:most]] + more)


def counted(count: int, noun: str) -> str:
    """'1 episode', '2 episodes'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
