"""The wheel, built and installed in an empty environment, works outside of the checkout."""

import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import genjax

ROOT = Path(__file__).parents[1]
FILES = ("genjax", "experiments", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def succeed(*command, cwd):
    result = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build it from a copy, so that the checkout gets no `build` folder."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in FILES:
        path, ignore = ROOT / name, shutil.ignore_patterns("__pycache__")
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=ignore)
        else:
            shutil.copy(path, source)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", out)
    succeed(sys.executable, "-m", "pip", "wheel", *options, ".", cwd=source)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_it_holds_the_library_the_commands_and_their_files(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "genjax/py.typed",
        "genjax/data/sets/embedded/emoji.png",
        "experiments/train.py",
    } <= names
    tops = {name.partition("/")[0] for name in names}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"genjax", "experiments"}
    modules = {str(path.relative_to(ROOT)) for path in ROOT.glob("genjax/**/*.py")}
    assert modules <= names


@pytest.mark.slow
def test_it_works_in_an_environment_outside_the_checkout(wheel, tmp_path):
    """The requirements are lent by this environment, whose own genjax the new one does not see."""
    environment = tmp_path / "environment"
    succeed(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / "bin/python"
    install = ("install", "-q", "--no-deps", "--no-index", wheel)
    succeed(sys.executable, "-m", "pip", "--python", python, *install, cwd=tmp_path)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = """
import importlib.metadata, genjax
from genjax.data import load_dataset
print(genjax.__file__, genjax.__version__, importlib.metadata.version("genjax-research"))
print(load_dataset("emoji").source[0]["image"].shape)
"""
    lines = succeed(python, "-c", code, cwd=tmp_path).splitlines()
    assert lines[0].split() == [str(packages / "genjax/__init__.py"), *[genjax.__version__] * 2]
    assert lines[1] == "(32, 32, 3)"
    shown = succeed(environment / "bin/genjax", "--help", cwd=tmp_path)
    assert re.search(r"^ *train +\w+", shown, re.MULTILINE)


def test_citation_and_changelog_name_the_version():
    assert f"\nversion: {genjax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {genjax.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
