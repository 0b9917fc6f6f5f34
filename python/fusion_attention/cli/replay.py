"""`replay`: makes recorded calls again and says where their results part; exit status 1 if any do.

Calls are recorded with FUSION_ATTENTION_RECORD=folder, or `with fusion_attention.record(folder)`.
"""

import argparse

from fusion_attention.recording.replay import Report, replay_each

HELP = "make recorded calls again; compare bit by bit, or with a device's dump"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "folder", help="what FUSION_ATTENTION_RECORD=folder wrote, or one call of it"
    )
    parser.add_argument(
        "--against",
        metavar="PATH",
        help="another record, or a device's results: a .safetensors or .pt file of tensors named "
        "out, softmax_max, softmax_sum, dq, dk, dv, or a folder of them: 1.pt, 2.pt, ...",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="how many threads to use")
    parser.add_argument("--call", metavar="N", help="only this call: its number or its folder")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="allow differences of X times (the element + the tensor's root mean square)",
    )


def run(options: argparse.Namespace) -> int:
    """Prints each call's report as it is known, and the summary."""
    reports = []
    for report in replay_each(
        options.folder,
        against=options.against,
        threads=options.threads,
        call=options.call,
        tolerance=options.tolerance,
    ):
        print(report, flush=True)
        reports.append(report)
    whole = Report(tuple(reports))
    print(whole.summary)
    return 0 if whole.same else 1
