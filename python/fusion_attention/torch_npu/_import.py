"""Makes `import torch_npu`, and the import of its submodules, find the stand-in.

Nothing here is done where the vendor's package is installed. Processes that are started later find
the stand-in by a folder on their path. Knows names of modules only.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from fusion_attention.torch_npu._absent import sentence

_STAND_IN = __package__
#: Names that programs import -> what they get. torch.npu is the device module.
_ALIASES = {"torch_npu": _STAND_IN, "torch.npu": f"{_STAND_IN}.npu"}

#: Holds a torch_npu.py that imports the stand-in.
PATH_FOLDER = Path(__file__).parent / "path"


def vendor_is_installed() -> bool:
    """Says whether `import torch_npu` would give the vendor's package."""
    module = sys.modules.get("torch_npu")
    if module is not None and module.__name__ == _STAND_IN:
        return False
    try:
        spec = importlib.util.find_spec("torch_npu")
    except ValueError:  # a module that was made by hand, and is there
        return True
    if spec is None or (spec.origin is None and spec.submodule_search_locations is not None):
        return False  # nothing, or a folder that happens to have the name
    return Path(spec.origin or "").parent != PATH_FOLDER


def install() -> None:
    """Makes the imports of this process find the stand-in."""
    sys.modules["torch_npu"] = sys.modules[_STAND_IN]
    sys.meta_path.insert(0, _Finder())
    sys.meta_path.append(_Absent())


def install_for_children() -> None:
    """Makes processes that this one starts find the stand-in: spawned ones, launchers, workers."""
    folder = str(PATH_FOLDER)
    if folder not in sys.path:
        sys.path.append(folder)  # which multiprocessing hands to its children
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join(x for x in (*inherited, folder) if x)


class _Finder(importlib.metadata.DistributionFinder):
    """Finds `torch_npu.x.y` where the stand-in's own x.y is: one module, two names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        for alias, real in _ALIASES.items():
            if fullname.startswith(f"{alias}."):
                name = real + fullname.removeprefix(alias)
                if importlib.util.find_spec(name):
                    return importlib.machinery.ModuleSpec(fullname, _Loader(name))
        return None

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> Iterable[importlib.metadata.Distribution]:
        """Finds what importlib.metadata.version("torch_npu") asks: some clients look there only."""
        if context is None or context.name not in ("torch_npu", "torch-npu"):
            return []
        return [_Distribution()]


class _Absent(importlib.abc.MetaPathFinder):
    """Asked last, says of the vendor's modules that are not here what is."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Returns None, or raises the error.

        Without its attribute `name`, for with it `from torch_npu import x` ignores the error and
        says of x no more than that it cannot be imported.
        """
        if not fullname.startswith(f"{_STAND_IN}."):
            return
        package, _, name = fullname.rpartition(".")
        has = dir(sys.modules[package])
        modules = [found.name for found in pkgutil.iter_modules(path)]
        package = package.replace(_STAND_IN, "torch_npu", 1)
        raise ModuleNotFoundError(sentence(package, name, has, modules))


class _Distribution(importlib.metadata.Distribution):
    """The stand-in as an installed package: its name and its version."""

    def read_text(self, filename: str) -> str | None:
        version = sys.modules[_STAND_IN].__version__
        return f"Name: torch_npu\nVersion: {version}\n" if filename == "METADATA" else None

    def locate_file(self, path: str | os.PathLike[str]) -> Path:
        return PATH_FOLDER / path


class _Loader(importlib.abc.Loader):
    """Gives the module that is, or will be, imported under its own name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the machinery has replaced it by the alias's
