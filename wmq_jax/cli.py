"""What the command-line programs share: config files, flags, and one clear sentence for what the user got wrong."""

import contextlib
import importlib.util
import inspect
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

USAGE_EXIT = 2
_USER_ERRORS = (ValueError, OSError)
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
# As absl reads them.
_BOOLEANS = ("true", "t", "1", "false", "f", "0")


def fail(error: Exception | str) -> None:
    """Ends the program with the message alone, on standard error."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"  # without the number
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(USAGE_EXIT)


@contextlib.contextmanager
def one_sentence_errors(kinds: type[Exception] | tuple[type[Exception], ...] = _USER_ERRORS) -> Iterator[None]:
    """Reports what the user got wrong without a traceback.

    Only preparation belongs inside: checks that raise ValueError or OSError on purpose. Errors of the computation
    keep their traceback. Where files are written of what is computed, ``kinds`` is OSError alone.
    """
    try:
        yield
    except kinds as error:
        fail(error)


def named_folder(flag: str, given: str | None, usual: str) -> str:
    """The folder of a flag, or the usual one where there is no such flag.

    Raises:
      ValueError: the flag is there and empty, as a shell variable that is not set makes it.
    """
    if given is None:
        return usual
    if not given.strip():
        raise ValueError(f"--{flag} is empty; name a folder, or leave it out for {usual}")
    return given


def load_config(where: str) -> ml_collections.ConfigDict:
    """The config of ``FILE.py`` or ``FILE.py:MODE``: what its ``get_config()`` or ``get_config(MODE)`` returns, locked.

    Raises:
      ValueError: there is no such file, it is no config file, it is not Python, or it does not know the mode.
    """
    file, _, mode = where.partition(":")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"--config={where}: there is no config file {file}; give FILE.py or FILE.py:MODE")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"--config={where}: line {error.lineno} of {error.filename}: {error.msg}") from None
    except ImportError as error:
        raise ValueError(f"--config={where}: {error}") from None
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config={where}: {file} has no function get_config")
    arguments = [mode] if mode else []
    try:
        inspect.signature(module.get_config).bind(*arguments)
    except TypeError:
        words = "has no modes" if mode else "needs a mode: FILE.py:MODE"
        raise ValueError(f"--config={where}: {file} {words}") from None
    config = module.get_config(*arguments)
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(f"--config={where}: get_config of {file} returns no ConfigDict")
    return config.lock()


def _take_config_flag(argv: Sequence[str], default: str) -> tuple[str, list[str]]:
    """The value of the last ``--config``, and the other arguments.

    Raises:
      ValueError: it has no value.
    """
    where, rest, words = default, [], iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("--config", "-config"):
            rest.append(word)
            continue
        where = value if equals else next(words, "")
        if not where or where.startswith("-"):
            raise ValueError("--config has no value; give --config=FILE.py or --config=FILE.py:MODE")
    return where, rest


def _check_fields(config: ml_collections.ConfigDict, where: str, fields: Sequence[str]) -> None:
    """Raises ValueError for what a config lacks of the dotted ``fields``: it is another program's."""
    leaves = [name for name, _ in _leaves(config)]
    lacks = [name for name in fields if not any(f"{leaf}.".startswith(f"{name}.") for leaf in leaves)]
    if lacks:
        more = f" and {len(lacks) - 5} more" if len(lacks) > 5 else ""
        raise ValueError(f"--config={where} is no config of this program: it lacks {', '.join(lacks[:5])}{more}")


def _check_values(config: ml_collections.ConfigDict, where: str, like: Mapping[str, Any], free: Sequence[str]) -> None:
    """Raises ValueError for a field that ``like`` (name -> value) lacks, or that has another kind of value there.

    Args:
      config: what ``--config`` gave.
      where: its name.
      like: the leaves of the program's own config.
      free: groups in which any field may be.
    """
    leaves = {name: value for name, value in _leaves(config) if name.partition(".")[0] not in free}
    unknown = [name for name in leaves if name not in like]
    if unknown:
        raise ValueError(f"--config={where} has fields that this program does not know: {', '.join(unknown[:5])}")
    for name, value in leaves.items():
        kind = type(like[name])
        if kind in _KINDS and type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"--config={where}: {name} must be {_KINDS[kind]}, not {value!r}")


def _reads_as(kind: type, text: str) -> bool:
    if kind is bool:
        return text.lower() in _BOOLEANS
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _check_overrides(config: ml_collections.ConfigDict, argv: Sequence[str]) -> None:
    """Raises ValueError for the first ``--config.path`` that names no field, or gives it another kind of value."""
    for number, word in enumerate(argv):
        name = word.lstrip("-").partition("=")[0]
        negated = name.startswith("noconfig.")  # how absl writes a boolean that is off
        if not word.startswith("-") or not (negated or name.startswith("config.")):
            continue
        holder = config
        for field in name.split(".")[1:]:
            if not isinstance(holder, ml_collections.ConfigDict) or field not in holder:
                known = ", ".join(sorted(holder)) if isinstance(holder, ml_collections.ConfigDict) else "none"
                raise ValueError(f"--{name}: the config has no field {field!r} there; its fields are {known}")
            holder = holder[field]
        if isinstance(holder, ml_collections.ConfigDict):
            raise ValueError(f"--{name} is a group of fields; set one of {', '.join(sorted(holder))} in it")
        if negated:
            if type(holder) is not bool or "=" in word:
                raise ValueError(f"--{name} is for fields that are true or false; give --{name[2:]}=VALUE")
            continue
        value = [word.partition("=")[2]]
        if "=" not in word:
            value = [] if type(holder) is bool else argv[number + 1 : number + 2]
        if type(holder) in _KINDS and value and not _reads_as(type(holder), value[0]):
            raise ValueError(f"--{name} must be {_KINDS[type(holder)]}, not {value[0]!r}")


