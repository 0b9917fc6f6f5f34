"""`run`: runs a Python program that imports torch_npu on a machine that does not have it.

It runs as `python program.py arguments...` and `python -m module arguments...` run it: its name is
__main__, its folder comes first on the path (but not under `python -P`), its exit status is passed
on, and its tracebacks begin with it.
"""

import argparse
import os
import runpy
import sys
from pathlib import Path
from types import TracebackType

from fusion_attention._errors import FeatureError

HELP = "run a program that imports torch_npu, unmodified, on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "--compat",
        metavar="RELEASE",
        help="an older release of torch_npu to be: 7.1, 7.2 or 7.3",
    )
    parser.add_argument("-m", "--module", action="store_true", help="the program is a module")
    parser.add_argument("program", help="a Python file, or the name of a module after -m")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the program's own")


def run(options: argparse.Namespace) -> int:
    """Runs the program and returns its exit status."""
    if options.compat:  # in the environment, where processes that the program starts see it too
        os.environ["FUSION_ATTENTION_COMPAT"] = options.compat
    from fusion_attention import torch_npu

    if not options.module and not Path(options.program).exists():
        raise FeatureError(f"there is no file {options.program}.")
    if not sys.flags.safe_path:  # python -P and -I put no folder of a program's on the path
        folder = Path.cwd() if options.module else Path(options.program).resolve().parent
        sys.path[0] = str(folder)
    torch_npu.install_for_children()
    sys.argv = [options.program, *options.arguments]
    try:
        if options.module:
            runpy.run_module(options.program, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(options.program, run_name="__main__")
    except Exception as error:
        trace = _without_ours(error.__traceback__)
        if trace is None and isinstance(error, ImportError):
            raise FeatureError(f"{error}.") from None
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return 1
    return 0


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    """Returns the part of a traceback that begins with the program: behind runpy's frames.

    None where the program has not begun: it was not found, or could not be compiled.
    """
    begin = trace
    while begin and "runpy" not in begin.tb_frame.f_code.co_filename:
        begin = begin.tb_next
    while begin and "runpy" in begin.tb_frame.f_code.co_filename:
        begin = begin.tb_next
    return begin
