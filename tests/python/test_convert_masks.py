"""A dense mask is recognised as the mode whose predicate it is, and as nothing else."""

import itertools

import pytest
import torch
from oracle import Geometry, visible_keys

from fusion_attention._masks import Structure, causal_mask, fit_band, prefix_mask, recognise

SIZES = [(1, 1), (1, 5), (5, 1), (4, 4), (3, 7), (7, 3), (2, 9), (9, 2)]


def predicate(structure: Structure, batch: int, q_len: int, kv_len: int) -> torch.Tensor:
    """What the test oracle says that a structured mode masks: bool [B, 1, Sq, Skv]."""
    query, key = torch.zeros(batch, 1, q_len, 1), torch.zeros(batch, 1, kv_len, 1)
    call = {"query": query, "key": key, "value": key, "head_num": 1, "input_layout": "BNSD"}
    call |= structure.arguments()
    geometry = Geometry.of(call)
    return torch.stack([~visible_keys(call, geometry, s) for s in geometry.sequences])


def structures(q_len: int, kv_len: int) -> list[Structure]:
    """All structures of modes 0, 2, 3 and 4 that a matrix of this size can show, and more."""
    found = [Structure(0), Structure(2), Structure(3)]
    longest = max(q_len, kv_len) + 1
    for pre, following in itertools.product(range(-longest, longest + 1), repeat=2):
        found.append(Structure(4, pre, following))
    return found


@pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
def test_what_is_recognised_masks_the_same_pairs(q_len: int, kv_len: int) -> None:
    for structure in structures(q_len, kv_len):
        masked = predicate(structure, 2, q_len, kv_len)
        if masked.all():
            continue
        found = recognise(masked)
        assert found is not None, structure
        assert torch.equal(predicate(found, 2, q_len, kv_len), masked), (structure, found)


@pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
def test_every_prefix_is_recognised(q_len: int, kv_len: int) -> None:
    lowest = max(kv_len - q_len, 0)
    for prefix in itertools.product(range(lowest, kv_len + 1), repeat=2):
        masked = predicate(Structure(6, prefix=prefix), 2, q_len, kv_len)
        if masked.all():
            continue
        found = recognise(masked)
        assert found is not None, prefix
        assert torch.equal(predicate(found, 2, q_len, kv_len), masked), (prefix, found)


def test_the_simplest_mode_is_named() -> None:
    square, wide = torch.ones(6, 6, dtype=torch.bool), torch.ones(4, 6, dtype=torch.bool)
    assert recognise(~square) == Structure(0)
    assert recognise(square.triu(1)) == Structure(2)
    assert recognise(wide.triu(1)) == Structure(2)
    assert recognise(wide.triu(3)) == Structure(3)
    assert recognise(~square.tril(0).triu(-2)) == Structure(4, 2, 0)
    keys = torch.arange(6)
    assert recognise(square.triu(1) & (keys >= 3)) == Structure(6, prefix=(3,))


@pytest.mark.parametrize("flip", range(20))
def test_one_wrong_pair_is_noticed(flip: int) -> None:
    generator = torch.Generator().manual_seed(flip)
    for structure in (Structure(2), Structure(3), Structure(4, 3, 1), Structure(6, prefix=(3, 5))):
        masked = predicate(structure, 2, 6, 7)
        index = torch.randint(masked.numel(), (), generator=generator)
        masked.view(-1)[index] ^= True
        found = recognise(masked)
        # What is still some mode must be exactly this mask; batches may have prefixes of their own.
        if found is not None:
            assert torch.equal(predicate(found, 2, 6, 7), masked)


def test_no_mode_is_claimed_for_other_masks() -> None:
    causal = torch.ones(8, 8, dtype=torch.bool).triu(1)
    heads = torch.stack([causal, torch.zeros_like(causal)])[None]
    assert recognise(heads) is None
    assert recognise(torch.ones(4, 4, dtype=torch.bool)) is None
    assert recognise(torch.zeros(0, 4, dtype=torch.bool)) is None
    assert recognise(~causal) is not None, "inverted causal is a band above the diagonal"
    assert recognise(causal ^ torch.eye(8, dtype=torch.bool).roll(3)) is None


def test_uint8_and_expanded_masks_are_read_as_they_are() -> None:
    causal = torch.ones(8, 8, dtype=torch.uint8).triu(1) * 7
    assert recognise(causal) == Structure(2)
    assert recognise(causal.expand(1000, 256, 8, 8)) == Structure(2)


def test_one_band_for_blocks_of_any_size() -> None:
    band = torch.ones(9, 9, dtype=torch.bool).tril(1).triu(-3)
    assert fit_band([band[:2, :2], band, band[:1, :1]]) == (3, 1)
    assert fit_band([band, torch.ones(9, 9, dtype=torch.bool).tril()]) is None


def test_compressed_masks_are_those_of_the_operator() -> None:
    assert torch.equal(causal_mask(), torch.ones(2048, 2048, dtype=torch.bool).triu(1))
    expected = torch.zeros(3072, 2048, dtype=torch.bool)
    expected[:2048] = causal_mask()
    expected[2048:, 1024:] = True
    assert torch.equal(prefix_mask(), expected)


def test_a_mask_first_made_in_inference_mode_serves_training() -> None:
    causal_mask.cache_clear()
    with torch.inference_mode():
        assert not causal_mask().is_inference()
