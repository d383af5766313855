"""Parts by name: find the network, sampler or data set that a config names."""

import contextlib
import difflib
import functools
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

OF_FLAX = ("parent", "name")  # fields of every module, which no config sets


def find(
    name: str, places: Sequence[str], field: str, fits: Callable[[Any], bool] = lambda part: True
) -> Any:
    """Return the object called `name` in one of some packages, or at a dotted path.

    Args:
        name: one of
            - the name of a public object of a module in `places`: "DiT_S";
            - the module's and the object's name, if several modules have it: "r3gan.Generator";
            - a dotted path of anything that can be imported: "my_package.my_module.MyUNet".
        places: packages or modules, by dotted path.
        field: what the error calls the name: "config.model.name".
        fits: tells which objects the error lists as choices, to leave out helpers.

    Raises:
        ValueError: the object does not exist, or several modules have one.
    """
    if "." in name:
        for path in (*(f"{place}.{name}" for place in places), name):
            if (found := _import(path)) is not None:
                return found
        raise ValueError(f"{field} is {name!r}, {_missing(name, places, fits)}")
    matches = [module for module in modules_in(places) if name in public(module)]
    objects = {id(vars(module)[name]): vars(module)[name] for module in matches}
    if len(objects) == 1:
        return objects.popitem()[1]
    if matches:
        paths = [f"{module.__name__.rpartition('.')[2]}.{name}" for module in matches]
        raise ValueError(
            f"{field} is {name!r}, which several modules have; take one of {', '.join(paths)}"
        )
    raise ValueError(f"{field} is {name!r}; {_choices(name, places, fits)}")


def bind(
    fields: Mapping[str, Any], places: Sequence[str], field: str, called_with: Sequence[str] = ()
) -> functools.partial:
    """Return the object that `fields["name"]` names, bound to the other fields as keywords.

    A field that is itself a dictionary with a name is made first, from the same places. Where the
    object takes a function, the field may be its name. A dictionary that leaves arguments of the
    function open, such as `{"name": "rescaled", "eta": 0.5}`, then binds the others.

    Args:
        places, field: as in `find`; `field` without ".name".
        called_with: parameters that the caller gives later, so that a field cannot set them.

    Raises:
        ValueError: the object does not exist, or does not take an argument.
    """
    return bind_to(
        find(fields["name"], places, f"{field}.name"), fields, places, field, called_with
    )


def bind_to(
    function: Callable,
    fields: Mapping[str, Any],
    places: Sequence[str],
    field: str,
    called_with: Sequence[str] = (),
) -> functools.partial:
    """Return a function bound to `fields` as `bind` does, whatever name they have."""

    takes = inspect.signature(function).parameters

    def argument(name: str, value: Any) -> Any:
        takes_function = name in takes and _takes_function(takes[name].annotation)
        # hasattr, because ml_collections' dictionaries are no Mappings.
        if hasattr(value, "keys") and "name" in value:
            made = bind(dict(value), places, f"{field}.{name}")
            return made if takes_function and required(made) else made()
        if takes_function and isinstance(value, str):
            return find(value, places, f"{field}.{name}")
        if isinstance(value, list | tuple):  # JSON has no tuples
            return tuple(argument(name, each) for each in value)
        if isinstance(value, str) and name in takes:
            refuse_text(value, takes[name], f"{field}.{name}")
        return value

    for name, value in fields.items():
        if isinstance(value, int | float) and name in takes:
            _refuse_number(value, takes[name], f"{field}.{name}")
    arguments = {name: argument(name, value) for name, value in fields.items() if name != "name"}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    free = [name for name in takes if name not in (*called_with, *OF_FLAX)]
    if (unknown := sorted(arguments.keys() - set(free))) and not takes_any:
        nearest = difflib.get_close_matches(unknown[0], free, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(
            f"{field}.{unknown[0]} is set, which {fields.get('name', function.__name__)} does not "
            f"take; it takes {', '.join(free) or 'no arguments'}{hint}"
        )
    return functools.partial(function, **arguments)


def _takes_function(annotation: Any) -> bool:
    """Return whether a parameter with this annotation may be a function, and no text."""
    members = _members(annotation)
    is_function = [each is Callable or typing.get_origin(each) is Callable for each in members]
    return any(is_function) and str not in members


def _members(annotation: Any) -> tuple:
    """Return the types of a union, or the one type that is none."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def refuse_text(value: str, parameter: inspect.Parameter, field: str) -> None:
    """Raise ValueError if a parameter is a number or a truth value by its annotation.

    Without an annotation its default decides. The text "false" would count as true.
    """
    annotated = parameter.annotation is not parameter.empty
    given = _members(parameter.annotation if annotated else type(parameter.default))
    for kinds, words in (((bool,), "True or False"), ((int, float), "a number")):
        if str not in given and any(each in kinds for each in given):
            raise ValueError(f"{field} is {value!r}; it must be {words}")


def _refuse_number(value: int | float, parameter: inspect.Parameter, field: str) -> None:
    """Raise ValueError if a parameter is several values by its annotation."""
    given = [each for each in _members(parameter.annotation) if each is not types.NoneType]
    if all((typing.get_origin(each) or each) in (tuple, list, Sequence) for each in given):
        raise ValueError(f"{field} is {value!r}; it takes several values, as ({value!r},)")


def required(function: Callable) -> set[str]:
    """Return the parameters of a function that have no default and are not bound yet."""
    takes = inspect.signature(function).parameters.values()
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return {each.name for each in takes if each.default is each.empty and each.kind not in variable}


def public(module: ModuleType) -> dict[str, Any]:
    """Return what a module or its submodules define, by name, except names with an underscore."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and (getattr(value, "__module__", None) or "").startswith(module.__name__)
    }


