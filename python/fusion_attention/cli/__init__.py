"""The command line: finds the module of a command, hands it its arguments, reports its errors.

A command is a module of this folder, listed in COMMANDS, with

    HELP: str                                                     one line for the list of commands
    add_arguments(parser: argparse.ArgumentParser) -> None
    run(options: argparse.Namespace) -> int                       the exit status

Only the module of the command that was asked for is imported. Exit statuses: 0 done, 1 the command
failed (or found what it looks for, as replay does), 2 the arguments make no sense. A FeatureError
becomes one line on stderr; any other error is a bug, or belongs to the program that `run` runs, and
keeps its traceback.
"""

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from fusion_attention._errors import FeatureError

PROGRAM = "python -m fusion_attention"

#: Name of a command -> its module in this folder, in the order in which help lists them.
COMMANDS = {
    "run": "run",
    "explain": "explain",
    "convert": "convert",
    "replay": "replay",
    "bench": "bench",
    "info": "info",
}


def main(arguments: Sequence[str]) -> int:
    """Runs the command that `arguments` name and returns its exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from fusion_attention import __version__

        print(f"fusion_attention {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(_unknown(name), file=sys.stderr)
        return 2
    command = _module(name)
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} {name}", description=command.HELP, allow_abbrev=False
    )
    command.add_arguments(parser)
    options = parser.parse_args(rest)
    try:
        status = command.run(options)
        sys.stdout.flush()
        return status
    except FeatureError as error:
        # Functions put their feature's name first, which may be the command's.
        print(f"{PROGRAM} {name}: {str(error).removeprefix(f'{name}: ')}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{COMMANDS[name]}")


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {_module(name).HELP}" for name in COMMANDS]
    return "\n".join(
        [
            f"usage: {PROGRAM} <command> [arguments]",
            f"       {PROGRAM} <command> --help",
            f"       {PROGRAM} --version",
            "",
            "Ascend's npu_fusion_attention on every machine: exact, fast, differentiable.",
            "",
            "commands:",
            *lines,
        ]
    )


def _unknown(name: str) -> str:
    kind = "option" if name.startswith("-") else "command"
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    guess = f" Did you mean '{close[0]}'?" if close else ""
    return f"{PROGRAM}: there is no {kind} '{name}'.{guess} Commands: {', '.join(COMMANDS)}."
