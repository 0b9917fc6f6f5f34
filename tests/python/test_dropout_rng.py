"""Where dropout's (seed, offset) come from, and that they decide the mask.

Which bits a pair stands for is the business of the C++ tests and of test_differential.py.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fusion_attention import npu_fusion_attention, npu_fusion_attention_grad

HEADS = 2


def call(keep_prob: float = 0.5, **keywords: Any) -> tuple[Any, ...]:
    """One call on tensors of ones, so that attention_out shows the mask."""
    ones = torch.ones(1, HEADS, 17, 8)
    return npu_fusion_attention(ones, ones, ones, HEADS, "BNSD", keep_prob=keep_prob, **keywords)


def pair(**keywords: Any) -> tuple[int, int]:
    """The (seed, offset) of one call."""
    return call(**keywords)[4:6]


def unsigned(word: int) -> int:
    """The same 64 bits as an unsigned number."""
    return word % 2**64


def test_first_draw_after_seeding_has_offset_zero() -> None:
    for seed in (0, 1, 20240607, 2**63 - 1):
        torch.manual_seed(seed)
        assert pair() == (seed, 0)


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1, -1, -(2**63)])
def test_seeds_beyond_int64_come_back_wrapped(seed: int) -> None:
    torch.manual_seed(seed)
    seed_used, offset = pair()
    assert -(2**63) <= seed_used < 2**63
    assert unsigned(seed_used) == unsigned(torch.initial_seed())
    assert offset == 0
    # The wrapped value is the same generator for the gradient and for an explicit call.
    torch.manual_seed(seed)
    drawn = call()[0]
    assert torch.equal(call(seed=seed_used, offset=0)[0], drawn)
    assert torch.equal(call(seed=unsigned(seed_used), offset=0)[0], drawn)


def test_later_draws_are_distinct_whole_blocks() -> None:
    torch.manual_seed(7)
    pairs = [pair() for _ in range(64)]
    assert {seed for seed, _ in pairs} == {7}
    offsets = [offset for _, offset in pairs]
    assert offsets[0] == 0
    assert len(set(offsets)) == len(offsets)
    assert all(offset % 4 == 0 for offset in offsets)
    assert any(offset < 0 for offset in offsets)  # all 64 bits are used


def test_no_offset_is_zero_again_however_often_is_drawn() -> None:
    # The generator refills after 624 words of 32 bits, which must not look like a fresh seed.
    torch.manual_seed(7)
    pair()
    assert all(pair()[1] != 0 for _ in range(700))


def test_any_other_random_number_ends_the_first_draw() -> None:
    torch.manual_seed(7)
    torch.rand(1)
    assert pair()[1] != 0


def test_each_call_consumes_exactly_one_draw() -> None:
    torch.manual_seed(7)
    torch.empty((), dtype=torch.int64).random_(-(2**63), None)
    after_one_draw = torch.get_rng_state()
    for keywords in ({}, {"keep_prob": 0.999}, {"sparse_mode": 1}):
        torch.manual_seed(7)
        call(**keywords)
        assert torch.equal(torch.get_rng_state(), after_one_draw)


NO_DRAW: list[Callable[[], Any]] = [
    lambda: call(keep_prob=1.0),
    lambda: call(keep_prob=1 - 1e-10),
    lambda: call(keep_prob=1e-10),
    lambda: call(seed=5),
    lambda: call(dropout_mask=torch.full(((HEADS * 17 * 17 + 7) // 8,), 255, dtype=torch.uint8)),
]


@pytest.mark.parametrize("make_call", NO_DRAW)
def test_calls_that_need_no_random_bits_draw_none(make_call: Callable[[], Any]) -> None:
    before = torch.get_rng_state()
    make_call()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "broken",
    [
        {"scale": float("nan")},
        {"sparse_mode": 9},
        {"padding_mask": torch.ones(1)},
        {"atten_mask": torch.ones(3, 3, dtype=torch.bool)},
        {"atten_mask": torch.zeros(2048, 2048, dtype=torch.bool), "sparse_mode": 2},
        {"keep_prob": -0.5},
        {"keep_prob": float("nan")},
    ],
    ids=lambda broken: next(reversed(broken)),
)
def test_rejected_calls_draw_nothing(broken: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match=r"^npu_fusion_attention: expected"):
        call(**broken)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_dropout_the_pair_is_zero() -> None:
    assert pair(keep_prob=1.0) == (0, 0)
    assert pair(keep_prob=1.0, seed=5, offset=8) == (0, 0)


def test_explicit_pair_is_used_and_returned() -> None:
    assert pair(seed=5, offset=8) == (5, 8)
    first, same, other = (call(seed=5, offset=offset)[0] for offset in (8, 8, 12))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_seed_of_zero_draws() -> None:
    torch.manual_seed(3)
    assert pair(seed=0, offset=8) == (3, 0)


def test_the_mask_is_a_function_of_the_returned_pair() -> None:
    torch.manual_seed(11)
    for _ in range(3):
        out, *_, seed, offset, _ = call()
        assert torch.equal(call(seed=seed, offset=offset)[0], out)


def test_get_and_set_rng_state_reproduce() -> None:
    torch.manual_seed(3)
    pair()
    state = torch.get_rng_state()
    first = [pair() for _ in range(3)]
    torch.set_rng_state(state)
    assert [pair() for _ in range(3)] == first


def test_state_of_a_fresh_seed_reproduces_offset_zero() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    pair()
    torch.manual_seed(99)
    torch.set_rng_state(state)
    assert pair() == (3, 0)


def test_fork_rng_leaves_the_outside_alone() -> None:
    torch.manual_seed(3)
    pair()
    with torch.random.fork_rng(devices=[]):
        inside = pair()
    assert pair() == inside


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_repeats_the_mask(use_reentrant: bool) -> None:
    def block(query: Tensor) -> Tensor:
        hidden = npu_fusion_attention(query, query, query, HEADS, "BNSD", keep_prob=0.5)[0]
        return npu_fusion_attention(hidden, query, query, HEADS, "BNSD", keep_prob=0.7)[0]

    def recomputed(query: Tensor) -> Tensor:
        return checkpoint(block, query, use_reentrant=use_reentrant)

    def loss_backward(run: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        # Reentrant checkpoints allow .backward() only.
        torch.manual_seed(13)
        pair()
        query = torch.linspace(-1, 1, HEADS * 17 * 8).view(1, HEADS, 17, 8).requires_grad_()
        loss = run(query).square().sum()
        loss.backward()
        return loss, query.grad

    for plain, again in zip(loss_backward(block), loss_backward(recomputed), strict=True):
        assert torch.equal(plain, again)


def test_the_gradient_entry_repeats_the_mask_of_autograd() -> None:
    query, key, value = (torch.randn(1, HEADS, 17, 8, requires_grad=True) for _ in range(3))
    out, softmax_max, softmax_sum, _, seed, offset, numels = npu_fusion_attention(
        query, key, value, HEADS, "BNSD", keep_prob=0.5
    )
    dy = torch.randn_like(out)
    expected = torch.autograd.grad(out, (query, key, value), dy)
    given = npu_fusion_attention_grad(
        query,
        key,
        value,
        dy,
        HEADS,
        "BNSD",
        softmax_max=softmax_max,
        softmax_sum=softmax_sum,
        attention_in=out,
        keep_prob=0.5,
        seed=seed,
        offset=offset,
        numels=numels,
    )
    assert all(torch.equal(*both) for both in zip(given[:3], expected, strict=True))


def test_an_external_mask_acts_forward_and_backward() -> None:
    query, key, value = (torch.randn(1, HEADS, 17, 8, requires_grad=True) for _ in range(3))
    nothing = torch.zeros((HEADS * 17 * 17 + 7) // 8, dtype=torch.uint8)
    out = npu_fusion_attention(
        query, key, value, HEADS, "BNSD", keep_prob=0.5, dropout_mask=nothing
    )[0]
    assert torch.count_nonzero(out) == 0
    for gradient in torch.autograd.grad(out.sum(), (query, key, value)):
        assert torch.count_nonzero(gradient) == 0

    kept = npu_fusion_attention(
        query, key, value, HEADS, "BNSD", keep_prob=0.5, dropout_mask=nothing + 255
    )[0]
    plain = npu_fusion_attention(query, key, value, HEADS, "BNSD")[0]
    torch.testing.assert_close(kept, plain * 2)
