"""What README and docs say can be typed: every command is parsed by its own program."""

import ast
import re
from unittest import mock

import pytest
from absl import app

from experiments.benchmark import commands as each_config
from tests.docs.pages import PAGES, ROOT, blocks, checkout, commands, name, sentences
from tests.experiments.launching import run

LANGUAGES = ("sh", "bash", "python", "py")
each_page = pytest.mark.parametrize("page", PAGES, ids=name)
# A run's folder in a command or in Python, as the pages call all of theirs.
RUN = re.compile(r"\bruns/\w+")
MAKES_A_RUN = re.compile(r"--workdir=(?:/shared/)?(runs/\w+)")


def parse(command: list[str]):
    """Let the program of a command parse its flags, and its config, without running it.

    A benchmark of several configs starts itself for each, which is parsed in its place.
    """
    program, *arguments = command
    if program == "benchmark" and len(each := each_config(arguments)) > 1:
        return max((parse([program, *one]) for one in each), key=lambda ended: ended.returncode)

    def only_parse(start, flags_parser):
        flags_parser(["program", *command[1:]])

    with mock.patch.object(app, "run", only_parse):
        return run(*command)


COMMANDS = {
    " ".join(command): (page, command)
    for page in PAGES
    for block in blocks(page, "sh", "bash")
    for command in commands(block.text)
}


# ml_collections loads a config's file so.
@pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_understood_by_its_program(line, tmp_path):
    page, command = COMMANDS[line]
    with checkout(page, tmp_path):
        result = parse(command)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "--workdir=runs/x", "--classses=3"],
        ["train", "--config=configs/digits_flow.py"],  # no --workdir
        ["train", "--config=configs/digits_flow.py", "--workdir=x", "--config.num_stesp=3"],
        ["train", "--config=configs/digits_gan.py:dgcan", "--workdir=x"],
        ["train", "--config=configs/digits_folw.py", "--workdir=x"],
    ],
)
@pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")
def test_a_wrong_command_would_be_noticed(command):
    assert parse(command).returncode == 1


def unknown_runs(page) -> list[str]:
    """Return the runs that a page uses before a command of it makes them."""
    made, unknown = set(), []
    for block in blocks(page, *LANGUAGES):
        for line in block.text.replace("\\\n", " ").splitlines():
            makes = MAKES_A_RUN.findall(line) if "experiments.train" in line else []
            makes += re.findall(r"(runs/emoji_latents)", line) if "encode" in line else []
            unknown += [each for each in RUN.findall(line) if each not in made | set(makes)]
            made |= set(makes)
    return unknown


@each_page
def test_a_page_uses_only_runs_that_it_makes(page):
    assert unknown_runs(page) == []


def test_a_run_from_nowhere_would_be_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\npython -m experiments.train --workdir=runs/a\n"
        "python -m experiments.compare runs/a runs/b\n```\n"
    )
    assert unknown_runs(page) == ["runs/b"]


CONFIGS = {
    path.stem: ast.get_docstring(ast.parse(path.read_text()))
    for path in sorted(ROOT.glob("configs/*.py"))
}


def unknown_runs_of_header(config: str, header: str) -> list[str]:
    """Return the runs that a config's header uses, and no command of any header makes.

    A name that begins with the config's name is a run of one of its choices.
    """
    made = {"runs/emoji_latents"}  # by experiments.encode
    made |= {each for text in [*CONFIGS.values(), header] for each in MAKES_A_RUN.findall(text)}
    named = set(RUN.findall(header)) - made
    return sorted(each for each in named if not each.startswith(f"runs/{config}_"))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_uses_only_runs_that_a_config_makes(config):
    assert unknown_runs_of_header(config, CONFIGS[config]) == []


def test_a_run_of_a_header_from_nowhere_would_be_noticed():
    header = "train --workdir=runs/a\nlearns from runs/a, runs/some_b and runs/other"
    assert unknown_runs_of_header("some", header) == ["runs/other"]


@each_page
def test_files_that_are_named_exist(page):
    for path in re.findall(
        r"\b(?:configs|notebooks|experiments|genjax|tests)/[\w/]+\.(?:py|ipynb)", page.read_text()
    ):
        assert (ROOT / path).exists(), path


@each_page
def test_links_lead_to_files(page):
    """Links to headings are checked where the site is built."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target and not target.startswith("packages/"):
            path = (page.parent / target).resolve()
            assert path.exists() or (path.suffix == ".ipynb" and notebook(path).exists()), target


def notebook(path):
    """Return where the notebook lies that the site's build copies to `path`."""
    return ROOT / "notebooks" / path.name


@each_page
def test_no_sentence_is_long(page):
    assert [each for each in sentences(page) if len(each.split()) > 30] == []


@each_page
def test_lines_of_prose_end_at_100_columns(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "![", "$$"))]
    assert [line for line in lines if len(line) > 100] == []


@each_page
def test_no_formula_becomes_a_list(page):
    """A line that begins with a plus sign is an item of a list, also within a sentence."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"^\s*\+ .*", text, re.MULTILINE) == []


def test_the_readme_is_short():
    assert len(PAGES[0].read_text().splitlines()) <= 200


@each_page
def test_extras_that_are_installed_exist(page):
    extras = set(re.findall(r'^        "(\w+)": ', (ROOT / "setup.py").read_text(), re.MULTILINE))
    named = re.findall(r"\.\[([\w,]+)\]", page.read_text())
    assert {each for names in named for each in names.split(",")} <= extras
