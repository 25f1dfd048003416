"""Command-line options for methods, made from the fields of the methods."""

import dataclasses
import inspect
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_origin, get_type_hints

import typer

from sae_lib.methods import METHODS, Frozen, Method
from sae_lib.training import train

if TYPE_CHECKING:
    MethodName = str
else:
    # a choice among the methods
    MethodName = Literal[tuple(METHODS)]


class Setting(NamedTuple):
    """One setting, shared by all methods that have a field of its name.

    Attributes:
        field: Name of the field.
        flag: Such as ``--target-frequency``.
        types: Method → type of its field.
        help: Description and defaults, by method where they differ.
    """

    field: str
    flag: str
    types: dict[str, Any]
    help: str

    @property
    def option_type(self) -> Any:
        """Type that the command line reads: the widest of the types; text where that is a list."""
        types = set(self.types.values())
        if any(get_origin(t) is tuple for t in types):
            return str
        return float if float in types else types.pop()


@cache
def settings() -> dict[str, Setting]:
    """Return every setting of every method by the name of its option.

    That is the name of its field, with ``method_`` before it where training has an option of that name.
    """
    training = inspect.signature(train).parameters
    methods: dict[str, list[str]] = {}
    for method, cls in METHODS.items():
        for field in dataclasses.fields(cls):
            methods.setdefault(field.name, []).append(method)
    options = {}
    for name, those in methods.items():
        key = f"method_{name}" if name in training else name
        flag = f"--{key.replace('_', '-')}"
        types = {method: get_type_hints(METHODS[method])[name] for method in those}
        texts = _grouped(those, [METHODS[method].helps.get(name, "").rstrip(".") for method in those])
        fields = [METHODS[method].__dataclass_fields__[name] for method in those]
        defaults = _grouped(those, [_shown(field.default, name) for field in fields])
        text = ". ".join(f"{', '.join(group)}: {text}" for text, group in texts.items())
        by_method = [f"{', '.join(group)}: {value}" for value, group in defaults.items()]
        default = "; ".join(by_method if len(defaults) > 1 else defaults)
        options[key] = Setting(name, flag, types, f"{text}.  [default: {default}]")
    return options


def _grouped(methods: list[str], values: list[str]) -> dict[str, list[str]]:
    """Group methods by value, in their order."""
    groups: dict[str, list[str]] = {}
    for method, value in zip(methods, values, strict=True):
        groups.setdefault(value, []).append(method)
    return groups


def _shown(default: Any, name: str) -> str:
    """Write a default as the option takes it."""
    if isinstance(default, bool):
        return name if default else f"no-{name}"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def with_method_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that ends in ``**options`` one option for each setting, None where it is not given."""
    signature = inspect.signature(command, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    for key, setting in settings().items():
        flag = setting.flag
        flags = f"{flag}/{flag.replace('--', '--no-', 1)}" if setting.option_type is bool else flag
        option = typer.Option(flags, help=setting.help)
        annotation = Annotated[setting.option_type | None, option]  # type: ignore[name-defined]
        parameters.append(
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    )
    return command


def method_of(name: str, options: dict[str, Any], freeze: str | None = None) -> Method:
    """Return the method with the options that were given and its own defaults for the others.

    The options are those of :func:`with_method_options`; ``freeze`` is a part for :class:`Frozen`. ValueError
    for an option that belongs to another method, or a value that the method refuses.
    """
    by_option = settings()
    values = {key: value for key, value in options.items() if value is not None}
    for key in values:
        if name not in by_option[key].types:
            flags = ", ".join(s.flag for s in by_option.values() if name in s.types)
            raise ValueError(f"{by_option[key].flag} does not apply to method {name}; it has {flags}")
    method = METHODS[name](
        **{by_option[key].field: _converted(by_option[key], name, value) for key, value in values.items()}
    )
    return Frozen(method, freeze.replace("-", " ")) if freeze else method


def _converted(setting: Setting, method: str, value: Any) -> Any:
    """Convert a value to the type that the method expects."""
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
