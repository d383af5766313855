"""The flag --config: a config file. --config.FIELD sets its fields and optional arguments."""

import contextlib
import difflib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from experiments.configuration.fields import (
    ACCEPTED,
    check_fields,
    field_paths,
    known_fields,
    missing_field,
    nearest,
    value_at,
)
from experiments.configuration.kinds import KINDS_BY_FIELD, parts_for_field

CHECKOUT = str(Path(__file__).parents[2])
PARTS_WITH_ANY_FIELD = ("evaluation.measures", "averages", "data.options")
# ml_collections' words for a value of another type than a field's.
NO_CAST = re.compile(
    r"override field '(.*?)'.* original type (.*) and .* casted to type <class '(?:\w+\.)*(\w+)'>",
    re.S,
)


def define_config(help_string: str, **options: Any) -> flags.FlagHolder:
    """Define --config, which a program must be given.

    Args:
        options: of `DEFINE_config_file`.
    """
    if CHECKOUT not in sys.path:  # so that a config may start from another one in any folder
        sys.path.append(CHECKOUT)
    options |= dict(lock_config=False, accept_new_attributes=True)
    holder = config_flags.DEFINE_config_file("config", None, help_string, **options)
    values = options.get("flag_values", flags.FLAGS)
    flags.mark_flag_as_required("config", values)
    # So that the program's --help shows it.
    values.register_key_flag_for_module(sys.argv[0], values["config"])
    return holder


def check_overrides(values: flags.FlagValues = flags.FLAGS) -> None:
    """Check the fields that flags set, and drop arguments that a newly named part does not take.

    A field may be new if it is one of these. Whether the part or the data set takes it is checked
    where it is made.

    - a measure: `--config.evaluation.measures.vgg16=VGG16Distance`
    - an average: `--config.averages.wide="{'name':'PowerFunction','width':0.1}"`
    - an argument of a named part: `--config.sampling.sampler.eta=1.0`
    - an option of the data set: `--config.data.options.language=fr`
    - another field of the data: `--config.data.sample_rate=8000`

    Raises:
        ValueError: a field is neither in the config file nor an argument of a named part; or as of
            `check_fields`.
        FileNotFoundError: there is no such config file.
    """
    if "config" not in values or values["config"].value is None:
        return
    flag, config = values["config"], values["config"].value
    overrides = config_flags.get_override_values(flag)
    file = config_flags.get_config_filename(flag)
    original = load_config(file)
    for path in overrides:
        _check_field(path, config, original)
    check_fields(config, file.partition(":")[0], overrides)
    for path, name in overrides.items():
        field, _, last = path.rpartition(".")
        if last == "name" and field in KINDS_BY_FIELD and value_at(original, path) != name:
            _drop_arguments(value_at(config, field), name, field, overrides)
    config.lock()


def _describe_missing(path: Path) -> str:
    """Return the error text for a config file that does not exist."""
    folders = Path("configs"), path.parent  # the first for a bare name, such as digits_flow
    there = {each.stem: each for folder in folders for each in folder.glob("*.py")}
    nearest = difflib.get_close_matches(path.stem, there, n=1)
    hint = f"; did you mean {there[nearest[0]].absolute()}?" if nearest else ""
    return f"--config names {path.absolute()}, and there is no such file{hint}"


def load_config(argument: str) -> ConfigDict:
    """Return the config that a file gives, "FILE.py:CHOICE", without what flags change.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file fails, or gives no config, or has no choices.
    """
    path, _, choice = argument.partition(":")
    if not Path(path).is_file():
        raise FileNotFoundError(_describe_missing(Path(path)))
    spec = importlib.util.spec_from_file_location("config_file", Path(path).absolute())
    module = importlib.util.module_from_spec(spec)
    config = None
    with _faults_of(spec.origin):
        spec.loader.exec_module(module)
        if callable(get_config := getattr(module, "get_config", None)):
            _check_choice(get_config, path, choice)
            config = get_config(*([choice] if choice else []))
    if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
        raise ValueError(
            f"--config names {Path(path).absolute()}, which needs a function get_config that "
            "returns a ml_collections.ConfigDict that is not frozen, as the files of configs/ have"
        )
    return config


def _check_choice(get_config: Callable, path: str, choice: str) -> None:
    try:
        inspect.signature(get_config).bind(*([choice] if choice else []))
    except TypeError:
        if choice:
            text = (
                f"flag --config={path}:{choice}: this config has no choices, so leave out :{choice}"
            )
        else:
            text = f"--config={path} needs one of its choices, as --config={path}:CHOICE"
        raise ValueError(text) from None


