"""MindSpeed's ring attention: partial calls, merged by their statistics, and gradients by hand.

All ranks live in one process and take their turns; what a rank calls is what it calls on the
device. Each step of a rank has dropout of its own, so its seed, offset and numels come back.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from checking import assert_exact, causal_mask, composed_dropout, leaf, meant
from torch import Tensor

B, N, D = 2, 2, 16
RANKS, CHUNK = 3, 12  # a rank holds one chunk of the sequence's front and one of its back
S = 2 * RANKS * CHUNK
SCALE = D**-0.5

Partial = tuple[Tensor, Tensor, Tensor]  # attention_out, softmax_max, softmax_sum


def forward_update(previous: Partial, current: Partial, layout: str = "SBH") -> Partial:
    """Merges two partial results over different keys as the framework's small operators do."""
    prev_out, prev_max, prev_sum = previous
    cur_out, cur_max, cur_sum = current
    softmax_max = torch.maximum(prev_max, cur_max)
    prev_sum = prev_sum * torch.exp(prev_max - softmax_max)
    cur_sum = cur_sum * torch.exp(cur_max - softmax_max)
    softmax_sum = prev_sum + cur_sum

    def weight(share: Tensor) -> Tensor:
        if layout == "SBH":  # [b, n, s, 8] -> [s, b, n * d]
            return share[..., :1].permute(2, 0, 1, 3).expand(-1, -1, -1, D).flatten(2)
        return share[..., :1]

    out = prev_out * weight(prev_sum / softmax_sum) + cur_out * weight(cur_sum / softmax_sum)
    return out.to(prev_out.dtype), softmax_max, softmax_sum


def fused_update(previous: Partial, current: Partial) -> Partial:
    """The same by the device's own operator."""
    return torch_npu.npu_ring_attention_update(*previous, *current)


def fuse(q: Tensor, k: Tensor, v: Tensor, keep_prob: float, **options: Any) -> Any:
    """One step forward; all seven results."""
    return torch_npu.npu_fusion_attention(
        q, k, v, N, "SBH",
        pse=None,
        padding_mask=None,
        scale=SCALE,
        keep_prob=keep_prob,
        **options,
    )  # fmt: skip


