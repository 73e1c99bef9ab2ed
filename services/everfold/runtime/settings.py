"""How a setting gets its value: one declaration, three sources, and a memory of which one won.

A section is a frozen dataclass whose fields are made by `setting()`. From that declaration alone come the command-line
flag, the environment variable, the key in the TOML file, the check of the value, and the reference page, so none of
them can disagree. A flag beats the environment, the environment beats the file, the file beats the default.

    field `port` in section `frontend`:  --port  ·  EVERFOLD_FRONTEND_PORT  ·  [frontend] port = 7233
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

ENV_PREFIX: Final = "EVERFOLD_"
_BYTE_UNITS: Final = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9, "b": 1}
_TIME_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_UNITS: Final[dict[str, Mapping[str, float]]] = {"bytes": _BYTE_UNITS, "s": _TIME_UNITS}
_SECRET: Final = re.compile(r"password|passwd|secret|token|credential|\.pem$|jaas|private|\.key$", re.IGNORECASE)
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


class SettingError(Exception):
    """A value that cannot be taken. The text names the setting, where the value came from, and what is allowed."""


@dataclasses.dataclass(frozen=True)
class _Meta:
    help: str
    unit: str
    flag: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    secret: bool


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    flag: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """Declare a setting as a dataclass field.

    Args:
        default: the value when no source gives one.
        help: one sentence for `--help` and for the reference page.
        unit: what a number counts. "bytes" also takes 64MiB, "s" also takes 500ms, 10s, 5m, 1h.
        flag: the flag, when it is not `--<section>-<field>`.
        minimum: the least number allowed.
        maximum: the greatest number allowed.
        choices: the words allowed.
        secret: whether `config show` hides the value.
    """
    meta = {"setting": _Meta(help, unit, flag, minimum, maximum, choices, secret)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


@dataclasses.dataclass(frozen=True)
class Option:
    """One setting, as every source and the reference page see it."""

    section: str
    name: str
    type: Any
    default: Any
    help: str
    unit: str
    flag: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    secret: bool

    @property
    def path(self) -> str:
        """`section.name`, as in the file and in messages."""
        return f"{self.section}.{self.name}"

    @property
    def env(self) -> str:
        """The environment variable."""
        return f"{ENV_PREFIX}{self.section}_{self.name}".upper()

    @property
    def many(self) -> bool:
        """Whether the flag may be given several times."""
        return typing.get_origin(self.type) in (tuple, dict)

    @property
    def type_name(self) -> str:
        """The type, as the reference page calls it."""
        if typing.get_origin(self.type) is tuple:
            return "list"
        if typing.get_origin(self.type) is dict:
            return "name=value list"
        return {"str": "text", "int": "whole number", "float": "number", "bool": "yes/no"}[self.type.__name__]

    def convert(self, value: Any, source: str) -> Any:
        """The typed value of what a source gave (text, or what TOML made of it). Raises SettingError."""
        try:
            converted = self._typed(value)
        except (ValueError, TypeError) as error:
            # A pair may be a password without its name.
            shown = "the value" if self.secret or typing.get_origin(self.type) is dict else repr(value)
            raise SettingError(f"{self.path}: {shown} (from {source}) is not a {self.type_name}: {error}") from None
        if self.choices and converted not in self.choices:
            raise SettingError(f"{self.path}: {value!r} (from {source}) is none of {', '.join(self.choices)}")
        if isinstance(converted, (int, float)) and not isinstance(converted, bool):
            if self.minimum is not None and converted < self.minimum:
                raise SettingError(f"{self.path}: {converted} (from {source}) is below the least, {self.minimum:g}")
            if self.maximum is not None and converted > self.maximum:
                raise SettingError(f"{self.path}: {converted} (from {source}) is above the most, {self.maximum:g}")
        return converted

    def _typed(self, value: Any) -> Any:
        origin = typing.get_origin(self.type)
        if origin is not None and isinstance(value, str) and value.startswith(("{", "[")):
            value = json.loads(value)  # how values with commas in them are written
        if origin is tuple:
            items = [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)
            return tuple(str(item) for item in items if item != "")
        if origin is dict:
            if isinstance(value, Mapping):
                return {str(key): _toml_text(item) for key, item in value.items()}
            parts = value.split(",") if isinstance(value, str) else list(value)
            return dict(_pair(part) for part in parts if part.strip())
        if self.type is bool:
            if isinstance(value, bool):
                return value
            word = str(value).strip().lower()
            if word not in _TRUE | _FALSE:
                raise ValueError("expected yes or no")
            return word in _TRUE
        if self.type is str:
            return str(value)
        if isinstance(value, bool):
            raise TypeError("expected a number")
        if isinstance(value, str):
            value = scaled(value, self.unit)
        if self.type is int:
            if float(value) != int(value):
                raise ValueError("expected a whole number")
            return int(value)
        return float(value)


def scaled(text: str, unit: str) -> float | int:
    """A number that may carry a unit: `64MiB` where bytes are counted, `500ms` where seconds are."""
    text = text.strip().lower()
    units = _UNITS.get(unit, {})
    for suffix in sorted(units, key=len, reverse=True):
        if text.endswith(suffix) and text[: -len(suffix)].strip().replace(".", "", 1).isdigit():
            return float(text[: -len(suffix)]) * units[suffix]
    try:
        return int(text)
    except ValueError:
        return float(text)


def is_secret(name: str) -> bool:
    """Whether a property of a client library is nobody's to see: a password, a key, a token."""
    return _SECRET.search(name) is not None


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError("expected name=value in each of its parts")
    return name.strip(), value.strip()


