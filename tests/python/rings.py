"""Ring attention by hand over simulated ranks: forward steps, merges, and backward steps.

All ranks live in one process and take their turns. A rank's tokens are those of `tokens_of`; in
each step it uses all its queries on some keys of another rank, or its last half on all of them
(MindSpeed's rule), and merges what it got. Knows layouts SBH and TND, tokens along axis 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from case_tensors import compressed_mask
from torch import Tensor

from fusion_attention import (
    npu_fusion_attention,
    npu_fusion_attention_grad,
    npu_ring_attention_update,
)

Options = dict[str, Any]


@dataclass
class Ring:
    """One attention problem on several ranks.

    Attributes:
        ranks: how many.
        heads: query heads.
        layout: "SBH" or "TND".
        lengths: of the documents (SBH: the one sequence), each a multiple of 2 * ranks.
        softmax_layout: of the statistics in TND.
        mask: [S, S], True where masked, for a general ring of contiguous chunks; None for a causal
            ring, where rank r has chunks r and 2 * ranks - 1 - r of each document.
        scale: of the scores.
    """

    ranks: int
    heads: int
    layout: str
    lengths: list[int]
    softmax_layout: str = ""
    mask: Tensor | None = None
    scale: float = 0.25
    masked_blocks: int = field(default=0, init=False)  # steps in which nobody saw anything

    def tokens_of(self, rank: int) -> Tensor:
        """The rank's tokens, document by document."""
        found, begin = [], 0
        for length in self.lengths:
            tokens = torch.arange(begin, begin + length)
            if self.mask is not None:
                found.append(tokens.chunk(self.ranks)[rank])
            else:
                chunks = tokens.chunk(2 * self.ranks)
                found += [chunks[rank], chunks[2 * self.ranks - 1 - rank]]
            begin += length
        return torch.cat(found)

    def _halves(self) -> tuple[Tensor, Tensor]:
        """Where the first and the second halves of a rank's documents lie among its tokens."""
        first, begin = [], 0
        for length in self.lengths:
            first.append(torch.arange(begin, begin + length // self.ranks // 2))
            begin += length // self.ranks
        firsts = torch.cat(first)
        everything = torch.ones(begin, dtype=torch.bool)
        everything[firsts] = False
        return firsts, everything.nonzero().flatten()

    def step(self, q_rank: int, kv_rank: int) -> tuple[Tensor | None, Tensor | None, Options]:
        """Which of its tokens a rank queries, which of the other's it sees, and how.

        None stands for all.
        """
        if self.mask is not None:
            rows, keys = self.tokens_of(q_rank), self.tokens_of(kv_rank)
            block = self.mask[rows[:, None], keys]
            self.masked_blocks += int(block.all())
            return None, None, {"atten_mask": block, "sparse_mode": 1}
        if q_rank == kv_rank:
            return None, None, {"atten_mask": compressed_mask(3), "sparse_mode": 3}
        first, second = self._halves()
        return (None, first, {}) if kv_rank < q_rank else (second, None, {})

    def options(self, rows: Tensor | None, keys: Tensor | None) -> Options:
        """The lengths of one step's call, for TND."""
        if self.layout != "TND":
            return {}

        def ends(half: bool) -> list[int]:
            parts = 2 * self.ranks if half else self.ranks
            return (torch.tensor(self.lengths) // parts).cumsum(0).tolist()

        return {
            "actual_seq_qlen": ends(rows is not None),
            "actual_seq_kvlen": ends(keys is not None),
            "softmax_layout": self.softmax_layout,
        }

    def rows_of_statistics(self, rows: Tensor | None) -> Callable[[Tensor], Tensor]:
        """A view function: statistics, flat or not, -> those of these rows as a call has them."""

        def take(statistics: Tensor) -> Tensor:
            if rows is None:
                return statistics
            if self.layout == "SBH":
                return statistics[:, :, rows]
            if self.softmax_layout == "TND":
                return statistics[rows]
            return statistics.reshape(-1, 8)[self._block_rows()].view(len(rows), self.heads, 8)

        return take

    def _block_rows(self) -> Tensor:
        """Which rows of blocks [N, S, 8] belong to the second halves, as such blocks again."""
        found, begin = [], 0
        for length in self.lengths:
            local = length // self.ranks
            block = torch.arange(begin, begin + local * self.heads).view(self.heads, local)
            found.append(block[:, local // 2 :].flatten())
            begin += local * self.heads
        return torch.cat(found)

    def put(self, statistics: Tensor, rows: Tensor | None, merged: Tensor) -> Tensor:
        """The statistics with those of these rows replaced."""
        if rows is None:
            return merged
        result = statistics.clone()
        if self.layout == "SBH":
            result[:, :, rows] = merged
        elif self.softmax_layout == "TND":
            result[rows] = merged
        else:
            result.view(-1, 8)[self._block_rows()] = merged.reshape(-1, 8)
        return result

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> list[list[Tensor]]:
        """[attention_out, softmax_max, softmax_sum] of each rank."""
        results: list[list[Tensor]] = []
        for rank in range(self.ranks):
            mine = query[self.tokens_of(rank)]
            total: list[Tensor] = []
            for turn in range(self.ranks):
                other = (rank - turn) % self.ranks
                theirs = self.tokens_of(other)
                rows, keys, how = self.step(rank, other)
                call = {
                    "query": mine if rows is None else mine[rows],
                    "key": key[theirs] if keys is None else key[theirs][keys],
                    "value": value[theirs] if keys is None else value[theirs][keys],
                }
                how |= self.options(rows, keys)
                part = npu_fusion_attention(
                    **call, head_num=self.heads, input_layout=self.layout, scale=self.scale, **how
                )[:3]
                total = self._merge(total, rows, list(part), how) if total else list(part)
            results.append(total)
        return results

    def _merge(
        self, total: list[Tensor], rows: Tensor | None, part: list[Tensor], how: Options
    ) -> list[Tensor]:
        take = self.rows_of_statistics(rows)
        before = [total[0] if rows is None else total[0][rows], take(total[1]), take(total[2])]
        options = {"input_layout": self.layout, "input_softmax_layout": self.softmax_layout}
        if self.layout == "TND":
            options["actual_seq_qlen"] = torch.tensor(how["actual_seq_qlen"])
        out, row_max, row_sum = npu_ring_attention_update(*before, *part, **options)
        merged = total[0].clone()
        merged[rows if rows is not None else slice(None)] = out
        return [merged, self.put(total[1], rows, row_max), self.put(total[2], rows, row_sum)]

    def backward(
        self, query: Tensor, key: Tensor, value: Tensor, dy: Tensor, results: list[list[Tensor]]
    ) -> tuple[Tensor, ...]:
        """(dq, dk, dv) of the whole, each step's added up in float32."""
        sums = [torch.zeros_like(x, dtype=torch.float32) for x in (query, key, value)]
        for rank, (out, row_max, row_sum) in enumerate(results):
            mine = self.tokens_of(rank)
            for other in range(self.ranks):
                theirs = self.tokens_of(other)
                rows, keys, how = self.step(rank, other)
                how |= self.options(rows, keys)
                used = mine if rows is None else mine[rows]
                seen = theirs if keys is None else theirs[keys]
                take = self.rows_of_statistics(rows)
                gradients = npu_fusion_attention_grad(
                    query[used],
                    key[seen],
                    value[seen],
                    dy[used],
                    self.heads,
                    self.layout,
                    softmax_max=take(row_max),
                    softmax_sum=take(row_sum),
                    attention_in=out if rows is None else out[rows],
                    scale_value=self.scale,
                    **how,
                )
                for total, tokens, part in zip(
                    sums, (used, seen, seen), gradients[:3], strict=True
                ):
                    total[tokens] += part.float()
        return tuple(total.to(query.dtype) for total in sums)

    def gathered(self, parts: list[Tensor]) -> Tensor:
        """The ranks' outputs in the order of the whole."""
        tokens = torch.cat([self.tokens_of(rank) for rank in range(self.ranks)])
        whole = torch.cat(parts)
        result = torch.empty_like(whole)
        result[tokens] = whole
        return result