def fuse_grad(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    final: Partial,
    keep_prob: float,
    rng_state: tuple[int, int, int],
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step backward, from the merged output and the merged statistics."""
    out, softmax_max, softmax_sum = final
    grads = torch_npu.npu_fusion_attention_grad(
        q, k, v, dout, N, "SBH",
        pse=None,
        padding_mask=None,
        softmax_max=softmax_max,
        softmax_sum=softmax_sum,
        attention_in=out,
        scale_value=SCALE,
        keep_prob=keep_prob,
        seed=rng_state[0],
        offset=rng_state[1],
        numels=rng_state[2],
        **options,
    )  # fmt: skip
    return grads[0], grads[1], grads[2]


def head_tail(x: Tensor, rank: int) -> Tensor:
    """[2, chunk, b, h]: the rank's two chunks of [s, b, h]."""
    chunks = x.chunk(2 * RANKS, dim=0)
    return torch.stack([chunks[rank], chunks[-1 - rank]])


def tokens_of(rank: int) -> Tensor:
    """Where the rank's tokens are in the sequence."""
    return head_tail(torch.arange(S).reshape(S, 1, 1), rank).flatten()


def halves(q_rank: int, kv_rank: int) -> tuple[slice, slice]:
    """Which of its two chunks of queries a rank uses on which of two chunks of keys."""
    if q_rank == kv_rank:
        return slice(0, 2), slice(0, 2)
    return (slice(0, 2), slice(0, 1)) if kv_rank < q_rank else (slice(1, 2), slice(0, 2))


def rows_from(partial: Partial, first: int) -> Partial:
    """The results of the rows from `first` on."""
    out, softmax_max, softmax_sum = partial
    return out[first:], softmax_max[:, :, first:], softmax_sum[:, :, first:]


@pytest.mark.parametrize(
    ("keep_prob", "update"), [(1.0, forward_update), (0.8, forward_update), (0.8, fused_update)]
)
def test_causal_ring(keep_prob: float, update: Callable[[Partial, Partial], Partial]) -> None:
    query, key, value = (leaf(S, B, N * D).detach() for _ in range(3))
    dout = torch.randn_like(query)
    mask = causal_mask()
    qs, ks, vs, douts = (
        [head_tail(x, rank) for rank in range(RANKS)] for x in (query, key, value, dout)
    )

    def options(q_rank: int, kv_rank: int, k: Tensor) -> dict[str, Any]:
        diagonal = q_rank == kv_rank
        return {
            "atten_mask": mask if diagonal else None,
            "pre_tockens": k.shape[0],
            "next_tockens": 0 if diagonal else k.shape[0],
            "sparse_mode": 3 if diagonal else 0,
        }

    finals, rng_states, dropped = [], {}, []
    for rank in range(RANKS):
        final: Partial | None = None
        for step in range(RANKS):
            kv_rank = (rank - step) % RANKS
            rows, columns = halves(rank, kv_rank)
            q = qs[rank][rows].flatten(0, 1)
            k, v = ks[kv_rank][columns].flatten(0, 1), vs[kv_rank][columns].flatten(0, 1)
            outs = fuse(q, k, v, keep_prob, **options(rank, kv_rank, k))
            rng_states[rank, kv_rank] = outs[4], outs[5], outs[6]
            assert outs[6] == B * N * len(q) * len(k)
            row_tokens = tokens_of(rank).reshape(2, CHUNK)[rows].flatten()
            key_tokens = tokens_of(kv_rank).reshape(2, CHUNK)[columns].flatten()
            dropped.append((row_tokens, key_tokens, outs[4], outs[5]))
            if final is None:
                final = outs[:3]
                continue
            first = rows.start * CHUNK
            new = update(rows_from(final, first), outs[:3])
            final = tuple(
                torch.cat([old.narrow(dim, 0, first), x], dim)
                for old, x, dim in zip(final, new, (0, 2, 2), strict=True)
            )
        finals.append(final)

    dqs, dks, dvs = ([torch.zeros_like(x) for x in xs] for xs in (qs, ks, vs))
    for rank, final in enumerate(finals):
        for kv_rank in range(RANKS):
            rows, columns = halves(rank, kv_rank)
            k, v = ks[kv_rank][columns].flatten(0, 1), vs[kv_rank][columns].flatten(0, 1)
            dq, dk, dv = fuse_grad(
                qs[rank][rows].flatten(0, 1),
                k,
                v,
                douts[rank][rows].flatten(0, 1),
                rows_from(final, rows.start * CHUNK),
                keep_prob,
                rng_states[rank, kv_rank],
                **options(rank, kv_rank, k),
            )
            dqs[rank][rows] += dq.unflatten(0, (-1, CHUNK))
            dks[kv_rank][columns] += dk.unflatten(0, (-1, CHUNK))
            dvs[kv_rank][columns] += dv.unflatten(0, (-1, CHUNK))

    def gathered(parts: list[Tensor]) -> Tensor:
        return torch.cat([x[0] for x in parts] + [x[1] for x in parts[::-1]])

    results = {
        "out": gathered([out.unflatten(0, (2, CHUNK)) for out, _, _ in finals]),
        "dq": gathered(dqs),
        "dk": gathered(dks),
        "dv": gathered(dvs),
    }
    meaning = meant(query, key, value, N, "SBH", scale=SCALE, atten_mask=mask, sparse_mode=2)
    if keep_prob < 1:
        bits = composed_dropout((B, N, S, S), dropped, keep_prob, query.dtype)
        meaning |= {"keep_prob": keep_prob, "dropout_mask": bits}
    assert_exact(results, meaning, dout, parts=2 * RANKS)


def test_general_ring_with_blocks_that_see_nothing() -> None:
    """Any mask, mode 1: blocks above the diagonal are all True and must vanish in the merge."""
    query, key, value = (leaf(S, B, N * D).detach() for _ in range(3))
    dout = torch.randn_like(query)
    documents = torch.tensor([0, 20, 31, S])
    owner = torch.bucketize(torch.arange(S), documents, right=True)
    visible = (owner[:, None] == owner) & torch.ones(S, S, dtype=torch.bool).tril()
    block = S // RANKS
    masks = [
        [x.logical_not().expand(B, 1, block, block) for x in rows.split(block, dim=1)]
        for rows in visible.split(block)
    ]
    qs, ks, vs, douts = (x.split(block) for x in (query, key, value, dout))
    options = {"pre_tockens": block, "next_tockens": block, "sparse_mode": 1}
    outs, dqs, dks, dvs = ([torch.zeros_like(x) for x in xs] for xs in (qs, qs, ks, vs))
    for rank in range(RANKS):
        final: Partial | None = None
        rng_states = {}
        order = [(rank - step) % RANKS for step in range(RANKS)]
        for kv_rank in order:
            atten_mask = masks[rank][kv_rank].npu()
            part = fuse(qs[rank], ks[kv_rank], vs[kv_rank], 1.0, atten_mask=atten_mask, **options)
            assert all(x.isfinite().all() for x in part[:3])
            rng_states[kv_rank] = part[4], part[5], part[6]
            final = part[:3] if final is None else forward_update(final, part[:3])
        outs[rank] = final[0]
        for kv_rank in order:
            grads = fuse_grad(
                qs[rank],
                ks[kv_rank],
                vs[kv_rank],
                douts[rank],
                final,
                1.0,
                rng_states[kv_rank],
                atten_mask=masks[rank][kv_rank].npu(),
                **options,
            )
            for total, grad in zip((dqs[rank], dks[kv_rank], dvs[kv_rank]), grads, strict=True):
                total += grad
    names = ("out", "dq", "dk", "dv")
    results = dict(zip(names, map(torch.cat, (outs, dqs, dks, dvs)), strict=True))
    assert not visible[:block, block:].any()  # two blocks of the first rank see nothing
    mask = visible.logical_not()
    meaning = meant(query, key, value, N, "SBH", scale=SCALE, atten_mask=mask, sparse_mode=1)
    assert_exact(results, meaning, dout, parts=2 * RANKS)


def statistics_by_token(statistics: Tensor, ends: list[int]) -> Tensor:
    """[t, n, 8] from what packed calls store: one [n, length, 8] block a document."""
    lengths = torch.tensor([0, *ends]).diff().tolist()
    blocks = statistics.reshape(-1, 8).split([n * N for n in lengths])
    return torch.cat([x.reshape(N, -1, 8).transpose(0, 1) for x in blocks])


def statistics_by_document(statistics: Tensor, ends: list[int]) -> Tensor:
    """The inverse: the order that the gradient takes."""
    blocks = statistics.split(torch.tensor([0, *ends]).diff().tolist())
    flat = torch.cat([x.transpose(0, 1).reshape(-1, 8) for x in blocks])
    return flat.reshape(statistics.shape).contiguous()


@pytest.mark.parametrize("fused", [False, True])
def test_packed_ring_without_a_mask(fused: bool) -> None:
    """Documents cut over the ranks, lists with a leading 0, statistics reordered to be merged."""
    lengths = [5, 12, 3]  # of each rank's piece of each document
    cu_seqlens = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    pieces = sum(lengths)
    query, key, value = (leaf(RANKS * pieces, N, D).detach() for _ in range(3))
    dout = torch.randn_like(query)
    lists = {"actual_seq_qlen": cu_seqlens, "actual_seq_kvlen": cu_seqlens}
    ends = torch.tensor(cu_seqlens, dtype=torch.int64, device="npu")
    qs, ks, vs, douts = (x.split(pieces) for x in (query, key, value, dout))
    outs, dqs, dks, dvs = ([torch.zeros_like(x) for x in xs] for xs in (qs, qs, ks, vs))
    for rank in range(RANKS):
        final: Partial | None = None
        for kv_rank in range(RANKS):
            current = torch_npu.npu_fusion_attention(
                qs[rank], ks[kv_rank], vs[kv_rank], N, "TND", pse=None, padding_mask=None,
                scale=SCALE, keep_prob=1.0, sparse_mode=0, **lists,
            )[:3]  # fmt: skip
            if not fused:
                by_token = (statistics_by_token(x, cu_seqlens) for x in current[1:])
                current = (current[0], *by_token)
            if final is None:
                final = current
            elif fused:
                final = torch_npu.npu_ring_attention_update(
                    *final, *current, actual_seq_qlen=ends, input_layout="TND"
                )
            else:
                final = forward_update(final, current, "TND")
        outs[rank], merged_max, merged_sum = final
        if not fused:
            merged_max, merged_sum = (
                statistics_by_document(x, cu_seqlens) for x in (merged_max, merged_sum)
            )
        for kv_rank in range(RANKS):
            grads = torch_npu.npu_fusion_attention_grad(
                qs[rank], ks[kv_rank], vs[kv_rank], douts[rank], N, "TND", pse=None,
                padding_mask=None, softmax_max=merged_max, softmax_sum=merged_sum,
                attention_in=outs[rank], scale_value=SCALE, keep_prob=1.0, sparse_mode=0, **lists,
            )  # fmt: skip
            for total, grad in zip((dqs[rank], dks[kv_rank], dvs[kv_rank]), grads[:3], strict=True):
                total += grad
    # For the oracle one call in which each document is all of its pieces.
    document = torch.arange(3).repeat_interleave(torch.tensor(lengths)).repeat(RANKS)
    meaning = meant(
        *(x[None] for x in (query, key, value)),
        N,
        "BSND",
        scale=SCALE,
        atten_mask=document[:, None] != document,
        sparse_mode=1,
    )
    names = ("out", "dq", "dk", "dv")
    gathered = [torch.cat(xs)[None] for xs in (outs, dqs, dks, dvs)]
    assert_exact(dict(zip(names, gathered, strict=True)), meaning, dout[None], parts=2 * RANKS)
