"""`python -m fusion_attention run`: programs that import torch_npu run as Python would run them."""

import ast
from pathlib import Path

import pytest
from programs import start

LAUNCHER = "torch.distributed.run"  # torchrun
PAGE_EXAMPLE = Path(__file__).parent / "data" / "api_page_example.py"
ECHO = """
import sys, torch_npu
print(__name__, sys.argv[1:], sys.path[0], __file__)
"""


def test_the_api_pages_example_runs_unmodified() -> None:
    done = start("-m", "fusion_attention", "run", PAGE_EXAMPLE)
    assert done.returncode == 0, done.stderr
    assert "Ran 1 test" in done.stderr
    assert done.stderr.rstrip().endswith("OK")


def test_the_api_pages_example_runs_under_pytest(tmp_path: Path) -> None:
    test = tmp_path / "test_page.py"
    test.write_text(PAGE_EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    plugin = ("-p", "fusion_attention.pytest_plugin", "-p", "no:cacheprovider")
    done = start("-m", "pytest", "-q", *plugin, test, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_a_file_runs_as_main_with_its_own_arguments(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(ECHO, encoding="utf-8")
    done = start("-m", "fusion_attention", "run", program, "--lr", "1", "-m", "--compat")
    expected = f"__main__ ['--lr', '1', '-m', '--compat'] {tmp_path} {program}\n"
    assert done.stdout == expected, done.stderr


def test_a_module_runs_as_main_with_the_working_folder_on_its_path(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tool.py").write_text(ECHO, encoding="utf-8")
    done = start("-m", "fusion_attention", "run", "-m", "package.tool", "--lr", "1", cwd=tmp_path)
    expected = f"__main__ ['--lr', '1'] {tmp_path} {package / 'tool.py'}\n"
    assert done.stdout == expected, done.stderr


def test_a_safe_path_stays_as_it_is(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys; print(sys.path)", encoding="utf-8")
    done = start("-P", "-m", "fusion_attention", "run", program)
    expected = start("-P", program)
    *path, folder = ast.literal_eval(done.stdout)  # the last is where children find the stand-in
    assert path == ast.literal_eval(expected.stdout), done.stderr
    assert Path(folder).parts[-2:] == ("torch_npu", "path")


RANK = """
import os, torch, torch_npu
import torch.distributed as dist

rank = int(os.environ["LOCAL_RANK"])
torch.npu.set_device(rank)
dist.init_process_group("hccl")
tensor = torch.full((2,), rank + 1.0, device=f"npu:{rank}")
dist.all_reduce(tensor)
assert tensor.tolist() == [3, 3]
assert torch.npu.device_count() == 2
dist.destroy_process_group()
open(f"rank{rank}", "w").close()
"""


@pytest.mark.parametrize(
    "launch",
    [
        (LAUNCHER, "-m", "fusion_attention", "run", "program.py"),
        ("fusion_attention", "run", "-m", LAUNCHER, "program.py"),
    ],
    ids=["the launcher runs run", "run runs the launcher"],
)
def test_a_launcher_starts_ranks(launch: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(RANK, encoding="utf-8")
    at = launch.index(LAUNCHER) + 1
    options = ("--standalone", "--nproc_per_node=2")
    done = start("-m", *launch[:at], *options, *launch[at:], cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert sorted(x.name for x in tmp_path.glob("rank*")) == ["rank0", "rank1"]


def test_the_exit_status_is_the_programs(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys, torch_npu; sys.exit(7)", encoding="utf-8")
    assert start("-m", "fusion_attention", "run", program).returncode == 7


def test_a_traceback_begins_with_the_program(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("def f():\n    raise ValueError('why')\nf()\n", encoding="utf-8")
    done = start("-m", "fusion_attention", "run", program)
    assert done.returncode == 1
    expected = start(program)
    assert done.stderr == expected.stderr
    assert done.stderr.rstrip().endswith("ValueError: why")


def test_a_program_that_does_not_exist_is_named() -> None:
    done = start("-m", "fusion_attention", "run", "no_such_program.py")
    assert done.returncode == 1
    assert "no_such_program.py" in done.stderr
    assert "Traceback" not in done.stderr
    done = start("-m", "fusion_attention", "run", "-m", "no.such.module")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "python -m fusion_attention run: " in done.stderr
    assert "no.such.module" in done.stderr


def test_a_program_that_python_cannot_read_is_shown_as_python_shows_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import torch\nx = (\n", encoding="utf-8")
    done = start("-m", "fusion_attention", "run", program)
    assert done.returncode == 1
    assert done.stderr == start(program).stderr


SPAWN = """
import subprocess, sys, torch, torch_npu
import torch.distributed as dist

def work(rank, file):
    torch.npu.set_device(rank)
    dist.init_process_group("hccl", init_method=f"file://{file}", rank=rank, world_size=2)
    tensor = torch.full((2,), rank + 1.0, device=f"npu:{rank}")
    dist.all_reduce(tensor)
    assert dist.get_backend() == "hccl" and tensor.tolist() == [3, 3], tensor
    dist.destroy_process_group()

if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), nprocs=2)
    code = "import torch_npu; print(torch_npu.__version__)"
    subprocess.run([sys.executable, "-c", code], check=True)
"""


def test_processes_that_the_program_starts_import_the_stand_in_too(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SPAWN, encoding="utf-8")
    run = ("-m", "fusion_attention", "run", program, tmp_path / "rendezvous")
    done = start(*run, FUSION_ATTENTION_NPU_COUNT="2")
    assert done.returncode == 0, done.stderr
    assert "+fusion.attention." in done.stdout


def test_a_folder_of_the_name_is_not_the_vendors_package(tmp_path: Path) -> None:
    (tmp_path / "torch_npu").mkdir()
    program = tmp_path / "program.py"
    program.write_text("import torch_npu; print(torch_npu.__version__)", encoding="utf-8")
    done = start("-m", "fusion_attention", "run", program, cwd=tmp_path)
    assert "+fusion.attention." in done.stdout, done.stderr


def test_an_unknown_release_is_refused_in_one_line(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.touch()
    done = start("-m", "fusion_attention", "run", "--compat", "6.0", program)
    assert done.returncode == 1
    assert "there is no release '6.0'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
