"""A pickle machine that builds plain data and inert stand-ins, and runs nothing.

Python's own unpickler imports and calls what a file names. This one is a small interpreter of the binary opcodes: a
name in the file is looked up in the caller's table, only builders of that table are ever called, and whatever is not in
it is refused by name. Nothing is allocated by a number that the file states, and the number of steps is bounded.
"""

import dataclasses
import pickletools
import struct
from collections.abc import Callable
from typing import Any

from wmq_jax.io.wording import plain

# Seeds of random generators are the longest integers in checkpoints: 64 bits and a sign.
_LONGEST_INTEGER = 16
# Longer ones can be chosen to have equal hashes, and a dictionary of them takes for ever.
_LARGEST_KEY = 1 << 60
_MOST_ARGUMENTS = 32  # of a call; what is built here takes fewer than ten
# Opcodes of a pickle; a checkpoint with its optimizer has some hundred thousand. Each may take 300 bytes and 3 us.
_MOST_STEPS = 3_000_000
_SET, _FROZEN_SET = "builtins.set", "builtins.frozenset"
_KEYS = (str, float, bool, bytes, type(None))


class PickleError(ValueError):
    """The pickle is damaged, or asks for something that is refused."""


@dataclasses.dataclass(frozen=True, eq=False)
class Builder:
    """What a name in a pickle stands for, where it may be called.

    Attributes:
      name: the name, for messages.
      build: a pure function of the arguments in the file.
    """

    name: str
    build: Callable[..., Any]


@dataclasses.dataclass(eq=False)
class StandIn:
    """An object whose class is not imported: what the file says of it, and no behaviour.

    Attributes:
      class_name: dotted name of its class.
      args: what it was made from.
      state: its attributes, as the file gives them; None without any.
    """

    class_name: str
    args: tuple[Any, ...] = ()
    state: Any = None


def stand_in(name: str) -> Builder:
    """The builder of stand-ins of the class `name`."""
    return Builder(name, lambda *args: StandIn(name, args))


def read_pickle(data: bytes, resolve: Callable[[str, str], Any], persistent: Callable[[Any], Any] | None = None) -> Any:
    """Reads one pickle of protocol 2 or later.

    Args:
      data: the pickle.
      resolve: what a (module, name) in it stands for: a `Builder`, or a value that cannot be called. It raises
        `PickleError` for what it refuses.
      persistent: what a persistent id stands for; None refuses them.

    Returns:
      Plain Python data, stand-ins, and what `resolve`, the builders and `persistent` return. It may refer to itself and
      be nested to any depth.

    Raises:
      PickleError: the pickle is damaged or asks for something that is refused; the message names it.
    """
    return _Machine(data, resolve, persistent).run()


class _Mark:
    """The bottom of a group of values on the stack."""


_MARK = _Mark()


class _Machine:
    """Stack, memo and position of one run."""

    def __init__(self, data, resolve, persistent):
        self._data, self._at = data, 0
        self._resolve, self._persistent = resolve, persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(_MOST_STEPS):
            opcode = self._take(1)
            if opcode == b".":
                return self._pop()
            handler = _HANDLERS.get(opcode)
            if handler is None:
                known = pickletools.code2op.get(opcode.decode("latin-1"))
                name = known.name if known else f"0x{opcode.hex()}"
                raise PickleError(f"its pickle has the opcode {name}, which is refused")
            handler(self)
        raise PickleError(f"its pickle has more than {_MOST_STEPS} steps, which no weights take")

    # Reading

    def _take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) != count:
            raise PickleError("its pickle ends too early")
        self._at += count
        return piece

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _text(self, size: int) -> str:
        try:
            return self._take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise PickleError("its pickle has a string that is no UTF-8") from None

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at)
        if end < 0:
            raise PickleError("its pickle ends too early")
        text = self._text(end - self._at)
        self._at += 1
        return text

    # Stack and memo

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise PickleError("its pickle takes a value that is not there")
        return self._stack.pop()

    def _pop_group(self) -> list[Any]:
        values = []
        while self._stack:
            value = self._stack.pop()
            if value is _MARK:
                return values[::-1]
            values.append(value)
        raise PickleError("its pickle closes a group that it never opened")

    def _top(self, kinds: tuple[type, ...], doing: str) -> Any:
        value = self._pop()
        self._push(value)
        if not isinstance(value, kinds):
            raise PickleError(f"its pickle {doing} a {type(value).__name__}, which is refused")
        return value

    def _put(self, index: int) -> None:
        self._memo[index] = self._top((object,), "remembers")

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise PickleError("its pickle recalls a value that it never stored")
        self._push(self._memo[index])

    # Containers

    def _tuple(self, count: int) -> None:
        self._push(tuple(self._pop() for _ in range(count))[::-1])

    def _append(self, values: list[Any]) -> None:
        target = self._top((list, StandIn), "appends to")
        if isinstance(target, list):
            target.extend(values)

    def _add(self, values: list[Any]) -> None:
        target = self._top((StandIn,), "adds to")
        if target.class_name != _SET or not target.args or not isinstance(target.args[0], list):
            raise PickleError(f"its pickle adds to a {plain(target.class_name)}, which is refused")
        target.args[0].extend(values)

    def _set_items(self, values: list[Any]) -> None:
        target = self._top((dict, StandIn), "sets items of")
        # A stand-in of a class that is a mapping forgets its items.
        if isinstance(target, dict):
            target.update(_pairs(values))

    # Names and objects

    def _global(self, module: str, name: str) -> None:
        self._push(self._resolve(module, name))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("its pickle asks for a name that is no string")
        self._global(module, name)

    def _call(self) -> None:
        args, function = self._pop(), self._pop()
        if not isinstance(function, Builder) or not isinstance(args, tuple):
            raise PickleError(f"its pickle calls a {type(function).__name__}, which is refused")
        # Arguments are copied at every call, and a file may repeat a long tuple as often as it likes.
        if len(args) > _MOST_ARGUMENTS:
            raise PickleError(f"its pickle calls {plain(function.name)} with arguments that it does not take")
        try:
            self._push(function.build(*args))
        except TypeError:
            raise PickleError(f"its pickle calls {plain(function.name)} with arguments that it does not take") from None

    def _build(self) -> None:
        state = self._pop()
        target = self._top((StandIn, dict), "sets the state of")
        # Ordered dictionaries carry a note on versions of modules, which nothing here needs.
        if isinstance(target, StandIn):
            target.state = state

    def _persistent_id(self) -> None:
        if self._persistent is None:
            raise PickleError("its pickle refers to data outside of it, which is refused")
        self._push(self._persistent(self._pop()))

    def _protocol(self) -> None:
        if not 2 <= (protocol := self._number("<B")) <= 5:
            raise PickleError(f"its pickle has protocol {protocol}; 2 to 5 are accepted")

    def _integer(self, size: int) -> None:
        if size > _LONGEST_INTEGER:
            raise PickleError(f"its pickle has an integer of {size} bytes; {_LONGEST_INTEGER} are accepted")
        self._push(int.from_bytes(self._take(size), "little", signed=True))


