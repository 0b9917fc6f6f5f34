"""`convert`: prints what an attention call is in the words of another function, as a program."""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusion_attention import convert
from fusion_attention._arguments import UNLIMITED
from fusion_attention._call import Call, bind
from fusion_attention._errors import FeatureError
from fusion_attention._masks import causal_mask, prefix_mask
from fusion_attention.convert.printing import program_of_arguments, program_of_call
from fusion_attention.convert.table import as_text

HELP = "an attention call in the words of another function, as a program that can be run"

_TARGETS: dict[str, tuple[str, Callable[[Call], dict[str, Any]]]] = {
    "sdpa": ("scaled_dot_product_attention", convert.to_sdpa),
    "flash-attn": ("flash_attn_func", convert.to_flash_attn),
    "flash-attn-varlen": ("flash_attn_varlen_func", convert.to_flash_attn_varlen),
    "varlen-attn": ("varlen_attn", convert.to_varlen_attn),
}
_NAMES = ("npu", *_TARGETS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what `run` reads."""
    parser.epilog = (
        "Without --from it prints the table of what corresponds. Example: convert --from "
        "flash-attn --shape 2,1024,8,64 --causal --window 255,0"
    )
    add = parser.add_argument
    add("--from", dest="source", choices=_NAMES, help="the function that is called now")
    add("--to", default="npu", choices=_NAMES, help="the function to call (default: npu)")
    add("--shape", type=_integers, help="of query, in its function's layout: 2,1024,8,64")
    add("--kv-shape", type=_integers, help="of key and value, if not that of query")
    add("--scale", type=float, help="factor on the scores, if not the function's default")
    add("--dropout", type=float, default=0.0, help="probability to drop a weight")
    add("--causal", action="store_true", help="causal or is_causal")
    theirs = parser.add_argument_group("of flash-attn and varlen_attn")
    theirs.add_argument("--window", type=_integers, default=[-1, -1], help="left,right")
    theirs.add_argument("--softcap", type=float, default=0.0)
    theirs.add_argument("--alibi", action="store_true", help="the usual slopes 2^(-8 i / N)")
    theirs.add_argument("--cu-seqlens-q", type=_integers, help="0,2,5,9")
    theirs.add_argument("--cu-seqlens-k", type=_integers, help="if not those of q")
    ours = parser.add_argument_group("of npu_fusion_attention")
    ours.add_argument("--layout", default="BNSD", help="input_layout (default: BNSD)")
    ours.add_argument("--head-num", type=int, help="for BSH and SBH")
    ours.add_argument("--sparse-mode", type=int, choices=(2, 3, 4, 6, 7, 8))
    ours.add_argument("--pre-tockens", type=int, default=UNLIMITED)
    ours.add_argument("--next-tockens", type=int, default=UNLIMITED)
    ours.add_argument("--prefix", type=_integers)
    ours.add_argument("--actual-seq-qlen", type=_integers, help="2,5,9")
    ours.add_argument("--actual-seq-kvlen", type=_integers, help="if not those of query")


def run(options: argparse.Namespace) -> int:
    """Prints the program, or the table."""
    if options.source is None:
        print(as_text())
        return 0
    if options.shape is None:
        raise FeatureError("give the shape of query, such as --shape 2,1024,8,64.")
    try:
        call = _call(options)
        if options.to == "npu":
            print(program_of_call(call))
        else:
            function, arguments_of = _TARGETS[options.to]
            print(program_of_arguments(function, arguments_of(call)))
    except (IndexError, RuntimeError) as error:
        # The operator's own refusals are RuntimeErrors; a shape of too few axes fails anywhere.
        raise FeatureError(str(error)) from None
    return 0


def _call(options: argparse.Namespace) -> Call:
    # Nothing is computed, so the tensors need no numbers (and take no memory until they have some).
    query = torch.empty(options.shape)
    key = torch.empty(options.kv_shape or options.shape)
    match options.source:
        case "sdpa":
            return convert.from_sdpa(
                query, key, key, None, options.dropout, options.causal, options.scale, True
            )
        case "npu":
            return _npu_call(options, query, key)
    common: dict[str, Any] = {"window_size": tuple(options.window)}
    starts = ()
    if options.source != "flash-attn":
        if options.cu_seqlens_q is None:
            raise FeatureError("packed sequences need --cu-seqlens-q, such as 0,2,5,9.")
        ends = (options.cu_seqlens_q, options.cu_seqlens_k or options.cu_seqlens_q)
        starts = tuple(torch.tensor(x, dtype=torch.int32) for x in ends)
    if options.source == "varlen-attn":
        if options.causal:
            common["window_size"] = (-1, 0)
        return convert.from_varlen_attn(
            query, key, key, *starts, scale=options.scale, enable_gqa=True, **common
        )
    common |= {"dropout_p": options.dropout, "softmax_scale": options.scale}
    common |= {"causal": options.causal, "softcap": options.softcap}
    if options.alibi:
        heads = query.shape[-2]
        common["alibi_slopes"] = 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)
    if options.source == "flash-attn":
        return convert.from_flash_attn(query, key, key, **common)
    return convert.from_flash_attn_varlen(query, key, key, *starts, **common)


def _npu_call(options: argparse.Namespace, query: Tensor, key: Tensor) -> Call:
    layout = options.layout.upper()
    axis = {"BNSD": 1, "BSND": 2, "TND": 1}.get(layout)
    heads = options.head_num if axis is None else query.shape[axis]
    if heads is None:
        raise FeatureError(f"layout {layout} needs --head-num.")
    arguments: dict[str, Any] = {"keep_prob": 1.0 - options.dropout}
    arguments["scale"] = 1.0 if options.scale is None else options.scale
    if options.sparse_mode is not None:
        mask = prefix_mask() if options.sparse_mode == 6 else causal_mask()
        arguments |= {"atten_mask": mask, "sparse_mode": options.sparse_mode}
        arguments |= {"pre_tockens": options.pre_tockens, "next_tockens": options.next_tockens}
    arguments |= {"prefix": options.prefix, "actual_seq_qlen": options.actual_seq_qlen}
    arguments["actual_seq_kvlen"] = options.actual_seq_kvlen or options.actual_seq_qlen
    return bind("npu_fusion_attention", query, key, key, heads, layout, **arguments)


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


_integers.__name__ = "list of integers"  # argparse puts it into its messages
