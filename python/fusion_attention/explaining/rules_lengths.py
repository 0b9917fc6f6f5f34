"""Lint rules about actual_seq_qlen and actual_seq_kvlen: where packed sequences end."""

from collections.abc import Iterator
from itertools import accumulate, pairwise

from fusion_attention.explaining.findings import Case, Finding

_NAMES = (("actual_seq_qlen", "query"), ("actual_seq_kvlen", "key"))


def _shown(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"[{', '.join(map(str, values[:6]))}, ...]"


def dense_layout(case: Case) -> Iterator[Finding]:
    """L02: lengths given with a layout that has none."""
    call = case.reading
    given = [name for name, _ in _NAMES if call.integers(name)]
    if call.layout == "TND" or not given:
        return
    both = len(given) == 2
    yield Finding(
        "L02",
        "wrong",
        f"{' and '.join(given)} given in layout {call.layout or '?'}",
        "Lengths belong to layout TND. The device "
        + (
            "answers 'Layout BNSD is not TND, invalid shape'."
            if both
            else "ignores a single list without a word, and attends over the padding."
        ),
        "Pack the tokens as [T, N, D] and pass input_layout='TND', or mask the padding with "
        "atten_mask.",
    )


def cumulative(case: Case) -> Iterator[Finding]:
    """L07: lists that are not where the sequences end."""
    call = case.reading
    if call.layout != "TND":
        return
    seen: list[tuple[list[int], int]] = []
    for name, tensor_name in _NAMES:
        ends, tensor = call.integers(name), call.tensor(tensor_name)
        if not ends or tensor is None or (ends, tensor.shape[0]) in seen:
            continue  # of two equal lists the first stands for both
        tokens = tensor.shape[0]
        seen.append((ends, tokens))
        used = list(ends)
        while len(used) > 1 and used[-1] == 0:
            used.pop()
        decreases = any(b < a for a, b in pairwise(used))
        if sum(used) == tokens != used[-1] and (decreases or ends == used):
            yield Finding(
                "L07",
                "wrong",
                f"{name}={_shown(ends)} are lengths of sequences, not their ends",
                f"They add up to the {tokens} tokens of {tensor_name}. The operator reads entry i "
                f"as the end of sequence i, and so takes sequences of "
                f"{_shown(_lengths(used))} tokens here.",
                f"Pass the running sum: {_shown(list(accumulate(ends)))}.",
            )
        elif decreases:
            yield Finding(
                "L07",
                "wrong",
                f"{name}={_shown(ends)} decreases",
                "The list holds the end of each sequence, so it cannot go down, except to trailing "
                "zeros for sequences that are not there.",
                "Pass itertools.accumulate(lengths) as a list.",
            )
        elif used[-1] > tokens:
            yield Finding(
                "L07",
                "wrong",
                f"{name} ends at {used[-1]}, but {tensor_name} has {tokens} tokens",
                "The last entry is where the last sequence ends.",
                f"Make {name}[-1] equal to {tokens}.",
            )
        elif used[-1] < tokens:
            starts = used[0] == 0 and len(used) > 1
            trailing = ends[-1] == 0 and len(ends) > 1
            yield Finding(
                "L07",
                "advice" if trailing else "risk",
                f"{name} ends at {used[-1]}, before the {tokens} tokens of {tensor_name}",
                f"The last {tokens - used[-1]} tokens belong to no sequence. Here their results "
                "are 0"
                + (
                    ", and so they are on the device, because of the trailing 0."
                    if trailing
                    else "; the device leaves them unwritten, and CANN 9 refuses the call without "
                    "a trailing 0."
                ),
                "Pass cu_seqlens[1:], the ends, not cu_seqlens[:-1], the starts."
                if starts and not trailing
                else "Append a 0 to both lists if these tokens are padding."
                if not trailing
                else "Leave it if these tokens are padding.",
            )


def _lengths(ends: list[int]) -> list[int]:
    return [max(b - a, 0) for a, b in pairwise([0, *ends])]


def no_keys(case: Case) -> Iterator[Finding]:
    """L07: sequences that have queries and no keys."""
    facts = case.facts
    if facts is None or not facts.packed:
        return
    alone = [span.index for span in facts.spans if span.q_len > 0 and span.kv_len == 0]
    if alone:
        yield Finding(
            "L07",
            "risk",
            f"sequence {alone[0]} has queries and no keys"
            + (f", and {len(alone) - 1} more" if len(alone) > 1 else ""),
            "Its rows are 0, and so are their softmax_max and softmax_sum.",
            "Check that actual_seq_qlen and actual_seq_kvlen come from the same batch.",
        )


def leading_zero(case: Case) -> Iterator[Finding]:
    """L08: cu_seqlens with its leading 0."""
    call = case.reading
    zero = [
        name for name, _ in _NAMES if len(call.integers(name)) > 1 and call.integers(name)[0] == 0
    ]
    if call.layout == "TND" and zero and any(any(call.integers(name)) for name in zero):
        yield Finding(
            "L08",
            "advice",
            f"a list starts with 0 ({' and '.join(zero)}): an empty first sequence",
            "It is legal and changes nothing, but takes one of 2048 places; flash-attn's "
            "cu_seqlens has this 0, this operator's lists do not.",
            "Pass cu_seqlens[1:].",
        )


def many(case: Case) -> Iterator[Finding]:
    """L09: more sequences than the device is safe with."""
    call = case.reading
    count = max(len(call.integers(name)) for name, _ in _NAMES)
    if call.layout == "TND" and count > 1024:
        yield Finding(
            "L09",
            "wrong" if count > 2048 else "advice",
            f"{count} packed sequences",
            "The API page allows 2048 and older releases of the device's library 1024; beyond them "
            "it was seen to end in a core dump.",
            "Split the batch into calls of fewer sequences.",
        )


RULES = (dense_layout, cumulative, no_keys, leading_zero, many)
