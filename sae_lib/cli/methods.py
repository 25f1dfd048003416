"""Command-line options for methods, made from the methods' own settings and docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_origin, get_type_hints

import typer

from sae_lib.methods import METHODS, Frozen, Method
from sae_lib.training import train

if TYPE_CHECKING:
    MethodName = str
else:
    # a choice of what there is
    MethodName = Literal[tuple(METHODS)]

# "name: text" of a docstring, with the indented lines that go on with it
ENTRY = re.compile(r"^([a-z_, ]+): (.+(?:\n    .+)*)", re.MULTILINE)


class Setting(NamedTuple):
    """One setting, shared by all methods that have a field of its name.

    field: its name. flag: such as ``--target-frequency``. types: method → type of its field.
    help: what the option says of itself.
    """

    field: str
    flag: str
    types: dict[str, Any]
    help: str

    @property
    def option_type(self) -> Any:
        """What the command line reads: the widest of the types; text where that is a list."""
        types = set(self.types.values())
        if any(get_origin(t) is tuple for t in types):
            return str
        return float if float in types else types.pop()


def _described(cls: type[Method]) -> dict[str, str]:
    """First sentence on each setting, from the docstring."""
    found: dict[str, str] = {}
    for names, text in ENTRY.findall(inspect.getdoc(cls) or ""):
        sentence = re.split(r"(?<=[^.])[.;](?:\s|$)", " ".join(text.split()))[0].replace("``", "")
        if not sentence.startswith("as for"):
            found |= dict.fromkeys(names.split(", "), sentence)
    return found


@cache
def settings() -> dict[str, Setting]:
    """Every setting of every method by the name of its option.

    That is the name of its field, with ``method_`` before it where training has an option of that name.
    """
    taken = inspect.signature(train).parameters
    fields: dict[str, dict[str, Any]] = {}
    texts: dict[str, str] = {}
    for name, cls in METHODS.items():
        hints = get_type_hints(cls)
        texts = _described(cls) | texts
        for field in dataclasses.fields(cls):
            fields.setdefault(field.name, {})[name] = hints[field.name]
    made = {}
    for field_name, types in fields.items():
        key = f"method_{field_name}" if field_name in taken else field_name
        text = f"{', '.join(types)}: {texts.get(field_name, field_name)}."
        made[key] = Setting(field_name, f"--{key.replace('_', '-')}", types, text)
    return made


def with_method_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that ends in ``**options`` one option for each setting, None where it is not given."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    made = []
    for key, setting in settings().items():
        flag = setting.flag
        flags = f"{flag}/{flag.replace('--', '--no-', 1)}" if setting.option_type is bool else flag
        option = typer.Option(flags, help=setting.help)
        annotation = Annotated[setting.option_type | None, option]  # type: ignore[name-defined]
        made.append(
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + made
    )
    return command


def method_of(name: str, options: dict[str, Any], freeze: str | None = None) -> Method:
    """The method with the options that were given; the others keep the method's defaults.

    options: as :func:`with_method_options` passes them on. freeze: part for :class:`Frozen`, or None.
    Raises ValueError for an option of another method, and where the method refuses a value.
    """
    known = settings()
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if name not in known[key].types:
            flags = ", ".join(s.flag for s in known.values() if name in s.types)
            raise ValueError(f"{known[key].flag} does not apply to method {name}; it has {flags}")
    method = METHODS[name](
        **{known[key].field: _converted(known[key], name, value) for key, value in given.items()}
    )
    return Frozen(method, freeze.replace("-", " ")) if freeze else method


def _converted(setting: Setting, method: str, value: Any) -> Any:
    """The value as the type that the method expects."""
    expected = setting.types[method]
    if get_origin(expected) is tuple:
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            raise ValueError(
                f"{setting.flag} is {value!r}; expected numbers with commas, such as 0.1,0.5"
            ) from None
    # one option serves methods that count whole numbers and methods that do not
    return int(value) if expected is int and value == int(value) else value
