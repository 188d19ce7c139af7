"""From a command line, or from a settings file and a command line, to one checked options object.

In: a dataclass whose base classes are its groups of options, each field made by `option` or `switch`. Out: an instance
with the values given. argparse does all checking, also that of a settings file: its entries are turned into arguments.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from hanorec.errors import DataError
from hanorec.training.bounds import BoundedOption

Kind = TypeVar("Kind")


def option(default: Any, help: str, **argument: Any) -> Any:
    """A dataclass field that is an option. The help ends with the default, unless that is None: then `help` says it.

    argument: `least`, `above`, `most` and `or_word` go to `BoundedOption`, everything else to argparse's
    `add_argument`.
    """
    if default is not None:
        shown = " ".join(default) if isinstance(default, list) else str(default)
        help += f" (default: {shown.lower() if isinstance(default, bool) else shown})"
    metadata = {"action": BoundedOption, "help": help, **argument}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def switch(default: bool | None, help: str) -> Any:
    """An option that is true or false; its bare name means true."""
    return option(default, help, nargs="?", const=True, metavar="true|false")


def parse(kind: type[Kind]) -> Kind:
    """Options from sys.argv: options alone, or a YAML or JSON file and then options, which win over the file.

    Errors: exit status 2 and a usage error for an option that does not exist and a value that it does not take;
    DataError for a file that cannot be read, is no mapping or names an unknown option. Both name the file.
    """
    arguments, given = sys.argv[1:], argparse.Namespace()
    if arguments and Path(arguments[0]).suffix in (".yaml", ".yml", ".json"):
        file = Path(arguments.pop(0))
        given = _parser(kind, file).parse_args(_file_arguments(file, get_type_hints(kind)))
    return kind(**vars(_parser(kind).parse_args(arguments, given)))


def read_options(kind: type[Kind], values: Mapping[str, Any], file: Path) -> Kind:
    """Options from what a file of a run says, checked as if they had been given; those that it lacks are the default.

    Errors: DataError that names file, option and value.
    """
    types = get_type_hints(kind)
    for option in fields(kind):  # type: ignore[arg-type]
        value = values.get(option.name, option.default)
        is_text = value is None or isinstance(value, str) or types[option.name] not in (str, str | None)
        if not is_text or (value is None is not option.default):
            raise DataError(f"{file}: {option.name} cannot be {json.dumps(value)}")
    parser = _parser(kind, file)

    def refuse(message: str) -> NoReturn:
        raise DataError(f"{file}: {message}")

    parser.error = refuse  # type: ignore[method-assign]
    return kind(**vars(parser.parse_args(_arguments(file, values, types))))


def _parser(kind: type, file: Path | None = None) -> HfArgumentParser:
    """A parser with one group a base class of `kind`; its error messages name the file, where there is one."""
    program = Path(sys.argv[0]).name
    parser = HfArgumentParser(
        kind.__bases__,  # type: ignore[arg-type]
        prog=f"{program}: {file}" if file else program,
        usage=f"{program} [settings.yaml] [--option value ...]",
        description=f"{kind.__doc__} A YAML or JSON file can give options, too; those on the command line win.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30),
        allow_abbrev=False,
    )
    for action in parser._actions:
        if isinstance(action, BoundedOption):  # --batch_size is read like --batch-size; help and errors show the latter
            action.option_strings = action.option_strings[-1:]
    return parser


def _file_arguments(file: Path, types: dict[str, type]) -> list[str]:
    """The entries of a settings file as command-line arguments. types: the type of every option, by name."""
    try:
        text = file.read_text(encoding="utf-8")
        # The base loader leaves words as they stand, like a shell: to YAML 1.1, `on` is true and `1e-3` is no number.
        entries = json.loads(text) if file.suffix == ".json" else yaml.load(text, yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{file}: cannot be read as settings: {' '.join(str(error).split())}") from error
    if not isinstance(entries, dict | None):
        raise DataError(f"{file}: must be a mapping of options to values, such as `seed: 3`")
    return _arguments(file, entries or {}, types)


def _arguments(file: Path, entries: Mapping[str, Any], types: dict[str, type]) -> list[str]:
    """Values of options, as a file holds them, as command-line arguments; those that are null are left out."""
    arguments = []
    for key, value in entries.items():
        name = key.replace("-", "_")
        if name not in types:
            close = difflib.get_close_matches(name, types, 1)
            raise DataError(f"{file}: there is no option {key}" + (f"; the closest is {close[0]}" if close else ""))
        if value in (None, "", "~", "null"):
            continue
        if isinstance(value, dict) or (isinstance(value, list) and get_origin(types[name]) is not list):
            raise DataError(f"{file}: {key} takes a single value, not {json.dumps(value)}")
        if isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        else:
            arguments.append(f"--{name}={value}")
    return arguments
