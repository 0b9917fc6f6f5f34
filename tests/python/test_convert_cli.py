"""What `convert` prints runs, and means what was asked for; its table is the documentation's."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fusion_attention._call import bind
from fusion_attention.cli import main
from fusion_attention.convert._refusal import ConversionError
from fusion_attention.convert.printing import program_of_call
from fusion_attention.convert.table import as_markdown, as_text

PORTING = Path(__file__).resolve().parents[2] / "docs" / "porting.md"

PROGRAMS = {
    "--from flash-attn --shape 2,24,4,8 --causal --window 5,0": ["sparse_mode=4", "pre_tockens=5"],
    "--from flash-attn --shape 2,24,4,8 --kv-shape 2,30,2,8 --causal": ["sparse_mode=3"],
    "--from flash-attn --shape 2,24,4,8 --alibi": ["npu_fusion_attention_v2", "pse_type=2"],
    "--from flash-attn-varlen --shape 9,4,8 --cu-seqlens-q 0,2,9": ["actual_seq_qlen=[2, 9]"],
    "--from varlen-attn --shape 9,4,8 --cu-seqlens-q 0,2,9 --causal": ["sparse_mode=3"],
    "--from sdpa --shape 2,4,24,8 --kv-shape 2,2,30,8 --causal": ["sparse_mode=2", "scale=0.35"],
    "--from sdpa --shape 2,4,24,8 --to sdpa": ["attn_mask=None", "is_causal=False"],
    "--from npu --shape 2,4,24,8 --sparse-mode 2 --to sdpa": ["is_causal=True", "scale=1.0"],
    "--from npu --shape 2,4,24,8 --kv-shape 2,4,30,8 --sparse-mode 3 --to sdpa": [".tril(6)"],
    "--from npu --shape 2,4,24,8 --sparse-mode 4 --pre-tockens 3 --next-tockens 1 --to sdpa": [
        ".tril(1).triu(-3)"
    ],
    "--from npu --shape 2,4,24,8 --sparse-mode 6 --prefix 7,7 --to sdpa": ["< 7"],
    "--from npu --shape 2,4,24,8 --sparse-mode 6 --prefix 7,7": ["torch.cat([", "prefix=[7, 7]"],
    "--from npu --shape 2,24,32 --layout BSH --head-num 4": ['4, "BSH"'],
}


@pytest.mark.parametrize("arguments", PROGRAMS)
def test_printed_programs_run(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", *arguments.split()]) == 0
    program = capsys.readouterr().out
    for text in PROGRAMS[arguments]:
        assert text in program
    names: dict[str, Any] = {}
    exec(program, names)
    query = names["query"]
    assert names["out"].shape == query.shape


def test_both_sides_of_a_printed_conversion_agree(capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for target in ("npu", "sdpa"):
        band = "--sparse-mode 4 --pre-tockens 3 --next-tockens 1 --scale 0.3"
        arguments = f"--from npu --shape 2,4,24,8 --kv-shape 2,2,30,8 {band} --to {target}"
        assert main(["convert", *arguments.split()]) == 0
        names: dict[str, Any] = {}
        torch.manual_seed(0)
        exec(capsys.readouterr().out, names)
        results.append(names["out"])
    torch.testing.assert_close(*results)


def test_a_program_for_flash_attn_is_python(capsys: pytest.CaptureFixture[str]) -> None:
    """flash-attn is not here to run it."""
    for arguments in (
        "--from npu --shape 2,4,24,8 --sparse-mode 3 --to flash-attn",
        "--from npu --shape 9,4,8 --layout TND --actual-seq-qlen 2,9 --to flash-attn-varlen",
        "--from npu --shape 9,4,8 --layout TND --actual-seq-qlen 2,9 --to varlen-attn",
    ):
        assert main(["convert", *arguments.split()]) == 0
        compile(capsys.readouterr().out, "printed", "exec")


REFUSED = {
    "--from flash-attn --shape 2,24,4,8 --softcap 30": "softcap=30.0 cannot be kept",
    "--from flash-attn": "--shape 2,1024,8,64",
    "--from flash-attn-varlen --shape 9,4,8": "--cu-seqlens-q",
    "--from npu --shape 2,24,32 --layout BSH": "--head-num",
    "--from npu --shape 2,4,24,8 --sparse-mode 7": "npu_fusion_attention: expected sparse_mode",
    "--from npu --shape 9,4,8 --layout TND --actual-seq-qlen 2,9 --to sdpa": "this mask as text",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_refusals_are_one_line(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = "--to sdpa " if "--sparse-mode 7" in arguments else ""
    assert main(["convert", *f"{source}{arguments}".split()]) == 1
    error = capsys.readouterr().err
    assert REFUSED[arguments] in error
    assert error.count("\n") == 1


def test_a_full_mask_of_the_compressed_ones_size_is_printed_as_it_is() -> None:
    query = torch.empty(1, 1, 2048, 8, device="meta")
    window = torch.ones(2048, 2048, dtype=torch.bool).tril(-1)
    call = bind(
        "npu_fusion_attention", query, query, query, 1, "BNSD", atten_mask=window, sparse_mode=1
    )
    assert "torch.ones(2048, 2048, dtype=torch.bool).tril(-1)" in program_of_call(call)
    call.arguments["atten_mask"] = window | (torch.arange(2048) % 3 == 0)
    with pytest.raises(ConversionError, match="this mask as text"):
        program_of_call(call)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert"]) == 0
    assert capsys.readouterr().out == as_text() + "\n"
    assert as_markdown() in PORTING.read_text(encoding="utf-8"), "docs/porting.md shows another"
