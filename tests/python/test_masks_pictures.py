"""docs/masks.md shows what is so: every picture of a mask against what the operator really sees.

With query and key zero all visible keys weigh the same, so with the identity as value the output is
positive exactly where a row sees a key.
"""

import itertools
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from fusion_attention import npu_fusion_attention
from fusion_attention.explaining.panels import EMPTY, FULL, OUTSIDE, PARTIAL

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from draw_masks import IMAGES, PICTURES, TILE, TILED, Case, arguments, digest, explained, panels

ROOT = Path(__file__).resolve().parents[2]
CASES = [case for cases in PICTURES.values() for case in cases] + TILED
IDS = [f"mode_{case.sparse_mode}: {case.title.splitlines()[0]}" for case in CASES]


def seen(case: Case) -> list[torch.Tensor]:
    """What each sequence of a case sees, as the operator has it: bool [q_len, kv_len] each."""
    keys = sum(case.kv_lens) if case.packed else case.kv_lens[0]
    call = arguments(case, keys, "cpu")
    if not case.packed:
        call["value"] += torch.eye(keys)
        out = npu_fusion_attention(**call)[0]
        return [block[0] > 0 for block in out]
    call["value"] += torch.eye(keys)[:, None]
    out = npu_fusion_attention(**call)[0][:, 0]
    blocks = []
    for q_len, kv_len, q_end, kv_end in zip(
        case.q_lens, case.kv_lens, call["actual_seq_qlen"], call["actual_seq_kvlen"], strict=True
    ):
        blocks.append(out[q_end - q_len : q_end, kv_end - kv_len : kv_end])
    # Each row's weights add up to one within its own block: it sees nothing of the others.
    torch.testing.assert_close(torch.cat([block.sum(1) for block in blocks]), out.sum(1))
    return [block > 0 for block in blocks]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_operator_sees_what_the_picture_shows(case: Case) -> None:
    blocks, shown = seen(case), panels(case)
    if not case.packed:
        for block, panel in zip(blocks, shown, strict=False):
            assert torch.equal(panel.cells == FULL, block)
            assert torch.equal(panel.cells == EMPTY, ~block)
        assert len(shown) == len(case.prefix) or all(torch.equal(b, blocks[0]) for b in blocks)
        return
    (panel,) = shown
    assert torch.equal(panel.cells == FULL, torch.block_diag(*blocks).bool())
    inside = torch.block_diag(*(torch.ones_like(block) for block in blocks)).bool()
    assert torch.equal(panel.cells != OUTSIDE, inside)


STRUCTURED = [case for case in CASES if case.sparse_mode != 1]


@pytest.mark.parametrize("case", STRUCTURED, ids=[IDS[CASES.index(case)] for case in STRUCTURED])
def test_rows_are_half_open_ranges_that_never_go_back(case: Case) -> None:
    blocks = seen(case)
    for matrix in explained(case).visible.matrices:
        key = torch.arange(matrix.kv_len)
        begin, end = matrix.ranges.unbind(1)
        inside = (key >= begin[:, None]) & (key < end[:, None])
        assert torch.equal(inside, blocks[matrix.sequence])
        assert (matrix.ranges.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("case", TILED, ids=[case.title for case in TILED])
def test_tile_classes(case: Case) -> None:
    (matrix,), (panel,) = seen(case), panels(case, TILE)
    assert torch.equal(panel.dots, matrix)
    for row, key in itertools.product(*map(range, panel.cells.shape)):
        tile = matrix[row * TILE : (row + 1) * TILE, key * TILE : (key + 1) * TILE]
        assert panel.cells[row, key] == (FULL if tile.all() else PARTIAL if tile.any() else EMPTY)
    assert panel.cells.unique().tolist() == [EMPTY, PARTIAL, FULL]


@pytest.mark.parametrize("name", [*PICTURES, "tiles", "compressed"])
def test_picture_is_current_small_and_shown(name: str) -> None:
    cases = {**PICTURES, "tiles": TILED, "compressed": []}[name]
    path = IMAGES / f"{name}.png"
    with Image.open(path) as image:
        assert image.text["masks"] == digest(cases), "run tools/draw_masks.py"
        assert min(image.size) > 200
    assert path.stat().st_size < 40_000
    assert f"(images/{name}.png)" in (ROOT / "docs" / "masks.md").read_text(encoding="utf-8")


def test_cards_share_out_the_rows_of_the_whole() -> None:
    for name in ("mode_7", "mode_8"):
        whole, card_1, card_2 = PICTURES[name]
        assert sum(card_1.q_lens) == whole.cut
        # The sequence that is cut.
        assert torch.equal(seen(whole)[1], torch.cat([seen(card_1)[1], seen(card_2)[0]]))
