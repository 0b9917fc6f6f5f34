"""The command line: help, unknown commands, exit statuses, and what importing the package loads."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch
from programs import command
from simd import simd_targets

import fusion_attention
from fusion_attention import _environment, _optional, cli
from fusion_attention._errors import FeatureError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    pipeline = f"{sys.executable} -m fusion_attention info | true"
    done = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_help_lists_every_command_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in cli.COMMANDS:
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(line.split()) > 3
        assert len(line) <= 100


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0
    assert f"usage: python -m fusion_attention {name}" in capsys.readouterr().out


def test_no_command_prints_help_and_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_an_unknown_command_names_the_nearest_one() -> None:
    completed = command("infos")
    assert completed.returncode == 2
    assert completed.stdout == ""
    assert "there is no command 'infos'. Did you mean 'info'?" in completed.stderr
    assert "Traceback" not in completed.stderr


def test_an_unknown_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--fast"]) == 2
    assert "there is no option '--fast'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(["info", "--jso"])  # no guessing of abbreviations
    assert stopped.value.code == 2


def test_a_feature_error_is_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> int:
        raise FeatureError("no such thing here")

    monkeypatch.setattr("fusion_attention.cli.info.run", fails)
    assert cli.main(["info"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "python -m fusion_attention info: no such thing here\n"


def test_version_is_the_same_everywhere() -> None:
    completed = command("--version")
    assert completed.returncode == 0
    version = fusion_attention.__version__
    assert completed.stdout == f"fusion_attention {version}\n"
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.*)"$', project, re.MULTILINE).group(1) == version
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.search(r"^project\(fusion_attention VERSION (\S+)", cmake, re.M).group(1) == version


def test_info_in_text_and_in_json_tells_the_same() -> None:
    text, data = command("info"), command("info", "--json")
    assert text.returncode == data.returncode == 0
    facts = json.loads(data.stdout)
    assert facts["torch"] == torch.__version__
    assert facts["cpu"]["cores"] >= 1
    for word in (facts["torch"], facts["cpu"]["name"], facts["folder"], *facts["environment"]):
        assert word in text.stdout
    assert set(facts["optional_packages"]) == set(_optional.PACKAGES)


def test_info_says_where_targets_and_threads_come_from() -> None:
    last = simd_targets()[-1]
    facts = json.loads(
        command("info", "--json", OMP_NUM_THREADS="1", FUSION_ATTENTION_TARGET=last).stdout
    )
    assert facts["threads"] == {"count": 1, "why": "OMP_NUM_THREADS=1"}
    targets = facts["simd_targets"]
    assert targets["runnable"] == simd_targets()
    assert set(targets["runnable"]) <= set(targets["built"])
    assert targets["selected"] == last
    assert targets["why"] == "FUSION_ATTENTION_TARGET names it"
    assert facts["environment"]["FUSION_ATTENTION_TARGET"] == last
    assert facts["backends"] == ["cpu", "reference"]
    assert facts["torch_npu"] is None


@pytest.mark.parametrize("vendor", [False, True])
def test_info_tells_the_vendors_package_from_the_stand_in(
    vendor: bool, tmp_path: pathlib.Path
) -> None:
    package = pathlib.Path(fusion_attention.__file__).parent
    folder = tmp_path if vendor else package / "torch_npu" / "path"
    if vendor:
        (tmp_path / "torch_npu.py").write_text("raise SystemExit('info imports it')")
    path = os.pathsep.join([str(folder), str(package.parent)])
    completed = command("info", PYTHONPATH=path)
    assert completed.returncode == 0
    says = "gets the calls on NPU tensors" if vendor else "stands in for it"
    assert says in completed.stdout


def test_info_says_what_is_wrong_with_a_target() -> None:
    completed = command("info", FUSION_ATTENTION_TARGET="mmx")
    assert completed.returncode == 0
    assert "SIMD target" in completed.stdout
    assert "NONE: npu_fusion_attention: expected the environment variable" in completed.stdout
    assert "but got mmx." in completed.stdout


def test_every_variable_that_is_read_is_listed() -> None:
    reads = re.compile(r'(?:environ(?:\.get\(|\[)|getenv\()\s*"(FUSION_ATTENTION_\w+)"')
    files = [*(ROOT / "python").rglob("*.py"), *(ROOT / "src").rglob("*.cc")]
    found = {name for file in files for name in reads.findall(file.read_text(encoding="utf-8"))}
    assert found == set(_environment.VARIABLES)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(FeatureError, match=r"need the package matplotlib.*pip install matplotlib"):
        _optional.load("matplotlib.figure")


def test_extras_are_those_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package, (_, extra) in _optional.PACKAGES.items():
        assert re.search(rf'^{extra} = \["{package}>=', project, re.MULTILINE)


# What `import fusion_attention` may not load on top of what `import torch` loads anyway.
_HEAVY = (
    *("argparse", "json", "numpy", "matplotlib", "rich", "safetensors", "transformers", "pytest"),
    *("PIL", "hypothesis", "torch_npu", "torch._dynamo", "torch._inductor", "unittest"),
)


def test_importing_the_package_loads_no_feature() -> None:
    program = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import fusion_attention\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = completed.stdout.split()
    assert "fusion_attention.api" in loaded
    assert [x for x in loaded if x.startswith(tuple(f"{y}." for y in _HEAVY)) or x in _HEAVY] == []
    folders = ("cli", "recording", "benchmark", "explain", "convert", "integrations", "torch_npu")
    features = tuple(f"fusion_attention.{folder}" for folder in folders)
    assert [x for x in loaded if x.startswith(features)] == []


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = fusion_attention.nothing
