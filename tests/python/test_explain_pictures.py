"""The pictures of explain: files of each format, what they show, and life without matplotlib."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from lint_calls import CAUSAL, PREFIX, call, meta, packed
from PIL import Image

from fusion_attention import explain
from fusion_attention._errors import FeatureError
from fusion_attention.explaining import Report
from fusion_attention.explaining.panels import panels_of

BLUE, AMBER, GREY = (0, 114, 178), (240, 181, 74), (218, 218, 218)
SMALL = call(q=8, kv=8, atten_mask=CAUSAL, sparse_mode=3)
LARGE = call(q=500, kv=900, atten_mask=CAUSAL, sparse_mode=3)


def colours(path: Path) -> dict[tuple[int, ...], int]:
    """How many pixels of a picture have which colour."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(c): int(n) for c, n in zip(found.tolist(), counts.tolist(), strict=True)}


def test_png_of_a_small_mask_has_an_area_for_each_pair(tmp_path: Path) -> None:
    explain(**SMALL).save(tmp_path / "mask.png")
    areas = colours(tmp_path / "mask.png")
    # 36 pairs are visible and 28 are not; the dashed diagonal and the legend cost some of each.
    assert areas[BLUE] / areas[GREY] == pytest.approx(36 / 28, rel=0.12)
    assert AMBER not in areas


def test_png_of_a_large_mask_has_tiles_of_three_kinds(tmp_path: Path) -> None:
    explain(**LARGE).save(tmp_path / "mask.png")
    areas = colours(tmp_path / "mask.png")
    assert min(areas[BLUE], areas[GREY], areas[AMBER]) > 1000


@pytest.mark.parametrize(
    "report",
    [
        explain(**SMALL),
        explain(**LARGE),
        explain(**call(sparse_mode=2)),
        explain(**call(q=8, kv=8, atten_mask=PREFIX, sparse_mode=6, prefix=[4, 5])),
        explain(**packed([100, 300, 640], [100, 300, 640], atten_mask=CAUSAL, sparse_mode=3)),
        explain(**call(head_num=3)),
        explain(**call(q=0, kv=0)),
    ],
    ids=["small", "large", "no mask", "prefix", "packed", "refused", "empty"],
)
def test_svg_names_the_verdict_and_the_html_has_both_forms(report: Report, tmp_path: Path) -> None:
    report.save(str(tmp_path / "mask.svg"))
    root = ElementTree.parse(tmp_path / "mask.svg").getroot()
    shown = " ".join("".join(root.itertext()).split())
    assert report.verdict in shown
    page = report._repr_html_()
    assert page.startswith("<svg")
    assert "Statistics" in page or report.facts is None
    report.save(tmp_path / "mask.html")
    assert (tmp_path / "mask.html").read_text(encoding="utf-8").startswith("<svg")


def test_cells_have_one_size_and_say_so(tmp_path: Path) -> None:
    """Short sequences alone have smaller ones, where their shape would be lost."""
    ends = [300, 550, 900]
    alike = explain(**packed(ends, ends, atten_mask=CAUSAL, sparse_mode=3))
    assert [p.size for p in panels_of(alike.facts, alike.visible, 4, 32)] == [32] * 4
    alike.save(tmp_path / "mask.svg")
    shown = (tmp_path / "mask.svg").read_text(encoding="utf-8")
    assert shown.count("cells of 32 x 32 tokens") == 4
    assert "tile" not in shown
    ends = list(range(40, 40 * 101, 40))
    short = explain(**packed(ends, ends, atten_mask=CAUSAL, sparse_mode=3))
    assert [p.size for p in panels_of(short.facts, short.visible, 4, 32)] == [128, 2, 2, 2]


def test_heads_that_differ_have_a_panel_each(tmp_path: Path) -> None:
    mask = torch.zeros(2, 4, 6, 6, dtype=torch.bool)
    for batch in range(2):
        for head in range(4):
            mask[batch, head, :, head + batch :] = True
    report = explain(**call(q=6, kv=6, atten_mask=mask, sparse_mode=1))
    assert report.visible.distinct == 8
    assert report.pairs == 6 * sum(head + batch for batch in range(2) for head in range(4))
    text = report.text()
    assert "batch 0, head 1: 6 x 6" in text
    assert "8 score matrices may differ" in text
    report.save(tmp_path / "mask.svg")
    assert "batch 0, head 3" in (tmp_path / "mask.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("ends", [[3, 5], [300, 550, 900]], ids=["one panel", "an overview"])
def test_packed_sequences_are_all_shown(ends: list[int]) -> None:
    text = explain(**packed(ends, ends, atten_mask=CAUSAL, sparse_mode=3)).text()
    assert "packed sequences" in text or "all 3 sequences" in text
    assert "may differ" not in text


def test_expanded_masks_are_looked_at_once() -> None:
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
    report = explain(**call(q=6, kv=6, atten_mask=mask.expand(2, 4, 6, 6), sparse_mode=1))
    assert report.visible.distinct == 1
    assert report.pairs == 2 * 4 * 21
    assert "every batch and head: 6 x 6" in report.text()


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"ending in \.png, \.svg, \.txt or \.html"):
        explain(**SMALL).save(tmp_path / "mask.pdf")


def test_without_matplotlib_all_but_pictures_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = explain(**SMALL)
    assert report._repr_html_().startswith("<pre>")
    report.save(tmp_path / "mask.txt")
    with pytest.raises(FeatureError, match="pip install matplotlib"):
        report.save(tmp_path / "mask.png")


def test_meta_masks_draw_an_upper_bound(tmp_path: Path) -> None:
    mask = meta(8, 8, dtype=torch.bool)
    report = explain(**call(q=8, kv=8, atten_mask=mask, next_tockens=0))
    report.save(tmp_path / "mask.png")
    assert colours(tmp_path / "mask.png")[GREY] > 1000
