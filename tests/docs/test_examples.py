"""Runs every Python example that the documentation shows: no page can promise what is not so.

The blocks of one page run in order in one namespace, as a reader would type them. Docstrings are
doctests.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import fusion_attention

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """The Python blocks of a page, each with the number of the line that it starts on."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(1)) + 1, m.group(1)) for m in FENCE.finditer(text)]


PAGES_WITH_EXAMPLES = [page for page in PAGES if page.exists() and python_blocks(page)]


@pytest.mark.parametrize("page", PAGES_WITH_EXAMPLES, ids=lambda page: page.name)
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example may write a picture
    names: dict[str, object] = {"__name__": "__example__"}
    for line, block in python_blocks(page):
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


def test_the_readme_has_an_example() -> None:
    assert ROOT / "README.md" in PAGES_WITH_EXAMPLES


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
