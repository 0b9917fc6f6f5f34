"""Checks every text file of the repository: its size, spaces, characters and words.

With `--fix` it repairs the spaces. It knows no programming language.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A file is read in one sitting, or it is split.
WARN_LINES, MAX_LINES = 400, 600
CODE = {".h", ".cc", ".py", ".cmake", ".sh"}
CPP = {".h", ".cc"}

# Each rule: what may not appear, and why. Patterns are spelt so that they do not match themselves.
FORBIDDEN = (
    (re.compile(r"\b(TO[D]O|FIX[M]E|XX[X])\b"), "unfinished work belongs in an issue"),
    (re.compile(r"/wor[k]/|/hom[e]/|/tm[p]/"), "a path of one machine"),
    (re.compile(r"pypi\.or[g]|download\.pytorch\.or[g]|deb\.debian\.or[g]"), "a registry's host"),
)


def tracked_files() -> list[Path]:
    """Returns the files under version control and the new ones that are not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.split(b"\0")
    paths = sorted({ROOT / name.decode() for name in names if name})
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


def is_code(path: Path) -> bool:
    """Says whether `path` is read as code, by its ending or because it is a script."""
    return path.suffix in CODE or path.name == "CMakeLists.txt" or path.parent.name == "scripts"


def tidied(text: str, path: Path) -> str:
    """Returns `text` without trailing spaces and tabs, and with exactly one line end at its end."""
    lines = [line.rstrip() for line in text.splitlines()]
    if path.suffix in CODE:
        lines = [line.replace("\t", "    ") for line in lines]
    return "\n".join(lines).rstrip("\n") + "\n" if lines else ""


def problems(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Yields (line, what is wrong) for one file."""
    lines = text.splitlines()
    fixed = tidied(text, path).splitlines()
    for number, line in enumerate(lines, 1):
        if number > len(fixed) or line != fixed[number - 1]:
            yield number, "trailing space, tab or blank line at the end; scripts/format repairs it"
        if path.suffix in CPP and not line.isascii():
            yield number, "C++ sources are ASCII"
        if path.name != "LICENSE":
            for pattern, reason in FORBIDDEN:
                if match := pattern.search(line):
                    yield number, f"'{match.group()}': {reason}"
    if text and not text.endswith("\n"):
        yield len(lines), "no line end at the end of the file"
    if is_code(path) and len(lines) > MAX_LINES:
        yield MAX_LINES, f"{len(lines)} lines: split it before {MAX_LINES}"


def main() -> int:
    """Checks or repairs all files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fix", action="store_true", help="repair the spaces")
    fix = parser.parse_args().fix
    found = 0
    for path in tracked_files():
        name = path.relative_to(ROOT).as_posix()
        text = path.read_bytes().decode("utf-8")
        if fix and path.name != "LICENSE" and (fixed := tidied(text, path)) != text:
            path.write_text(fixed, encoding="utf-8", newline="\n")
            text = fixed
        for line, what in problems(path, text):
            print(f"{name}:{line}: {what}")
            found += 1
        if is_code(path) and WARN_LINES < text.count("\n") <= MAX_LINES:
            print(f"{name}: warning: {text.count(chr(10))} lines: can it be read in one sitting?")
    print("text: as agreed" if not found else f"text: {found} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