def _pairs(values: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn as a dictionary."""
    if len(values) % 2:
        raise PickleError("its pickle has a key without a value")
    # No tuples: their hash recurses through them in C, and is the same in every process, so that a file could choose
    # thousands of keys which collide.
    for key in values[::2]:
        if not _is_key(key):
            raise PickleError(f"its pickle has a dictionary key of type {type(key).__name__}, which is refused")
    return dict(zip(values[::2], values[1::2]))


def _is_key(part: Any) -> bool:
    """Whether this may be a dictionary key: a scalar, or an object that is hashed by its identity."""
    if type(part) is int:
        return abs(part) < _LARGEST_KEY
    return isinstance(part, _KEYS) or type(part).__hash__ is object.__hash__


_HANDLERS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _Machine._protocol,
    b"\x95": lambda m: m._number("<Q"),  # FRAME: a hint for buffering
    b"(": lambda m: m._push(_MARK),
    b"0": lambda m: m._pop(),
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"J": lambda m: m._push(m._number("<i")),
    b"K": lambda m: m._push(m._number("<B")),
    b"M": lambda m: m._push(m._number("<H")),
    b"\x8a": lambda m: m._integer(m._number("<B")),
    b"G": lambda m: m._push(m._number(">d")),
    b"X": lambda m: m._push(m._text(m._number("<I"))),
    b"\x8c": lambda m: m._push(m._text(m._number("<B"))),
    b"\x8d": lambda m: m._push(m._text(m._number("<Q"))),
    b"B": lambda m: m._push(m._take(m._number("<I"))),
    b"C": lambda m: m._push(m._take(m._number("<B"))),
    b"\x8e": lambda m: m._push(m._take(m._number("<Q"))),
    b"\x96": lambda m: m._push(m._take(m._number("<Q"))),  # BYTEARRAY8, which nobody here changes
    b"q": lambda m: m._put(m._number("<B")),
    b"r": lambda m: m._put(m._number("<I")),
    b"\x94": lambda m: m._put(len(m._memo)),
    b"h": lambda m: m._get(m._number("<B")),
    b"j": lambda m: m._get(m._number("<I")),
    b")": lambda m: m._push(()),
    b"]": lambda m: m._push([]),
    b"}": lambda m: m._push({}),
    b"\x8f": lambda m: m._push(StandIn(_SET, ([],))),  # a list of its items: nothing here is looked up in it
    b"\x90": lambda m: m._add(m._pop_group()),
    b"\x91": lambda m: m._push(StandIn(_FROZEN_SET, (m._pop_group(),))),
    b"t": lambda m: m._push(tuple(m._pop_group())),
    b"l": lambda m: m._push(m._pop_group()),
    b"d": lambda m: m._push(_pairs(m._pop_group())),
    b"\x85": lambda m: m._tuple(1),
    b"\x86": lambda m: m._tuple(2),
    b"\x87": lambda m: m._tuple(3),
    b"a": lambda m: m._append([m._pop()]),
    b"e": lambda m: m._append(m._pop_group()),
    b"s": lambda m: m._set_items([m._pop(), m._pop()][::-1]),
    b"u": lambda m: m._set_items(m._pop_group()),
    b"c": lambda m: m._global(m._line(), m._line()),
    b"\x93": _Machine._stack_global,
    b"R": _Machine._call,
    b"\x81": _Machine._call,  # NEWOBJ: a class and its arguments
    b"b": _Machine._build,
    b"Q": _Machine._persistent_id,
}