@contextlib.contextmanager
def _faults_of(file: str) -> Iterator[None]:
    """Say in one line what fails in a config file, and where; keep the words of its ValueErrors."""
    try:
        yield
    except Exception as error:
        places = traceback.extract_tb(error.__traceback__)
        if isinstance(error, ValueError) and (places[-1].line or "").startswith("raise"):
            raise
        own = [f"line {each.lineno}: {each.line}" for each in places if each.filename == file]
        if isinstance(error, SyntaxError) and error.filename == file:
            own = [f"line {error.lineno}: {(error.text or '').strip()}"]
        inner, where = places[-1], ""
        if own and inner.filename != file and Path(inner.filename).exists():
            where = f" ({inner.filename}, line {inner.lineno})"
        place = f"{file}, {own[-1]}" if own else file
        words = _describe_fault(error) or _named(error, file) + where
        raise ValueError(f"{place}: {words}") from error


def _named(error: Exception, file: str) -> str:
    hint = ""
    if isinstance(error, ImportError):
        hint = (
            "; start the command in the folder that holds the module, or add that folder to "
            "PYTHONPATH, and import it by its whole name"
        )
    own = isinstance(error, SyntaxError) and error.filename == file
    text = error.msg if own else error  # that of another file names it and the line
    return f"{type(error).__name__}: {text}{hint}"


def _describe_fault(error: Exception) -> str | None:
    """Return what ml_collections refuses, in the words of flags; None for other errors."""
    if cast := NO_CAST.search(str(error)):
        words = {kind.__name__: text for kind, (_, text) in ACCEPTED.items()}
        field, given, needed = cast.groups()
        if needed == "ConfigDict":
            example = f", as {field}.name" if "'str'" in given else ""
            return f"{field} has fields of its own, so set those{example}"
        return f"{field} must be {words.get(needed, needed)}"
    if missing := missing_field(error):
        return f"there is no field {missing}"
    return None


def _check_field(path: str, config: ConfigDict, original: ConfigDict) -> None:
    parent, _, name = path.rpartition(".")
    there = value_at(original, parent)
    known = there is not None and (name in there or not len(there))  # an empty part takes any field
    if parent == "data":  # its name is a loader, which takes `options` alone
        named = path in known_fields()
    else:
        named = parent and "name" in (value_at(config, parent) or ())
    if known or named or parent in PARTS_WITH_ANY_FIELD:
        return
    raise ValueError(_describe_unknown(path, original))


def field_called(name: str) -> str | None:
    """Return the path of the field that has a name, if any: of several, that of fewest parts."""
    config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
    there = list(field_paths(config)) if config is not None else []
    named = [each for each in there if each.rpartition(".")[2] == name]
    return min(named, key=lambda path: path.count("."), default=None)


def _describe_unknown(path: str, config: ConfigDict) -> str:
    """Return the error text for a field that does not exist, with the nearest existing field."""
    if meant := nearest(path, list(field_paths(config))):
        return f"the config has no field {path!r}; did you mean --config.{meant}?"
    part = path
    while (owner := part.rpartition(".")[0]) and not hasattr(value_at(config, owner), "keys"):
        part = owner
    fields = value_at(config, owner)
    unset = part != path and value_at(config, part) is None and owner != "data"
    if unset and ("name" in fields or owner in PARTS_WITH_ANY_FIELD):
        value = f"\"{{'name':…,'{path.removeprefix(f'{part}.')}':…}}\""
        return f"the config has no field {path!r}; set {part} as a whole: --config.{part}={value}"
    return f"the config has no field {path!r}; {owner or 'it'} has {', '.join(fields)}"


def describe_unknown_flag(argv: Sequence[str]) -> str | None:
    """Return the error text for a flag --config.FIELD that is in no part of the config, if any.

    Raises:
        FileNotFoundError, ValueError: as of `load_config`.
    """
    values = {}
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        values[name] = value if equals else following
    if not values.get("config"):
        return None
    config = load_config(values["config"])
    fields = [name.removeprefix("config.") for name in values if name.startswith("config.")]
    in_no_part = [
        field
        for field in fields
        if "." in field and not hasattr(value_at(config, field.rpartition(".")[0]), "keys")
    ]
    return _describe_unknown(in_no_part[0], config) if in_no_part else None


def _drop_arguments(part: ConfigDict, name: str, field: str, overrides: Mapping[str, Any]) -> None:
    """Remove the config file's arguments that the part now named does not take."""
    takes = {}
    for found in parts_for_field(name, field):
        takes |= inspect.signature(found).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        return
    kept = {"name", "shift", "variates"} if field == "times" else {"name"}
    for argument in list(part.keys()):
        if argument not in kept | takes.keys() and f"{field}.{argument}" not in overrides:
            del part[argument]
