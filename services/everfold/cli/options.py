"""Command-line flags made from the settings, so that a flag, its variable and its key in the file cannot differ."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from everfold.runtime.config import CONFIG_ENV, OPTIONS, Loaded, load
from everfold.runtime.settings import Option, SettingError

F = TypeVar("F", bound=Callable[..., Any])


class SectionedCommand(click.Command):
    """A command whose help groups its flags by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags, one list per section of the settings."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                option = OPTIONS.get(_path(param.name or ""))
                groups.setdefault(option.section if option else "general", []).append(record)
        for section in sorted(groups, key=lambda name: name == "general"):
            with formatter.section(section):
                formatter.write_dl(groups[section])


def _path(name: str) -> str:
    return name.replace("__", ".", 1)


def settings_flags(*sections: str) -> Callable[[F], Callable[..., Any]]:
    """Give a command the flags of those sections, `--config`, and the loaded settings as its first argument."""
    chosen = [option for option in OPTIONS.values() if option.section in sections]

    def decorate(function: F) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(config_file: str | None, **params: Any) -> Any:
            flags: dict[str, Any] = {}
            for option in chosen:
                value = params.pop(option.path.replace(".", "__"))
                if value is not None and value != ():
                    flags[option.path] = value
            return function(load_or_refuse(flags, config_file), **params)

        decorated: Callable[..., Any] = command
        decorated = click.option(
            "--config", "config_file", metavar="FILE", help=f"A TOML file of settings. [env: {CONFIG_ENV}]"
        )(decorated)
        for option in reversed(chosen):
            decorated = _click_option(option)(decorated)
        return decorated

    return decorate


def load_or_refuse(flags: dict[str, Any], config_file: str | None) -> Loaded:
    """The settings; a bad one ends the command with exit code 2 and says which."""
    try:
        return load(flags, file=config_file)
    except SettingError as error:
        raise click.UsageError(str(error)) from None


def _click_option(option: Option) -> Callable[[F], F]:
    name = option.path.replace(".", "__")
    default = option.default
    shown = "" if default in ("", 0, False, (), {}) else f" [default: {_plain(option)}]"
    help = f"{option.help}{shown}"
    if option.type is bool:
        return click.option(f"{option.flag}/--no-{option.flag[2:]}", name, default=None, help=help)
    metavar = "|".join(option.choices) if option.choices else _metavar(option)
    return click.option(option.flag, name, default=None, multiple=option.many, metavar=metavar, help=help)


def _metavar(option: Option) -> str:
    if option.type_name == "name=value list":
        return "NAME=VALUE"
    return (option.unit or option.type_name.replace("whole ", "")).upper().replace(" ", "-")


def _plain(option: Option) -> str:
    if option.unit == "bytes" and option.default % (1024 * 1024) == 0:
        return f"{option.default // (1024 * 1024)}MiB"
    return f"{option.default:g}" if isinstance(option.default, float) else str(option.default)
