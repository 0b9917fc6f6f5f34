"""Replaces the parts of a page that the benchmark writes; the rest of the page stays as it is."""

from __future__ import annotations

import re
from pathlib import Path

from fusion_attention._errors import FeatureError


def _block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)


def require(page: Path, name: str) -> None:
    """Raises unless the page has the block: better now than after the measurement.

    Raises:
        FeatureError: There is no such page, or no such block in it.
    """
    if not page.is_file():
        raise FeatureError(f"there is no page {page} to write to")
    if not _block(name).search(page.read_text(encoding="utf-8")):
        raise FeatureError(f"{page} has no lines <!-- begin {name} --> and <!-- end {name} -->")


def replace_block(page: Path, name: str, content: str) -> None:
    """Puts `content` between the page's lines `<!-- begin NAME -->` and `<!-- end NAME -->`."""
    text = page.read_text(encoding="utf-8")
    text = _block(name).sub(lambda m: f"{m[1]}\n{content}\n\n{m[2]}", text)
    page.write_text(text, encoding="utf-8")
