"""Configuration: YAML validated into dataclasses, dotted overrides, and an error that names the nearest known key."""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
import types
import typing
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml

from speakerkit.errors import ConfigError
from speakerkit.files import atomic_open

T = TypeVar("T")

MAX_NODES = 100_000  # values in one configuration, each alias counted as often as it stands there


@dataclasses.dataclass(frozen=True)
class NamedConfig:
    """A registered name and the arguments of its builder."""

    name: str
    args: dict[str, Any] = dataclasses.field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """Builds plain values only, and refuses a key that stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As the base class, which lets the last of two equal keys win."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _UntaggedLoader(_Loader):
    """Reads what stands under an application's own tag (``!new:package.Class``) as if there were no tag."""

    def construct_untagged(self, _: str, node: yaml.Node) -> Any:
        """The plain value of a node with a tag."""
        if isinstance(node, yaml.MappingNode):
            return self.construct_mapping(node, deep=True)
        return self.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else node.value


_UntaggedLoader.add_multi_constructor("!", _UntaggedLoader.construct_untagged)


def read_yaml(path: str | Path, *, own_tags: bool = False) -> dict[str, Any]:
    """A YAML mapping, read without building objects.

    Args:
        path: the file.
        own_tags: pass over tags that an application defined (``!new:...``, ``!ref ...``), which are refused otherwise.

    Raises:
        ConfigError: missing, not YAML, not a mapping, a key twice, or too large (which aliases can hide).
    """
    try:
        with open(path, encoding="utf-8") as stream:
            value = yaml.load(stream, _UntaggedLoader if own_tags else _Loader)  # noqa: S506 - both are safe loaders
    except FileNotFoundError:
        raise ConfigError(path, "no such file", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, f"cannot be read ({error})", "configurations are UTF-8 YAML files") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter two: a date or number that is none
        raise ConfigError(path, f"is not plain YAML ({error})", "correct the line it names") from None
    except RecursionError:
        raise ConfigError(path, "is nested too deeply", "configurations have a few levels") from None
    if not isinstance(value, dict):
        raise ConfigError(path, "is not a YAML mapping", "its top level is `key: value` lines")
    _refuse_endless(path, value)
    return value


def _refuse_endless(path: str | Path, value: Any) -> None:
    """Raise where aliases make a value that holds itself, or that is far larger than its file."""
    waiting, count = [value], 0
    while waiting:
        item = waiting.pop()
        children = list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []
        count += len(children)
        if count > MAX_NODES:
            raise ConfigError(path, f"holds more than {MAX_NODES} values", "look for aliases (*name) that multiply")
        waiting.extend(children)


def write_yaml(path: str | Path, value: dict[str, Any]) -> None:
    """Write a mapping of plain values as YAML, atomically, keys in their order."""
    with atomic_open(path) as stream:
        yaml.safe_dump(value, stream, sort_keys=False, allow_unicode=True, width=120)


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``values`` with each ``a.b=c`` set, ``c`` read as YAML (``optim.lr=0.05``, ``data.noise=null``).

    Raises:
        ConfigError: an override without ``=``, or a path through something that is no mapping.
    """
    result = _copy(values)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"--set {override}", "is not of the form key.sub=value", "as in --set optim.lr=0.05")
        target = result
        *parents, last = path.strip().split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {override}", f"{parent!r} has no keys of its own", "check the path")
        try:
            target[last] = yaml.load(text, _Loader)  # noqa: S506 - a safe loader
            _refuse_endless(f"--set {override}", target[last])
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
            raise ConfigError(f"--set {override}", f"the value is not YAML ({error})", "quote it") from None
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def require(holds: bool, key: str, value: object, remedy: str) -> None:
    """Refuse the value of a key where what must hold of it does not.

    Raises:
        ConfigError: it does not hold.
    """
    if not holds:
        raise ConfigError(key, f"is {reprlib.repr(value)}", remedy)


def read_config(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """The dataclass ``cls`` from a YAML file and dotted overrides; errors name the file.

    Raises:
        ConfigError: as :func:`read_yaml`, :func:`apply_overrides` and :func:`parse`.
    """
    values = apply_overrides(read_yaml(path), overrides)
    try:
        return parse(cls, values)
    except ConfigError as error:
        raise ConfigError(path, f"{error.subject} {error.fault}", error.remedy) from None


def parse(cls: type[T], values: Any, where: str = "") -> T:
    """Build the dataclass ``cls`` from plain values, checking names and types all the way down.

    Numbers written as text (``1e-4`` is text in YAML 1.1) are read as numbers where the field is a number.

    Args:
        where: dotted path of ``values`` in the file, for messages.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a missing one, or a value of the wrong kind.
    """
    if not isinstance(values, dict):
        raise ConfigError(
            where or "configuration", f"must be a mapping, not {reprlib.repr(values)}", "write `key: value` lines"
        )
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(fields)}"
            raise ConfigError(_join(where, key), "is an unknown key", remedy)
    hints = typing.get_type_hints(cls)
    arguments = {key: _convert(hints[key], value, _join(where, key)) for key, value in values.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise ConfigError(_join(where, name), "is missing", "add it")
    return cls(**arguments)


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(argument for argument in arguments if argument is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return parse(typing.cast("type[Any]", hint), value, where)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise ConfigError(where, f"is {reprlib.repr(value)}", f"choose from {', '.join(map(str, arguments))}")
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        if origin is tuple and arguments[-1] is not Ellipsis:
            if len(value) != len(arguments):
                raise ConfigError(where, f"has {len(value)} values", f"{len(arguments)} are expected")
            return tuple(_convert(kind, item, where) for kind, item in zip(arguments, value, strict=True))
        return origin(_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if (hint is dict or origin is dict) and isinstance(value, dict):
        kind = arguments[1] if arguments else Any
        return {key: _convert(kind, item, _join(where, key)) for key, item in value.items()}
    if hint is float and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
        raise ConfigError(where, f"is {reprlib.repr(value)}", "a finite number is expected")
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(
        where, f"is {reprlib.repr(value)}", f"a value of type {getattr(hint, '__name__', hint)} is expected"
    )


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain values that :func:`parse` reads back to an equal object."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return plain(dataclasses.asdict(config))
