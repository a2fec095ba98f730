"""The built package holds everything that the checkout holds, and no name that is not ours."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    left_out = shutil.ignore_patterns(".*", "build", "report", "*.db*", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=left_out)
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder)]
    subprocess.run([*build, str(source)], cwd=folder, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_file_of_the_tree(wheel: zipfile.ZipFile) -> None:
    expected = set()
    for folder in ("robustlr", "tasks", "studies", "analysis"):
        for path in (ROOT / folder).rglob("*"):
            packed = (".py", ".toml", ".j2", ".c", ".h", ".json")
            if path.suffix in packed or path.name == "py.typed":
                relative = path.relative_to(ROOT)
                if relative.parts[0] == "robustlr" and relative.parts[1] in (
                    "tasks",
                    "studies",
                    "analysis",
                ):
                    continue  # the committed links
                inside = relative if relative.parts[0] == "robustlr" else Path("robustlr", relative)
                expected.add(inside.as_posix())
    inside_wheel = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside_wheel == expected


def test_the_wheel_takes_one_import_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"robustlr"}


def test_the_built_package_works_outside_the_checkout(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    wheel.extractall(tmp_path)
    code = (
        "import robustlr; from robustlr.registry import analyses, load_optimizer, studies, tasks\n"
        "from robustlr.study import load_study\n"
        "print(robustlr.__file__)\n"
        "assert studies() and tasks() and analyses()\n"
        "assert load_study('quickstart').check() is None\n"
        "load_optimizer('nero')"
    )
    command = [
        sys.executable,
        "-I",
        "-c",
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))
