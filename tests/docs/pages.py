"""The pages that a user reads, and the code and commands in them."""

import contextlib
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.experiments import launching

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts and "packages" not in page.parts]


class Block(NamedTuple):
    """A block of code: its language, as written behind the fence, and its text."""

    language: str
    text: str


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of code of a page in these languages, in the order of the page."""
    found = re.findall(r"^```([\w{}:-]*)[^\n]*\n(.*?)^```", page.read_text(), re.DOTALL | re.M)
    return [Block(*each) for each in found if each[0] in languages]


def own_files(page: Path) -> dict[str, str]:
    """Return the files that a page tells its reader to write: blocks that begin with their name."""
    found = {}
    for block in blocks(page, "python"):
        if named := re.match(r"# (\w+\.py)\n", block.text):
            found[named[1]] = block.text
    return found


@contextlib.contextmanager
def checkout(page: Path, folder: Path) -> Iterator[Path]:
    """Make a folder look like a checkout with the page's own files, and run commands there."""
    for name in ("configs", "genjax", "experiments", "docs"):
        (folder / name).symlink_to(ROOT / name)
    files = own_files(page)
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "ROOT", folder)
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        importlib.invalidate_caches()
        yield folder
    for name in files:
        sys.modules.pop(name.removesuffix(".py"), None)


def commands(text: str) -> list[list[str]]:
    """Return the commands of `experiments` in a block of shell, each as [name, argument, …]."""
    lines = text.replace("\\\n", " ").splitlines()
    parts = (part for line in lines for part in re.split(r" && | &$|--command='|^srun | \(", line))
    found = (re.search(r"(?:-m experiments\.|^genjax )(\w+) ?(.*)", part) for part in parts)
    return [
        [each[1], *shlex.split(each[2].removesuffix("'"), comments=True)] for each in found if each
    ]


def prose(page: Path) -> str:
    """Return the text of a page without code, tables, headings, links' targets and formulas."""
    text = re.sub(r"^```.*?^```", "\n\n", page.read_text(), flags=re.DOTALL | re.M)
    text = re.sub(r"^(\||#|!\[|\().*$", "\n", text, flags=re.M)
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", text)


def sentences(page: Path) -> list[str]:
    """Return the sentences of a page's prose."""
    items = re.split(r"\n\s*\n|\n(?=- |\d+\. )", prose(page))
    return [each for item in items for each in re.split(r"(?<=[.!?:;])\s+", item.strip()) if each]
