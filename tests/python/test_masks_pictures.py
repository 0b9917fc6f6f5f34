"""docs/masks.md shows what is so: every picture of a mask against what the operator really sees.

With query and key zero all visible keys weigh the same, so with the identity as value the output is
positive exactly where a row sees a key.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusion_attention import npu_fusion_attention

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from draw_masks import IMAGES, PICTURES, TILE, TILED, Case, digest, interval, tile_class, visible

ROOT = Path(__file__).resolve().parents[2]
CASES = [case for cases in PICTURES.values() for case in cases] + TILED
IDS = [f"mode_{case.sparse_mode}: {case.title.splitlines()[0]}" for case in CASES]
CAUSAL = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
RECTANGLE = torch.arange(2048).expand(1024, 2048) >= 1024


def atten_mask(case: Case) -> torch.Tensor:
    """The mask that docs/masks.md says the mode takes.

    In modes 0 and 5 it masks nothing, so that what is seen is the doing of the other arguments.
    """
    if case.sparse_mode == 1:
        return torch.from_numpy(~visible(case, 0))
    if case.sparse_mode in (0, 5):
        return torch.zeros(len(case.q_lens), 1, case.q_lens[0], case.kv_lens[0], dtype=torch.bool)
    return torch.cat([CAUSAL, RECTANGLE]) if case.sparse_mode == 6 else CAUSAL


def seen(case: Case) -> list[np.ndarray]:
    """What each sequence of a case sees, as the operator has it: bool [q_len, kv_len] each."""
    arguments = {
        "atten_mask": atten_mask(case),
        "sparse_mode": case.sparse_mode,
        "pre_tockens": case.pre_tockens,
        "next_tockens": case.next_tockens,
        "prefix": list(case.prefix) or None,
    }
    sequences = list(zip(case.q_lens, case.kv_lens, strict=True))
    if not case.packed:
        (batch, (q_len, kv_len)) = (len(sequences), sequences[0])
        query, key = torch.zeros(batch, 1, q_len, kv_len), torch.zeros(batch, 1, kv_len, kv_len)
        value = torch.eye(kv_len).expand(batch, 1, kv_len, kv_len)
        out = npu_fusion_attention(query, key, value, 1, "BNSD", **arguments)[0]
        return [(out[b, 0] > 0).numpy() for b in range(batch)]
    q_ends = list(itertools.accumulate(case.q_lens))
    kv_ends = list(itertools.accumulate(case.kv_lens))
    query, key = torch.zeros(q_ends[-1], 1, kv_ends[-1]), torch.zeros(kv_ends[-1], 1, kv_ends[-1])
    value = torch.eye(kv_ends[-1])[:, None]
    lengths = {"actual_seq_qlen": q_ends, "actual_seq_kvlen": kv_ends}
    out = npu_fusion_attention(query, key, value, 1, "TND", **lengths, **arguments)[0][:, 0]
    blocks = [
        out[q_end - q_len : q_end, kv_end - kv_len : kv_end]
        for (q_len, kv_len), q_end, kv_end in zip(sequences, q_ends, kv_ends, strict=True)
    ]
    # Each row's weights add up to one within its own block: it sees nothing of the others.
    torch.testing.assert_close(torch.cat([block.sum(1) for block in blocks]), out.sum(1))
    return [(block > 0).numpy() for block in blocks]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_operator_sees_what_the_picture_shows(case: Case) -> None:
    for sequence, block in enumerate(seen(case)):
        np.testing.assert_array_equal(block, visible(case, sequence))


STRUCTURED = [case for case in CASES if case.sparse_mode != 1]


@pytest.mark.parametrize("case", STRUCTURED, ids=[IDS[CASES.index(case)] for case in STRUCTURED])
def test_rows_are_half_open_ranges_that_never_go_back(case: Case) -> None:
    for sequence in range(len(case.q_lens)):
        matrix = visible(case, sequence)
        ranges = [interval(case, sequence, row) for row in range(len(matrix))]
        for row, (begin, end) in zip(matrix, ranges, strict=True):
            np.testing.assert_array_equal(np.nonzero(row)[0], np.arange(begin, end))
        for before, after in itertools.pairwise(ranges):
            assert before[0] <= after[0]
            assert before[1] <= after[1]


@pytest.mark.parametrize("case", TILED, ids=[case.title for case in TILED])
def test_tile_classes(case: Case) -> None:
    matrix = visible(case, 0)
    found = set()
    for row, key in itertools.product(*(range(0, extent, TILE) for extent in matrix.shape)):
        tile = matrix[row : row + TILE, key : key + TILE]
        truth = "full" if tile.all() else "partial" if tile.any() else "empty"
        assert tile_class(case, range(row, row + TILE), range(key, key + TILE)) == truth
        found.add(truth)
    assert found == {"empty", "partial", "full"}


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
        rows = [seen(whole)[1], seen(card_1)[1], seen(card_2)[0]]  # the sequence that is cut
        np.testing.assert_array_equal(rows[0], np.concatenate(rows[1:]))