def run(
    main: Callable[..., None],
    config: str | None = None,
    fields: Sequence[str] = (),
    like: ml_collections.ConfigDict | None = None,
    free: Sequence[str] = (),
) -> None:
    """Parses the flags and runs the program; whatever is wrong with them is one sentence.

    Args:
      main: called without arguments, or with the resolved config as plain dictionaries.
      config: default of ``--config=FILE.py:MODE``; its fields can then be set as ``--config.path=value``. None: the
        program has no config.
      fields: dotted names of the fields that the program needs; a config without one is another program's.
      like: a config of the program: another one has its fields and values of the same kinds. None: the program checks
        that itself.
      free: groups in which a config may have any field.
    """
    logging.set_verbosity(logging.WARNING)
    # A shell leaves the home folder of --name=~/path to the program.
    argv, handle = [re.sub(r"^(--?[\w.]+=)(~(?:/.*)?)$", _at_home, word) for word in sys.argv], None
    with one_sentence_errors():
        if config is not None:
            where, argv = _take_config_flag(argv, config)
            loaded = load_config(where)
            _check_fields(loaded, where, fields)
            if like is not None:
                _check_values(loaded, where, dict(_leaves(like)), free)
            _check_overrides(loaded, argv)
            # Read by ml_collections when the flag is defined: it looks for the overrides itself.
            sys.argv = argv
            handle = _define_config(loaded, where, config)

    def checked(rest: list[str]) -> None:
        if len(rest) > 1:
            fail(f"unknown argument {rest[1]!r}; settings are given as --name=value, see --help")
        try:
            main(*([handle.value.to_dict()] if handle is not None else []))
        except KeyboardInterrupt:
            print("stopped; the same command goes on from what is saved", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            # At once: the device may still compute, and Python's own end takes away what it computes with.
            os._exit(128 + signal.SIGINT)

    app.run(checked, argv=argv, flags_parser=_parse)


def _at_home(match: re.Match[str]) -> str:
    return match[1] + os.path.expanduser(match[2])


def _define_config(loaded: ml_collections.ConfigDict, where: str, default: str) -> Any:
    """The flag under which ml_collections finds the overrides; the file itself was taken from the arguments before."""
    listed = "\n".join(f"--{name}={_as_written(value)}" for name, value in _leaves(loaded, "config"))
    help_text = f"Config file and its mode (default {default}). The fields of {where}, which explains them:\n{listed}"
    try:
        holder = config_flags.DEFINE_config_dict("config", loaded, help_text, lock_config=True)
        # --help lists the flags of the main program only; this one belongs to it.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["config"])
        flags.FLAGS["config"].default_as_str = None  # it would show them a second time
        return holder
    except (TypeError, flags.Error) as error:
        raise ValueError(error) from None


def _leaves(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every field that is no group, by its dotted name, groups after the fields beside them."""
    if not hasattr(config, "keys"):
        yield name, config
        return
    for field in sorted(config, key=lambda field: (hasattr(config[field], "keys"), field)):
        yield from _leaves(config[field], f"{name}.{field}".lstrip("."))


def _as_written(value: Any) -> str:
    """As one gives a value in a shell."""
    return shlex.quote(str(value).lower() if isinstance(value, bool) else str(value))


def overridden() -> list[str]:
    """Dotted names of the config's fields that the command line set; inside a program of `run`."""
    return list(config_flags.get_override_values(flags.FLAGS["config"]))


# absl's words for a value that a flag does not take, and for a flag that must be given.
_ILLEGAL = re.compile(r"flag --(?P<name>[\w.]+)=(?P<value>.*?): (?P<reason>.*)", re.DOTALL)
_REASONS = {
    "Non-boolean argument": "must be true or false",
    "('Non-boolean argument": "must be true or false",
    "invalid literal for int": "must be a whole number",
}


def _own_words(message: str) -> str:
    """What absl says of a flag's value, in a sentence for people where it has none."""
    found = _ILLEGAL.fullmatch(message)
    if not found:
        return message
    name, value, reason = found["name"], found["value"], found["reason"]
    if reason.endswith("must have a value other than None."):
        return f"--{name} must be given: {flags.FLAGS[name].help}"
    for start, words in _REASONS.items():
        if reason.startswith(start):
            return f"--{name} {words}, not {value!r}"
    return message


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(list(argv))
    except SystemExit:  # absl has printed the help and calls that a failure
        sys.exit(0)
    except (flags.Error, TypeError, ValueError) as error:
        return fail(_own_words(str(error)))
