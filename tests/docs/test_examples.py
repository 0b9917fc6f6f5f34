"""Runs every Python example that the documentation shows: no page can promise what is not so.

The blocks of one page run in order in one namespace, as a reader would type them; its `sh` blocks
in order in one folder. Docstrings are doctests.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fusion_attention

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The blocks of a page in a language, each with the number of the line that it starts on."""
    text = page.read_text(encoding="utf-8")
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, m.start(1)) + 1, m.group(1)) for m in fence.finditer(text)]


PAGES_WITH_EXAMPLES = [page for page in PAGES if page.exists() and blocks(page, "python")]
PAGES_WITH_COMMANDS = [page for page in PAGES if page.exists() and blocks(page, "sh")]


@pytest.mark.parametrize("page", PAGES_WITH_EXAMPLES, ids=lambda page: page.name)
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example may write a picture
    names: dict[str, object] = {"__name__": "__example__"}
    for line, block in blocks(page, "python"):
        if block.lstrip().startswith(">>>"):
            run_doctest(block, names, f"{page.name}:{line}")
        else:
            # Blank lines in front make a traceback name the page's own line.
            exec(compile("\n" * (line - 1) + block, str(page), "exec"), names)


def run_doctest(block: str, names: dict[str, object], where: str) -> None:
    """Runs a block that shows a session with its output."""
    test = doctest.DocTestParser().get_doctest(block, names, where, None, 0)
    runner = doctest.DocTestRunner()
    runner.run(test, clear_globs=False)
    names.update(test.globs)
    assert runner.failures == 0, f"{where}: the example's output is not what the page shows"


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: page.name)
def test_commands(page: Path, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    # `python` is the one that runs the tests, as in an activated environment.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    for line, block in blocks(page, "sh"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{page.name}:{line}:\n{done.stdout}\n{done.stderr}"


def test_the_readme_has_an_example() -> None:
    assert ROOT / "README.md" in PAGES_WITH_EXAMPLES
    assert ROOT / "README.md" in PAGES_WITH_COMMANDS


def test_every_command_and_lint_rule_has_its_place_in_the_manual() -> None:
    manual = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    package = Path(fusion_attention.__file__).parent
    rules = {
        rule
        for file in (package / "explaining").glob("rules_*.py")
        for rule in re.findall(r'"(L\d\d)"', file.read_text(encoding="utf-8"))
    }
    assert len(rules) > 15
    assert [rule for rule in sorted(rules) if f"| {rule} |" not in manual] == []
    commands = importlib.import_module("fusion_attention.cli").COMMANDS
    assert [name for name in commands if f"`{name}`" not in manual] == []


def modules() -> list[ModuleType]:
    """The package and every module in it."""
    home = Path(fusion_attention.__file__).parent
    files = sorted(path.relative_to(home.parent) for path in home.rglob("*.py"))
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files]
    return [importlib.import_module(name) for name in names]


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_docstrings(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def public_functions() -> list[str]:
    """The names that the package exports and that are functions."""
    return [n for n in fusion_attention.__all__ if inspect.isfunction(getattr(fusion_attention, n))]


@pytest.mark.parametrize("name", public_functions())
def test_public_functions_show_an_example(name: str) -> None:
    function = getattr(fusion_attention, name)
    assert doctest.DocTestFinder(recurse=False).find(function)[0].examples
