"""A call of any function of the family in one form, for the converters that leave it.

Query, key and value in [B, N, S, D], what each row sees as one range of keys (the compiled library
tells it), the bias as a matrix. Knows no other attention function.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion_attention import _library
from fusion_attention._call import Call
from fusion_attention._entry import arguments as ordered
from fusion_attention.convert._refusal import ConversionError, refuse

_FUNCTIONS = ("npu_fusion_attention", "npu_fusion_attention_v2", "npu_fusion_attention_v3")
# What few can say: what to do instead.
_EXTRAS = {
    "sink": "Append a key whose score is the sink and whose value is zero",
    "dropout_mask": "Compare without dropout: keep_prob=1 and dropout_mask=None",
    "padding_mask": "Leave it out: the operator does not support it either",
}


@dataclass(frozen=True, repr=False)
class Reading:
    """What a call means.

    `begin` and `end` [B or 1, Sq] give each row the keys that it may see, `mask` [B or 1, N or 1,
    Sq, Skv] hides single pairs of them (packed sequences: [.., max Sq, max Skv], which each one
    reads from its top left). `q_place` and `kv_place` are positions in the own sequence. Packed
    sequences are one batch of all tokens; `sequences` has a row (q_begin, q_len, kv_begin, kv_len)
    for each, and is None for other layouts; `q_sequence` tells which one a row belongs to.
    Where row i sees the keys [i + first, i + last) and nothing else decides, `offsets` is the two.
    """

    arguments: dict[str, Any]
    query: Tensor
    key: Tensor
    value: Tensor
    begin: Tensor
    end: Tensor
    q_sequence: Tensor
    q_place: Tensor
    kv_place: Tensor
    mask: Tensor | None
    sequences: Tensor | None
    offsets: tuple[int, int] | None

    @property
    def scale(self) -> float:
        """The factor on the scores."""
        return float(self.arguments["scale"])

    @property
    def keep_prob(self) -> float:
        """The probability to keep a weight."""
        return float(self.arguments["keep_prob"])

    @property
    def dropout_p(self) -> float:
        """The probability to drop a weight: 0.1 for 0.9, without the noise of the subtraction."""
        return round(1 - self.keep_prob, 15)

    @property
    def slopes(self) -> Tensor | None:
        """The ALiBi slopes of pse_type 2 and 3, [B or 1, N]."""
        if self.arguments["pse"] is None or self.arguments["pse_type"] not in (2, 3):
            return None
        slopes = self.arguments["pse"]
        return slopes[None] if slopes.dim() == 1 else slopes

    def start(self, sequence: Tensor) -> Tensor:
        """Returns how much further along its keys than its rows a sequence begins, for slopes."""
        starts = self.arguments["kv_start_idx"], self.arguments["q_start_idx"]
        if not all(starts):
            return torch.zeros_like(sequence)
        kv_start, q_start = (int(x[0]) for x in starts)
        cut = self.arguments["sparse_mode"] == 8 and self.arguments["atten_mask"] is not None
        applies = sequence == 0 if cut else torch.ones_like(sequence, dtype=torch.bool)
        return torch.where(applies, kv_start - q_start, 0)

    def refuse_extras(self, *names: str) -> None:
        """Raises for the first of these arguments that the call has."""
        for name in ("padding_mask", *names):
            if self.arguments.get(name) is not None:  # _v3 has no dropout_mask
                raise refuse(name, "there is nothing like it on the other side", _EXTRAS[name])

    def is_causal_from_top_left(self) -> bool:
        """Whether row i sees exactly the keys up to i, in a layout without packed sequences."""
        if self.mask is not None or self.sequences is not None:
            return False
        kv_len = self.key.shape[2]
        end = (self.q_place + 1).clamp(max=kv_len).expand_as(self.end)
        return not self.begin.any() and torch.equal(self.end, end)

    def sees(self, batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        """Returns whether the rows see the keys; all are indices, which broadcast."""
        seen = (key >= _at(self.begin, batch, row)) & (key < _at(self.end, batch, row))
        if self.mask is None:
            return seen
        q_place, kv_place = self.q_place[row], self.kv_place[key]
        # Packed: a pair of two sequences may lie outside the mask; it is hidden in any case.
        q_place = q_place.clamp(max=self.mask.shape[2] - 1)
        kv_place = kv_place.clamp(max=self.mask.shape[3] - 1)
        batch = batch if self.mask.shape[0] > 1 else torch.zeros_like(batch)
        head = head if self.mask.shape[1] > 1 else torch.zeros_like(head)
        return seen & ~self.mask[batch, head, q_place, kv_place]

    def kept(self) -> Tensor | None:
        """Returns who sees whom, bool [B or 1, N or 1, Sq, Skv]; None if all see all."""
        mask_batch, mask_heads = (1, 1) if self.mask is None else self.mask.shape[:2]
        batch = torch.arange(max(mask_batch, self.begin.shape[0]))
        row, key = torch.arange(self.query.shape[2]), torch.arange(self.key.shape[2])
        seen = self.sees(
            batch[:, None, None, None], torch.arange(mask_heads)[:, None, None], row[:, None], key
        )
        return None if seen.all() else seen

    def bias(self) -> Tensor | None:
        """Returns what is added to the scaled scores, [B or 1, N, Sq or 1, Skv]; None if nothing.

        A factor other than 1 makes it float32 at least: in 16 bits the product would be rounded.

        Raises:
            ConversionError: It is given by its last 1024 rows only.
        """
        pse, scale = self.arguments["pse"], self.scale
        if pse is None:
            return None
        if self.slopes is not None:
            batches = self.slopes.shape[0] if self.sequences is None else 1
            return self.slope_bias(
                torch.arange(batches)[:, None, None, None],
                torch.arange(self.query.shape[1])[:, None, None],
                torch.arange(self.query.shape[2])[:, None],
                torch.arange(self.key.shape[2]),
            )
        if self.sequences is not None or pse.shape[2] not in (1, self.query.shape[2]):
            raise refuse(
                f"pse of shape {list(pse.shape)}",
                "it states a bias by its last 1024 rows",
                "Give the whole bias, or slopes with pse_type=2 of npu_fusion_attention_v2",
            )
        if self.arguments["pse_type"] == 0 or scale == 1:
            return pse
        return pse.to(torch.promote_types(torch.float32, pse.dtype)) * scale

    def slope_bias(self, batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        """Returns what the slopes add to scaled scores, float32 or float64; for indices."""
        slopes = self.slopes
        assert slopes is not None
        if slopes.shape[0] == 1:
            slope = slopes[0][head]
        else:
            slope = slopes[batch if self.sequences is None else self.q_sequence[row], head]
        dtype = torch.promote_types(torch.float32, self.query.dtype)
        start = self.start(self.q_sequence[row])
        far = (self.kv_place[key] - self.q_place[row] + start).abs().to(dtype)
        return -slope * (far if self.arguments["pse_type"] == 2 else far.sqrt())


def read(call: Call) -> Reading:
    """Reads a call.

    Raises:
        ConversionError: It is a call of another function.
        RuntimeError: The call breaks a rule of the operator.
    """
    if call.function not in _FUNCTIONS:
        raise ConversionError(
            f"convert: a call of {call.function} has no counterpart. Convert the forward call; "
            "autograd gives its gradient on the other side."
        )
    given = dict(call.arguments)
    for old, new in (("pre_tokens", "pre_tockens"), ("next_tokens", "next_tockens")):
        if old in given:
            given[new] = given.pop(old)
    given = {"pse_type": 1, "q_start_idx": None, "kv_start_idx": None} | given
    given["input_layout"] = layout = given["input_layout"].upper()
    table = _sequences(given)
    packed = layout == "TND"
    query, key, value = (_bnsd(given[name], layout, given) for name in ("query", "key", "value"))
    if given.get("query_rope") is not None:
        query = torch.cat([query, _bnsd(given["query_rope"], layout, given)], -1)
        key = torch.cat([key, _bnsd(given["key_rope"], layout, given)], -1)
    q_len, kv_len = query.shape[2], key.shape[2]
    if packed:
        begin, end = (torch.zeros(1, q_len, dtype=torch.int64) for _ in range(2))
        q_sequence, q_place, kv_place = (
            torch.zeros(n, dtype=torch.int64) for n in (q_len, q_len, kv_len)
        )
        for row in table:
            q_begin, q_count, kv_begin, kv_count = row[2:6].tolist()
            keys = _library.row_keys(row.contiguous()) + kv_begin
            begin[0, q_begin : q_begin + q_count] = keys[:, 0]
            end[0, q_begin : q_begin + q_count] = keys[:, 1]
            q_sequence[q_begin : q_begin + q_count] = row[0]
            q_place[q_begin : q_begin + q_count] = torch.arange(q_count)
            kv_place[kv_begin : kv_begin + kv_count] = torch.arange(kv_count)
    else:
        keys = torch.stack([_library.row_keys(row.contiguous()) for row in table])
        begin, end = keys.unbind(-1)
        q_sequence = torch.zeros(q_len, dtype=torch.int64)
        q_place, kv_place = torch.arange(q_len), torch.arange(kv_len)
    sequences = table[:, 2:6] if packed else None
    mask = _dense_mask(given)
    offsets = None
    if not packed and mask is None and len(table) == 1 and table[0, 9] == 0:
        offsets = (int(table[0, 7]), int(table[0, 8]))
    return Reading(
        given, query, key, value, begin, end, q_sequence, q_place, kv_place, mask, sequences,
        offsets,
    )  # fmt: skip


def _at(table: Tensor, batch: Tensor, row: Tensor) -> Tensor:
    return table[batch, row] if table.shape[0] > 1 else table[0][row]


def _sequences(given: dict[str, Any]) -> Tensor:
    """Returns the compiled library's table of sequences; nothing of a bias is looked at."""
    tensors = (given["query"], given["key"], given["value"], None, None, given["atten_mask"])
    arguments = ordered(
        (*tensors, *(None,) * 4),
        **{
            name: given[name]
            for name in (
                "head_num", "input_layout", "scale", "keep_prob", "pre_tockens", "next_tockens",
                "inner_precise", "prefix", "actual_seq_qlen", "actual_seq_kvlen", "sparse_mode",
                "softmax_layout",
            )
        },
    )  # fmt: skip
    return _library.describe(*arguments, None, None, None, None, None)[0]


def _bnsd(tensor: Tensor, layout: str, given: dict[str, Any]) -> Tensor:
    """Returns a view of query, key or value in [B, N, S, D]; packed tokens as one batch."""
    if layout == "BNSD":
        return tensor
    if layout == "BSND":
        return tensor.transpose(1, 2)
    if layout == "TND":
        return tensor.transpose(0, 1)[None]
    # Heads lie side by side, D channels each in query and key, Dv in value.
    heads = given["head_num"]
    if tensor is not given["query"]:
        heads = given["key"].shape[-1] // (given["query"].shape[-1] // given["head_num"])
    split = tensor.unflatten(-1, (heads, -1))
    return split.transpose(1, 2) if layout == "BSH" else split.permute(1, 2, 0, 3)


def _dense_mask(given: dict[str, Any]) -> Tensor | None:
    """Returns the mask that is read pair by pair, bool in 4 dimensions, True hides."""
    mask = given["atten_mask"]
    if mask is None or given["sparse_mode"] not in (0, 1, 5):
        return None
    mask = mask != 0
    return mask[None, None] if mask.dim() == 2 else mask
