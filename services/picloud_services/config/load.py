"""Settings from file, environment and command line, by traitlets.

The file is ``picloud_config.py`` or ``picloud_config.json`` in the home folder, for example
``c.PiCloud.retention_days = 90``. The command line wins over the environment, which wins over the file.
"""

import os
from collections.abc import Sequence
from typing import Any

from traitlets import Bool, CFloat, CInt, TraitError, TraitType, Unicode
from traitlets.config import Config, Configurable
from traitlets.config.loader import ConfigFileNotFound, JSONFileConfigLoader, PyFileConfigLoader

from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.config import (
    Setting,
    Settings,
    check_value,
    environment_name,
    list_settings,
    parse_value,
)

FILE_NAME = "picloud_config"


def _trait(setting: Setting) -> TraitType[Any, Any]:
    default, explanation = setting.default, setting.explanation
    if isinstance(default, bool):
        return Bool(default, help=explanation).tag(config=True)
    if isinstance(default, int):
        return CInt(default, min=0, help=explanation).tag(config=True)
    if isinstance(default, float):
        return CFloat(default, min=0.0, help=explanation).tag(config=True)
    return Unicode(default, help=explanation).tag(config=True)


PiCloud = type(
    "PiCloud",
    (Configurable,),
    {
        "__doc__": "Settings of the service, one trait for each field of `Settings`.",
        **{setting.name: _trait(setting) for setting in list_settings()},
    },
)


def load(paths: ServicePaths, arguments: Sequence[str] = ()) -> Settings:
    """Return the settings of the service at ``paths``.

    ``arguments`` are options of the command line such as ``--retention-days=90``.

    Raises:
        ValueError: an option, a variable or the file names an unknown setting, or holds a value
            that is not allowed; the message names it and where it stands.
    """
    config = _read_file(paths)
    known = {setting.name: setting for setting in list_settings()}
    section = config.get("PiCloud", {})
    unknown = sorted(set(section) - set(known))
    if unknown:
        raise ValueError(
            f"{FILE_NAME} in {paths.home} sets {unknown[0]!r}, which is no setting; "
            f"there are {', '.join(known)}"
        )
    try:
        traits = PiCloud(config=config)
        values: dict[str, Any] = {
            name: check_value(setting, getattr(traits, name), name)
            for name, setting in known.items()
        }
    except (TraitError, ValueError) as exc:
        raise ValueError(f"{FILE_NAME} in {paths.home}: {exc}") from exc
    for name, setting in known.items():
        variable = environment_name(name)
        if variable in os.environ:
            values[name] = parse_value(setting, os.environ[variable], variable)
    for argument in arguments:
        option, equals, text = argument.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or not equals or name not in known:
            raise ValueError(
                f"{argument!r} is not an option; write --NAME=VALUE, where NAME is one of "
                f"{', '.join(n.replace('_', '-') for n in known)}"
            )
        values[name] = parse_value(known[name], text, option)
    return Settings(paths, **values)


def _read_file(paths: ServicePaths) -> Config:
    folder = str(paths.home)
    merged = Config()
    for loader in (
        JSONFileConfigLoader(FILE_NAME + ".json", folder),
        PyFileConfigLoader(FILE_NAME + ".py", folder),
    ):
        try:
            merged.merge(loader.load_config())
        except ConfigFileNotFound:
            continue
        except Exception as exc:  # the user's own program may raise anything
            raise ValueError(f"{loader.full_filename} cannot be read: {exc}") from exc
    return merged


def help_text() -> str:
    """Return every setting with its default and what it means, for ``--help``."""
    lines = []
    for setting in list_settings():
        lines.append(f"  --{setting.name.replace('_', '-')}={setting.default}")
        lines.append(f"      {setting.explanation}")
    return "\n".join(lines)
