"""`explain`: what the operator does with a call, from its shapes and arguments alone.

It only turns words of the command line into a call; everything is found out by explaining/.
"""

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fusion_attention
from fusion_attention._errors import FeatureError
from fusion_attention._masks import causal_mask, prefix_mask
from fusion_attention.explaining import Report

HELP = "show what a call does: mask, work, memory, and what is wrong with it"

EXAMPLES = """examples:
  a causal call of 8 heads, 1024 tokens:
    python -m fusion_attention explain --query 2,8,1024,64 --layout BNSD --heads 8 \\
        --sparse-mode 3 --mask triu2048 --scale 0.125
  packed sequences of 3, 4 and 5 tokens, with a picture of the mask:
    python -m fusion_attention explain --query 12,8,64 --layout TND --heads 8 \\
        --actual-seq-qlen 3,7,12 --sparse-mode 3 --mask triu2048 --scale 0.125 --picture mask.png
  a call that FUSION_ATTENTION_RECORD=record has saved:
    python -m fusion_attention explain record/rank0-pid7-000001-npu_fusion_attention
  a mask of one's own, saved by torch.save():
    python -m fusion_attention explain --query 1,1024,8,64 --layout BSND --heads 8 \\
        --sparse-mode 1 --mask mask.pt
"""

_DTYPES = ("float16", "bfloat16", "float32", "float64")
_MASKS = {
    "none": "no atten_mask",
    "triu2048": "the compressed mask of modes 2, 3, 4, 7 and 8",
    "prefix3072": "the compressed mask of mode 6",
    "causal": "a full [Sq, Skv] mask that masks the future",
}


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected integers as in 2,8,64, got {text!r}") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("call", nargs="?", type=Path, help="the folder of a recorded call")
    shapes = parser.add_argument_group("tensors (shapes only, such as 2,8,1024,64)")
    shapes.add_argument("--query", type=_integers, metavar="SHAPE")
    shapes.add_argument("--key", type=_integers, metavar="SHAPE", help="default: like query")
    shapes.add_argument("--value", type=_integers, metavar="SHAPE", help="default: like key")
    shapes.add_argument("--pse", type=_integers, metavar="SHAPE")
    shapes.add_argument("--sink", action="store_true", help="with a sink for each head")
    shapes.add_argument("--dtype", choices=_DTYPES, default="bfloat16", help="default: bfloat16")
    call = parser.add_argument_group("arguments of the call")
    call.add_argument("--heads", type=int, metavar="N", help="head_num")
    call.add_argument("--layout", help="BSH, SBH, BSND, BNSD or TND")
    masks = "; ".join(f"{name}: {meaning}" for name, meaning in _MASKS.items())
    call.add_argument(
        "--mask",
        default="none",
        metavar="MASK",
        help=f"{masks}; or a file written by torch.save() (default: none)",
    )
    call.add_argument("--sparse-mode", type=int, default=0, metavar="0-8")
    call.add_argument("--pre-tockens", type=int, metavar="N")
    call.add_argument("--next-tockens", type=int, metavar="N")
    call.add_argument("--prefix", type=_integers, metavar="N,N")
    call.add_argument("--actual-seq-qlen", type=_integers, metavar="ENDS", help="cumulative")
    call.add_argument(
        "--actual-seq-kvlen", type=_integers, metavar="ENDS", help="default: like the queries'"
    )
    call.add_argument("--scale", type=float, default=1.0)
    call.add_argument("--keep-prob", type=float, default=1.0)
    call.add_argument("--inner-precise", type=int, default=0)
    call.add_argument("--softmax-layout", default="")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--picture", metavar="FILE", help="also write .png, .svg, .html or .txt", type=Path
    )
    output.add_argument("--ascii", action="store_true", help="no characters beyond ASCII")


def run(options: argparse.Namespace) -> int:
    """Prints the report; 1 if the operator refuses the call."""
    report = _report(options)
    print(report.text(charset="ascii") if options.ascii else report)
    if options.picture is not None:
        report.save(options.picture)
        print(f"\nwritten: {options.picture}")
    return 0 if report.runs else 1


def _report(options: argparse.Namespace) -> Report:
    if options.call is not None:
        return fusion_attention.explain(fusion_attention.load_call(options.call))
    needed = {"--query": options.query, "--heads": options.heads, "--layout": options.layout}
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise FeatureError(
            f"say the call with {', '.join(missing)}, or name a recorded one; --help shows how."
        )
    return fusion_attention.explain(**_arguments(options))


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    dtype = getattr(torch, options.dtype)

    def meta(shape: list[int] | None) -> Tensor | None:
        return None if shape is None else torch.empty(shape, dtype=dtype, device="meta")

    key = options.key or options.query
    call = {
        "query": meta(options.query),
        "key": meta(key),
        "value": meta(options.value or key),
        "head_num": options.heads,
        "input_layout": options.layout,
        "pse": meta(options.pse),
        "sink": torch.zeros(options.heads, device="meta") if options.sink else None,
        "atten_mask": _mask(options, key),
        "scale": options.scale,
        "keep_prob": options.keep_prob,
        "inner_precise": options.inner_precise,
        "prefix": options.prefix,
        "actual_seq_qlen": options.actual_seq_qlen,
        "actual_seq_kvlen": options.actual_seq_kvlen or options.actual_seq_qlen,
        "sparse_mode": options.sparse_mode,
        "softmax_layout": options.softmax_layout,
    }
    bounds = {"pre_tockens": options.pre_tockens, "next_tockens": options.next_tockens}
    return call | {name: bound for name, bound in bounds.items() if bound is not None}


def _mask(options: argparse.Namespace, key: list[int]) -> Tensor | None:
    name = options.mask
    if name == "none":
        return None
    if name == "triu2048":
        return causal_mask()
    if name == "prefix3072":
        return prefix_mask()
    if name == "causal":
        axis = {"BSH": 1, "SBH": 0, "BSND": 1, "BNSD": 2}.get(options.layout.upper())
        if axis is None or axis >= min(len(options.query), len(key)):
            raise FeatureError(
                "--mask causal needs a dense layout that fits the shapes; for TND use triu2048."
            )
        rows, keys = options.query[axis], key[axis]
        return torch.ones(rows, keys, dtype=torch.bool).triu(1 + keys - rows)
    path = Path(name)
    if not path.is_file():
        raise FeatureError(
            f"--mask is neither a file nor one of {', '.join(_MASKS)}, but {name!r}."
        )
    try:
        loaded = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise FeatureError(f"--mask {path} is no file that torch.save() wrote: {error}") from None
    if not isinstance(loaded, Tensor):
        raise FeatureError(f"--mask {path} holds no tensor, but {type(loaded).__name__}.")
    return loaded
