"""``shoal completion``: a script that makes a shell complete commands, options, choices and files.

shtab writes it out of the very parser that reads the command line, so it cannot fall behind; pressing Tab then runs no
Python at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Final

from shoal.errors import UsageError

SHELLS: Final = ("bash", "zsh", "fish", "tcsh")
_FILES: Final = {"FILE", "STUDY", "PATH", "URL_OR_PATH"}
_FOLDERS: Final = {"DIR"}


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for a shell, to be loaded by it.

    Args:
        parser: The command line's own; arguments that name files are known by their metavar.
        shell: One of `SHELLS`.

    Raises:
        UsageError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise UsageError("completion is written by shtab: run `pip install shtab`.") from error
    for action in _actions(parser):
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell=shell)
    return script


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
