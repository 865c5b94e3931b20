"""A file of settings, as `--config run.yaml` names it: names and values, not yet checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ella_cli.errors import SettingsError


class _OnceLoader(yaml.SafeLoader):
    """The safe loader, but that a key which comes twice is an error and not the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"it names {twice} twice")
        return super().construct_mapping(node, deep)


def read_settings(path: Path) -> dict[str, Any]:
    """
    Raises:
        SettingsError: the file cannot be read, is no mapping of words, or has a word twice.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _OnceLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(
            f"cannot read settings from {path}: {reason}",
            hint="it must be a YAML mapping such as `model: smollm2`; see `ella config-schema`",
        ) from error
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        odd = "a key that is no word" if isinstance(document, dict) else type(document).__name__
        raise SettingsError(
            f"{path} holds {odd}, not a mapping of settings",
            hint="write one setting a line, such as `learning-rate: 0.001`",
        )
    return document