def modules_in(places: Sequence[str]) -> Iterator[ModuleType]:
    """Yield the places and, for packages, all modules in them."""
    for place in places:
        module = importlib.import_module(place)
        yield module
        for each in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{place}."):
            yield importlib.import_module(each.name)


def _import(path: str) -> Any:
    """Return the object at a dotted path, or None; errors inside an imported module are raised."""
    module_path, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_path)
    except ModuleNotFoundError as error:
        if error.name and f"{module_path}.".startswith(f"{error.name}."):
            return None
        raise  # the module exists, and something that it imports is missing
    return getattr(module, name, None)


def _missing(name: str, places: Sequence[str], fits: Callable[[Any], bool]) -> str:
    """Return what is not there of a dotted path: the module, or the object in the module."""
    module_path, _, last = name.rpartition(".")
    for path in (*(f"{place}.{module_path}" for place in places), module_path):
        with contextlib.suppress(ModuleNotFoundError):
            defined = public(importlib.import_module(path))
            there = ", ".join(each for each, part in defined.items() if fits(part))
            return f"and the module {path} has no {last}; it has {there or 'no such part'}"
    paths = [getattr(importlib.import_module(place), "__path__", ()) for place in places]
    modules = [each.name for path in (None, *paths) for each in pkgutil.iter_modules(path)]
    first = module_path.partition(".")[0]
    nearest = difflib.get_close_matches(first, [each for each in modules if each[0] != "_"], n=1)
    hint = f"did you mean {nearest[0]}? " if nearest and nearest != [first] else ""
    return (
        f"and there is no module {module_path}; {hint}start the command in the folder that holds "
        "the module, or add that folder to PYTHONPATH"
    )


def _choices(name: str, places: Sequence[str], fits: Callable[[Any], bool]) -> str:
    """Return what may stand in place of a wrong name: all that fits, or the nearest of many."""
    names: dict[str, list[str]] = {}  # with the modules that have an object of this name
    for module in modules_in(places):
        for each, part in public(module).items():
            if fits(part) and part.__module__ == module.__name__:
                names.setdefault(each, []).append(module.__name__.rpartition(".")[2])
    there = [
        path
        for each, modules in names.items()
        for path in ([each] if len(modules) == 1 else [f"{module}.{each}" for module in modules])
    ]
    last = name.rpartition(".")[2]
    nearest = difflib.get_close_matches(last, there, n=8, cutoff=0.0)
    few = len(there) <= 60
    shown = (
        f"there are {', '.join(there)}"
        if few
        else f"the nearest in {' and '.join(places)} are {', '.join(nearest)}"
    )
    close = difflib.get_close_matches(last, there, n=1)
    hint = f"did you mean {close[0]!r}? " if close and few else ""
    return f"{hint}{shown}; or give a dotted path, as my_package.my_module.{last}"
