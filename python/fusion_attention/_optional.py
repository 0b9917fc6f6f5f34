"""The packages that single features need: which feature, which extra installs them, how to import.

They are imported when their feature is used and never before.
"""

import importlib
import importlib.util
from types import ModuleType
from typing import NamedTuple

from fusion_attention._errors import FeatureError


class Optional(NamedTuple):
    """A package: what needs it, and the extra of pyproject.toml that installs it."""

    feature: str
    extra: str


PACKAGES = {
    "matplotlib": Optional("pictures of masks and plots of speed", "pictures"),
    "rich": Optional("tables and progress in a terminal", "terminal"),
    "safetensors": Optional("replay and load_call", "recording"),
    "transformers": Optional("attention functions for Hugging Face models", "transformers"),
}


def is_installed(package: str) -> bool:
    """Says whether `package` could be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def load(module: str) -> ModuleType:
    """Imports a module of one of the packages.

    Raises:
        FeatureError: The package is not installed.

    Example:
        >>> load("safetensors.torch").__name__
        'safetensors.torch'
    """
    package = module.partition(".")[0]
    feature = PACKAGES[package].feature
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is there, and something that it needs is not
            raise
        raise FeatureError(
            f"fusion_attention: {feature} need the package {package}, which is not installed. "
            f"Install it with `pip install {package}`."
        ) from None
    return importlib.import_module(module)
