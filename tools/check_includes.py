"""Checks that every C++ include and every Python import is one that the design allows.

The graph below is the design: each folder and what it may include. docs/design.md shows it as
`--draw` prints it. The check knows paths and include lines only; it parses no C++.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Layer:
    """A folder (or file), the layers it may use, and the foreign headers or packages it may use."""

    path: str
    may_use: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()


API = "include/fusion_attention"
BACKEND_INTERFACE = "src/backend/backend.h"
PACKAGE = "python/fusion_attention"
PICTURE = "docs/design.md"

# A file belongs to the layer with the longest matching path. Every layer may use itself.
CPP_LAYERS = (
    Layer(API),
    Layer("src/base"),
    Layer("src/problem", (API,)),
    Layer("src/dropout", (API, "src/base")),
    Layer(BACKEND_INTERFACE, (API,)),
    Layer("src/backend", (API, "src/problem", "src/dropout", BACKEND_INTERFACE)),
    Layer("src/reference", (API, "src/base", "src/dropout", BACKEND_INTERFACE)),
    Layer(
        "src/cpu",
        (API, "src/dropout", BACKEND_INTERFACE, "src/cpu/kernels"),
        ("hwy/",),
    ),
    # Kernels see pointers, sizes and a tile's mask: neither Problem nor Plan, and no torch.
    Layer("src/cpu/kernels", (f"{API}/dtype.h",), ("hwy/",)),
    Layer("torch", (API,), ("torch/",)),
    Layer("tests/cc", (API, "src"), ("gtest/", "hwy/")),
    Layer("bench"),
    Layer("examples", (API,)),
)

STANDARD_PYTHON = frozenset(sys.stdlib_module_names)
FEATURES = ("benchmark", "convert", "explaining", "integrations", "recording")
# The operator needs torch and nothing else at run time. The features around it, a folder each, may
# use one optional package more, which they import when they are used.
PYTHON_LAYERS = (
    Layer(PACKAGE, (), ("torch",)),
    Layer(f"{PACKAGE}/__main__.py", (f"{PACKAGE}/cli",)),
    Layer(
        f"{PACKAGE}/cli",
        (PACKAGE, *(f"{PACKAGE}/{x}" for x in FEATURES), f"{PACKAGE}/torch_npu"),
        ("torch", "rich"),
    ),
    Layer(f"{PACKAGE}/benchmark", (PACKAGE,), ("torch", "matplotlib")),
    Layer(f"{PACKAGE}/explaining", (PACKAGE,), ("torch", "matplotlib")),
    Layer(f"{PACKAGE}/recording", (PACKAGE,), ("torch", "safetensors")),
    Layer(f"{PACKAGE}/convert", (PACKAGE,), ("torch",)),
    Layer(f"{PACKAGE}/integrations", (PACKAGE,), ("torch", "transformers")),
    Layer(f"{PACKAGE}/torch_npu", (PACKAGE,), ("torch", "numpy", "torch_npu")),
    Layer(f"{PACKAGE}/pytest_plugin.py", (f"{PACKAGE}/torch_npu",), ("pytest",)),
    Layer(
        "tests",
        (PACKAGE, "tools", "examples", "bench"),
        (
            *("torch", "torch_npu", "numpy", "pytest", "hypothesis", "PIL", "rich"),
            *("safetensors", "transformers"),
        ),
    ),
    Layer("examples", (PACKAGE,), ("torch", "torch_npu", "numpy", "rich", "matplotlib")),
    Layer("bench", (PACKAGE,), ("torch", "numpy", "rich")),
    Layer("tools", (PACKAGE,), ("torch", "numpy", "matplotlib", "PIL")),
)

FOREIGN_NAMES = {"hwy/": "Highway", "torch/": "PyTorch"}

INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]')
STANDARD_CPP = re.compile(r"[a-z_]+|(?:sys|pthread|unistd|signal|xmmintrin)\S*\.h")


def layer_of(path: str, layers: tuple[Layer, ...]) -> Layer | None:
    """Returns the layer with the longest path that is a prefix of `path`."""
    owners = [x for x in layers if path == x.path or path.startswith(x.path + "/")]
    return max(owners, key=lambda x: len(x.path), default=None)


def allows(user: Layer, used: str, layers: tuple[Layer, ...]) -> bool:
    """Says whether `user` may use the file `used`: its own layer, or one that it lists."""
    if layer_of(used, layers) == user:
        return True
    return any(used == x or used.startswith(x + "/") for x in user.may_use)


def includes(file: Path) -> Iterator[tuple[int, str, str, str]]:
    """Yields (line, bracket, header, the header's path from the root) of every include."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if match := INCLUDE.match(line):
            bracket, header = match.groups()
            public = header.startswith("fusion_attention/")
            yield number, bracket, header, f"include/{header}" if public else header


def cpp_violations(file: Path) -> Iterator[str]:
    """Yields one line of text for each include of `file` that the graph does not allow."""
    name = file.relative_to(ROOT).as_posix()
    layer = layer_of(name, CPP_LAYERS)
    if layer is None:
        yield f"{name}:1: belongs to no layer of tools/check_includes.py"
        return
    for number, bracket, header, used in includes(file):
        ours = (ROOT / used).is_file()
        foreign = header.startswith(layer.foreign) if layer.foreign else False
        if bracket == "<" and not ours:
            fine = foreign or STANDARD_CPP.fullmatch(header) is not None
        else:
            fine = (ours and allows(layer, used, CPP_LAYERS)) or (not ours and foreign)
        if not fine:
            yield f"{name}:{number}: {layer.path} may not include {header}"


def unused_permissions(files: list[Path]) -> Iterator[str]:
    """Yields the edges that no include needs: the graph is what is, not what might be."""
    for layer in CPP_LAYERS:
        names = {f: f.relative_to(ROOT).as_posix() for f in files}
        own = [f for f in files if layer_of(names[f], CPP_LAYERS) == layer]
        headers = {used for f in own for _, _, _, used in includes(f)}
        for permission in (*layer.may_use, *layer.foreign):
            if not any(header.startswith(permission) for header in headers):
                yield f"tools/check_includes.py: {layer.path} never includes {permission}"


def imports(tree: ast.AST) -> Iterator[tuple[int, str, int]]:
    """Yields (line, module or name in it, relative level) of every import in `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, 0
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, f"{node.module or ''}.{alias.name}", node.level


def may_import(layer: Layer, module: str) -> bool:
    """Says whether `layer` may import this module of the package, or this name in one."""
    used = PACKAGE + module.removeprefix("fusion_attention").replace(".", "/")
    owners = [layer_of(file, PYTHON_LAYERS) for file in (used, f"{used}.py")]
    owner = max((x for x in owners if x is not None), key=lambda x: len(x.path))
    if owner == layer or owner.path in layer.may_use:
        return True
    # Outside the package, all of it may be used.
    return not layer.path.startswith(PACKAGE) and PACKAGE in layer.may_use


def is_neighbour(file: Path, module: str, layer: Layer) -> bool:
    """Says whether `module` lies beside `file` or one of its folders, or in a layer it uses."""
    folders = [x for x in file.parents if x != ROOT and x.is_relative_to(ROOT)]
    folders += [ROOT / x for x in layer.may_use if x != PACKAGE]
    return any((x / f"{module}{end}").exists() for x in folders for end in ("", ".py"))


def python_violations(file: Path) -> Iterator[str]:
    """Yields one line of text for each import of `file` that the graph does not allow."""
    name = file.relative_to(ROOT).as_posix()
    layer = layer_of(name, PYTHON_LAYERS)
    if layer is None:
        yield f"{name}:1: belongs to no layer of tools/check_includes.py"
        return
    for line, module, level in imports(ast.parse(file.read_text(encoding="utf-8"), name)):
        top = module.split(".")[0]
        neighbour = level > 0 or is_neighbour(file, top, layer)
        fine = neighbour or top in STANDARD_PYTHON or top in layer.foreign
        if top == "fusion_attention":
            fine = may_import(layer, module)
        if not fine:
            yield f"{name}:{line}: {layer.path} may not import {module}"


def drawing() -> str:
    """Returns the graph of the library itself as a Mermaid flow chart: arrows mean `may use`."""
    shown = [x for x in CPP_LAYERS if x.path.startswith(("include/", "src/"))]
    shown += [x for x in CPP_LAYERS if x.path == "torch"]
    edges = [(x.path, used) for x in shown for used in x.may_use]
    edges += [(x.path, FOREIGN_NAMES[used]) for x in shown for used in x.foreign]
    edges += [(PACKAGE, "torch"), (PACKAGE, FOREIGN_NAMES["torch/"])]
    names = list(dict.fromkeys(name for edge in edges for name in edge))
    lines = [f'  n{i}["{name}"]' for i, name in enumerate(names)]
    lines += [f"  n{names.index(user)} --> n{names.index(used)}" for user, used in edges]
    return "\n".join(["flowchart TD", *lines])


def main() -> int:
    """Runs the check, or draws the graph."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="print the allowed graph as Mermaid")
    if parser.parse_args().draw:
        print(drawing())
        return 0
    folders = [ROOT / x for x in ("include", "src", "torch", "tests", "bench", "examples")]
    files = sorted(f for x in folders for end in ("*.h", "*.cc") for f in x.rglob(end))
    violations = [text for file in files for text in cpp_violations(file)]
    violations += unused_permissions(files)
    picture = ROOT / PICTURE
    if not picture.is_file() or drawing() not in picture.read_text(encoding="utf-8"):
        violations.append(f"{PICTURE}: its graph is not what `check_includes.py --draw` prints")
    for folder in ("python", "tests", "bench", "examples", "tools"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            violations += python_violations(file)
    print("\n".join(violations) if violations else "include graph: as designed")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
