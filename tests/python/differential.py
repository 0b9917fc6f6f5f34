"""Runs a random case through the library and compares every result with the oracle's.

    python tests/python/differential.py SEED [COUNT]

is the repro line of a failing case; FUSION_ATTENTION_TARGET chooses the SIMD target as everywhere.
"""

import sys

import torch
from bounds import bound, excess
from calls import run
from case_tensors import case
from oracle import Result, attention


def _describe(name: str, actual: torch.Tensor, exact: Result, inputs: torch.dtype) -> str:
    quantity = exact.quantities()[name]
    if actual.shape != quantity.value.shape:
        return f"{name}: shape {list(actual.shape)}, expected {list(quantity.value.shape)}"
    error = (actual.double() - quantity.value).abs()
    allowed = bound(name, quantity, actual.dtype, inputs)
    over = (error - allowed).nan_to_num(torch.inf, torch.inf, torch.inf)
    worst = over.flatten().argmax().item()
    index = [int(i) for i in torch.unravel_index(torch.tensor(worst), over.shape)]
    values = [tensor.flatten()[worst].item() for tensor in (actual, quantity.value, allowed)]
    wrong = int((over > 0).sum())
    return (
        f"{name}{index}: got {values[0]!r}, exact {values[1]!r}, allowed error {values[2]:.3g}; "
        f"{wrong} of {over.numel()} elements wrong"
    )


def failures(seed: int) -> list[str]:
    """What is wrong with the results of the case with this seed, with a line that repeats it."""
    sample = case(seed)
    inputs = sample.spec.dtype
    repro = f"repro: python tests/python/differential.py {seed}   # {sample.spec}"
    try:
        actual = run(sample.call, sample.dy)
    except RuntimeError as error:
        return [f"refused a legal call: {error}", repro]
    exact = attention(sample.call, sample.dy, actual["out"])
    found = []
    for name, quantity in exact.quantities().items():
        tensor = actual[name]
        single = name in ("softmax_max", "softmax_sum", "dsink")
        single = single or (name == "dpse" and sample.spec.has_slopes)
        expected = torch.float32 if single else inputs
        if tensor.dtype != expected:
            found.append(f"{name}: dtype {tensor.dtype}, expected {expected}")
        elif excess(name, tensor, quantity, inputs) > 1:
            found.append(_describe(name, tensor, exact, inputs))
    for name in ("softmax_max", "softmax_sum"):
        if not torch.equal(actual[name], actual[name][..., :1].expand_as(actual[name])):
            found.append(f"{name}: a row's 8 values differ")
    drawn = (sample.call.get("seed", 0), sample.call.get("offset", 0))
    if (actual["seed"], actual["offset"]) != drawn:
        found.append(f"seed, offset: got {actual['seed'], actual['offset']}, expected {drawn}")
    if actual["numels"] != exact.numels:
        found.append(f"numels: got {actual['numels']}, expected {exact.numels}")
    if found:
        found.append(repro)
    return found


def main(first: int, count: int = 1) -> int:
    """Checks `count` cases from seed `first` on, prints what is wrong; the number of bad ones."""
    torch.set_num_threads(1)
    bad = 0
    for seed in range(first, first + count):
        found = failures(seed)
        if found:
            bad += 1
            print("\n".join(found), flush=True)
    print(f"{count} cases, {bad} wrong")
    return bad


if __name__ == "__main__":
    sys.exit(min(main(*map(int, sys.argv[1:])), 1))
