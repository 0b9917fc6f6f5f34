"""The dropout mask that the operator applies, read from its output, against its definition.

With value = identity and all scores equal, attention_out[row, key] is keep_bit / keep_prob / keys.
"""

import pytest
import torch
from known_bits import DTYPES, KNOWN
from oracle import keep_mask

from fusion_attention import npu_fusion_attention, npu_fusion_attention_grad


def _applied(
    batch: int, heads: int, q_len: int, kv_len: int, dtype: torch.dtype, **more: object
) -> tuple[torch.Tensor, tuple]:
    """Which elements survive, flat in the order of the mask's bits, and the whole result."""
    query = torch.ones(batch, heads, q_len, kv_len, dtype=dtype)
    identity = torch.eye(kv_len, dtype=dtype).expand(batch, 1, kv_len, kv_len)
    result = npu_fusion_attention(query, identity, identity, heads, "BNSD", scale=0.0, **more)
    return (result[0] != 0).flatten(), result


def _packed(bits: torch.Tensor) -> str:
    number = sum(int(bit) << k for k, bit in enumerate(bits))
    return number.to_bytes(-(-bits.numel() // 8), "little").hex()


@pytest.mark.parametrize(("seed", "offset", "dtype"), KNOWN)
def test_known_answers(seed: int, offset: int, dtype: torch.dtype) -> None:
    kept, result = _applied(1, 2, 4, 16, dtype, keep_prob=0.9, seed=seed, offset=offset)
    assert _packed(kept) == KNOWN[seed, offset, dtype]
    assert result[4:] == (seed, offset, 128)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep_prob", [0.999, 0.9, 0.75, 0.5, 0.3, 0.001])
def test_bits_of_many_rows(keep_prob: float, dtype: torch.dtype) -> None:
    # 67 keys: rows start at every position inside a Philox block of four words.
    seed, offset = 0xFEDCBA9876543210 - 2**63, 2**40 + 20
    kept, _ = _applied(2, 3, 41, 67, dtype, keep_prob=keep_prob, seed=seed, offset=offset)
    assert torch.equal(kept, keep_mask(seed, offset, kept.numel(), keep_prob, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_kept_weights_are_scaled(dtype: torch.dtype) -> None:
    kept, result = _applied(1, 1, 8, 32, dtype, keep_prob=0.5, seed=3)
    assert torch.equal(result[0].flatten(), kept.to(dtype) * 2 / 32)
    # Dropout does not enter the sum.
    assert torch.all(result[2] == 32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_sequences_continue_the_element_count(dtype: torch.dtype) -> None:
    q_lens, kv_lens, heads = [3, 0, 5, 2], [4, 6, 7, 3], 2
    key = torch.cat([torch.eye(n, 8, dtype=dtype) for n in kv_lens])[:, None]
    q_ends, kv_ends = [3, 3, 8, 10, 0], [4, 10, 17, 20, 0]
    query = torch.ones(12, heads, 8, dtype=dtype)
    out, *_, numels = npu_fusion_attention(
        query,
        key,
        key,
        heads,
        "TND",
        scale=0.0,
        keep_prob=0.6,
        seed=77,
        offset=4,
        actual_seq_qlen=q_ends,
        actual_seq_kvlen=kv_ends,
    )
    assert numels == heads * (3 * 4 + 5 * 7 + 2 * 3)
    bits = keep_mask(77, 4, numels, 0.6, dtype)
    for begin, q_len, kv_len in zip([0, 3, 3, 8], q_lens, kv_lens, strict=True):
        expected, bits = bits[: heads * q_len * kv_len], bits[heads * q_len * kv_len :]
        kept = out[begin : begin + q_len, :, :kv_len].permute(1, 0, 2) != 0
        assert torch.equal(kept.flatten(), expected)
    assert bits.numel() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_uses_the_forward_mask(dtype: torch.dtype) -> None:
    """With equal scores and dy = identity, dv is the transposed mask."""
    heads, length = 2, 24
    value = torch.zeros(1, heads, length, 24, dtype=dtype)
    query = torch.ones(1, heads, length, 24, dtype=dtype)
    out, row_max, row_sum, _, seed, offset, numels = npu_fusion_attention(
        query, query, value, heads, "BNSD", scale=0.0, keep_prob=0.5, seed=5, offset=8
    )
    _, _, dv, _, _ = npu_fusion_attention_grad(
        query,
        query,
        value,
        torch.eye(length, dtype=dtype).expand(1, heads, length, length),
        heads,
        "BNSD",
        softmax_max=row_max,
        softmax_sum=row_sum,
        attention_in=out,
        scale_value=0.0,
        keep_prob=0.5,
        seed=seed,
        offset=offset,
        numels=numels,
    )
    expected = keep_mask(5, 8, numels, 0.5, dtype).reshape(1, heads, length, length)
    assert torch.equal(dv.mT != 0, expected)


@pytest.mark.parametrize("keep_prob", [0.9, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_external_mask_is_read_bit_by_bit(dtype: torch.dtype, keep_prob: float) -> None:
    count = 2 * 3 * 5 * 13
    mask = torch.randint(
        0, 256, (-(-count // 8),), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    kept, result = _applied(2, 3, 5, 13, dtype, keep_prob=keep_prob, dropout_mask=mask)
    expected = [(int(mask[k // 8]) >> (k % 8)) & 1 == 1 for k in range(count)]
    assert kept.tolist() == expected
    assert result[4:] == (0, 0, count)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_generated_mask_given_as_an_external_one_changes_nothing(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, 3, 37, 16, generator=generator).to(dtype) for _ in "qkv")
    generated = npu_fusion_attention(
        query, key, value, 3, "BNSD", scale=0.25, keep_prob=0.7, seed=9, offset=16
    )
    bits = keep_mask(9, 16, generated[6], 0.7, dtype)
    packed = torch.tensor(list(bytes.fromhex(_packed(bits))), dtype=torch.uint8)
    external = npu_fusion_attention(
        query, key, value, 3, "BNSD", scale=0.25, keep_prob=0.7, dropout_mask=packed
    )
    for a, b in zip(generated[:3], external[:3], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("keep_prob", [1.0, 1 - 1e-10])
def test_keep_prob_one_is_no_dropout(keep_prob: float) -> None:
    kept, result = _applied(1, 2, 5, 7, torch.float32, keep_prob=keep_prob)
    assert kept.all()
    assert result[4:] == (0, 0, 70)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vanishing_keep_prob_drops_everything(dtype: torch.dtype) -> None:
    kept, result = _applied(1, 2, 5, 7, dtype, keep_prob=1e-10)
    assert not kept.any()
    assert torch.all(result[2] == 7)
    assert result[4:] == (0, 0, 70)
