"""`python -m fusion_attention explain`: from shapes, from mask files and from recorded calls."""

from pathlib import Path

import pytest
import torch

from fusion_attention import cli, npu_fusion_attention, record
from fusion_attention.cli import explain

QUERY = ["explain", "--query", "2,8,64,32", "--layout", "BNSD", "--heads", "8"]
SCALED = [*QUERY, "--scale", "0.17"]


def output(
    arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 0
) -> tuple[list[str], str]:
    """The lines on stdout and the text on stderr of a command that ends with this status."""
    assert cli.main(arguments) == status
    printed = capsys.readouterr()
    return printed.out.splitlines(), printed.err


def test_a_call_from_its_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SCALED, "--sparse-mode", "3", "--mask", "triu2048", "--key", "2x2x96x32"]
    lines, _ = output(arguments, capsys)
    assert lines[:2] == ["npu_fusion_attention", "Runs. Lint has nothing against it."]
    assert any("B=2 Sq=64 Skv=96, N=8 Nkv=2 (each serves 4" in line for line in lines)


def test_a_refused_call_has_exit_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = output([*SCALED, "--sparse-mode", "7", "--ascii"], capsys, status=1)
    assert lines[1].startswith("REFUSED: ")
    assert all(line.isascii() for line in lines)


@pytest.mark.parametrize(
    ("mask", "mode"), [("causal", "1"), ("triu2048", "3"), ("prefix3072", "6")]
)
def test_masks_by_name(mask: str, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SCALED, "--mask", mask, "--sparse-mode", mode]
    lines, _ = output(arguments + ["--prefix", "0,0"] * (mode == "6"), capsys)
    pairs = 2 * 8 * 64 * 65 // 2
    assert any(f"{pairs:,} of " in line for line in lines)


def test_packed_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", "--query", "12,2,8", "--layout", "TND", "--heads", "2"]
    lines, _ = output([*arguments, "--actual-seq-qlen", "3,7,12", "--scale", ".3"], capsys)
    assert any("2: queries 7-12 (Sq=5), keys 7-12 (Skv=5)" in line for line in lines)


def test_a_mask_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mask.pt"
    torch.save(torch.ones(64, 64, dtype=torch.bool).tril(), path)
    lines, _ = output([*SCALED, "--mask", str(path), "--sparse-mode", "1"], capsys)
    assert lines[1].startswith("RUNS, BUT WRONG: atten_mask is inverted")
    torch.save([1, 2], path)
    _, error = output([*SCALED, "--mask", str(path)], capsys, status=1)
    assert f"--mask {path} holds no tensor, but list." in error
    path.write_text("nothing that torch wrote")
    _, error = output([*SCALED, "--mask", str(path)], capsys, status=1)
    assert f"--mask {path} is no file that torch.save() wrote" in error


def test_a_recorded_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = torch.randn(1, 2, 8, 4)
    with record(tmp_path):
        npu_fusion_attention(query, query, query, 2, "BNSD", sparse_mode=2, scale=0.5)
    (folder,) = [path.parent for path in tmp_path.rglob("call.json")]
    lines, _ = output(["explain", str(folder)], capsys)
    assert lines[1].startswith("RUNS, BUT WRONG: sparse_mode=2 without atten_mask")
    _, error = output(["explain", str(tmp_path / "elsewhere")], capsys, status=1)
    assert "elsewhere" in error


def test_picture_beside_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.txt"
    lines, _ = output([*SCALED, "--picture", str(path)], capsys)
    assert lines[-1] == f"written: {path}"
    assert path.read_text(encoding="utf-8").startswith("npu_fusion_attention\nRuns.")
    _, error = output([*SCALED, "--picture", "mask.jpg"], capsys, status=1)
    expected = "expected a file ending in .png, .svg, .txt or .html, but got mask.jpg."
    assert error == f"python -m fusion_attention explain: {expected}\n"


def test_what_is_missing_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    _, error = output(["explain", "--query", "1,2,3,4"], capsys, status=1)
    assert "say the call with --heads, --layout, or name a recorded one; --help shows how." in error
    _, error = output([*QUERY, "--mask", "triangle"], capsys, status=1)
    assert "neither a file nor one of none, triu2048, prefix3072, causal, but 'triangle'" in error
    packed = ["explain", "--query", "9,2,8", "--layout", "TND", "--heads", "2", "--mask", "causal"]
    assert "use triu2048" in output(packed, capsys, status=1)[1]


def test_examples_of_the_help_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(torch.ones(1024, 1024, dtype=torch.bool).triu(1), "mask.pt")
    text = explain.EXAMPLES.replace("\\\n", " ")
    commands = [line.split()[3:] for line in text.splitlines() if line.strip().startswith("python")]
    assert len(commands) == 4
    for command in commands:
        if command[1].startswith("record/"):
            continue  # test_a_recorded_call
        lines, _ = output(command, capsys)
        assert lines[1].startswith("Runs")


@pytest.mark.parametrize("shape", ["2,8,x", "2,,8,4", "2,8,64,", "two"])
def test_a_shape_is_read_whole_or_not_at_all(
    shape: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["explain", "--query", shape, "--layout", "BNSD", "--heads", "8"])
    assert f"argument --query: expected integers as in 2,8,64, got '{shape}'" in (
        capsys.readouterr().err
    )