def _toml_text(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def options_of(settings_type: type) -> dict[str, Option]:
    """Every setting of a settings class, by path, in the order of declaration."""
    found: dict[str, Option] = {}
    for section, section_type in typing.get_type_hints(settings_type).items():
        if not dataclasses.is_dataclass(section_type):
            continue
        hints = typing.get_type_hints(section_type)
        for field in dataclasses.fields(section_type):
            meta: _Meta = field.metadata["setting"]
            default = field.default_factory() if callable(field.default_factory) else field.default
            flag = meta.flag or f"--{section}-{field.name.replace('_', '-')}"
            option = Option(
                section,
                field.name,
                hints[field.name],
                default,
                meta.help,
                meta.unit,
                flag,
                meta.minimum,
                meta.maximum,
                meta.choices,
                meta.secret,
            )
            found[option.path] = option
    return found


@dataclasses.dataclass(frozen=True)
class Resolved:
    """What the sources gave.

    Attributes:
        values: path -> typed value, every setting present.
        sources: path -> where the value came from: "default", "EVERFOLD_…", "FILE", or the flag.
        warnings: what looks like a mistake but stops nothing.
    """

    values: dict[str, Any]
    sources: dict[str, str]
    warnings: tuple[str, ...]


def resolve(
    options: Mapping[str, Option], flags: Mapping[str, Any], env: Mapping[str, str], file: Path | None
) -> Resolved:
    """Collect every setting's value from flags (by path), environment and file. Raises SettingError."""
    values = {path: option.default for path, option in options.items()}
    sources = dict.fromkeys(options, "default")
    for path, value in _from_file(options, file) if file else ():
        values[path] = options[path].convert(value, str(file))
        sources[path] = str(file)
    for path, option in options.items():
        if option.env in env:
            values[path] = option.convert(env[option.env], option.env)
            sources[path] = option.env
    for path, value in flags.items():
        values[path] = options[path].convert(value, options[path].flag)
        sources[path] = options[path].flag
    return Resolved(values, sources, tuple(_unknown_env(options, env)))


def _from_file(options: Mapping[str, Option], file: Path) -> Iterator[tuple[str, Any]]:
    try:
        with file.open("rb") as stream:
            content = tomllib.load(stream)
    except OSError as error:
        raise SettingError(f"the configuration file {file} cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"the configuration file {file} is not TOML: {error}") from None
    for section, entries in content.items():
        if not isinstance(entries, dict):
            raise SettingError(f"{file}: expected tables such as [frontend], found the bare key {section!r}")
        for name, value in entries.items():
            path = f"{section}.{name}"
            if path not in options:
                raise SettingError(f"{file}: there is no setting {path!r}{_nearest(path, options)}")
            yield path, value


def _unknown_env(options: Mapping[str, Option], env: Mapping[str, str]) -> Iterator[str]:
    known = {option.env for option in options.values()}
    prefixes = tuple({f"{ENV_PREFIX}{option.section.upper()}_" for option in options.values()})
    for name in sorted(env):
        if name.startswith(prefixes) and name not in known:
            yield f"{name} is in the environment, but there is no such setting{_nearest(name, known)}"


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def build(settings_type: type[T], values: Mapping[str, Any]) -> T:
    """The settings object of those values."""
    sections: dict[str, Any] = {}
    for section, section_type in typing.get_type_hints(settings_type).items():
        names = [field.name for field in dataclasses.fields(section_type)]
        sections[section] = section_type(**{name: values[f"{section}.{name}"] for name in names})
    return settings_type(**sections)
