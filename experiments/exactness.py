"""Write the list of published numbers that genjax reproduces, each with the test that checks it.

    python -m experiments.exactness --tests=facts.txt
    python -m pytest @facts.txt
    python -m experiments.exactness --green=c0ffee1

The facts are those of docs/results/exactness.json. The last command keeps the commit whose tests
passed in that file, and writes docs/results/exactness.md. The commit must have the same list. A
list that has changed since then has not passed, and the page says so.
"""

import hashlib
import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments.launch.runtime import run_program, user_errors
from experiments.pages.tables import markdown

FOLDER = Path(__file__).parents[1] / "docs" / "results"
FACTS, PAGE = FOLDER / "exactness.json", FOLDER / "exactness.md"
TESTS = flags.DEFINE_string("tests", None, "File to write the tests of all facts to, for pytest.")
GREEN = flags.DEFINE_string("green", None, "Commit at which all of these tests passed.")


class Fact(NamedTuple):
    """A published number or a closed form, and the test that checks it.

    Attributes:
        group: what kind of fact it is, the heading of its table.
        value: a number, numbers, or words where the test compares with a formula or with arrays.
        source: the repository, paper or equation that says so.
        test: the test's file and function, as pytest takes them.
        written: the text of the numbers in the test, if the test writes them in another form.
    """

    group: str
    name: str
    value: float | list[float] | str
    source: str
    test: str
    written: tuple[str, ...] = ()

    @property
    def numbers(self) -> list[float]:
        """The numbers of the value, or none."""
        return [] if isinstance(self.value, str) else list(_flat(self.value))


class Passed(NamedTuple):
    """The last time that all tests of a list passed.

    Attributes:
        commit: of the code and the tests.
        digest: of the list (`digest_of`).
    """

    commit: str
    digest: str


def digest_of(facts: list[Fact]) -> str:
    """Return the SHA-256 of a list of facts."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _flat(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for each in value:
            yield from _flat(each)
    else:
        yield value


def read_facts(path: Path = FACTS) -> tuple[Passed, list[Fact]]:
    """Return when all tests last passed, and all facts."""
    return _parsed(path.read_text(encoding="utf-8"))


def _parsed(text: str) -> tuple[Passed, list[Fact]]:
    stored = json.loads(text)
    return Passed(**stored["passed"]), [Fact(**fact) for fact in stored["facts"]]


def passed_at(commit: str, path: Path = FACTS) -> Passed:
    """Return the record that all tests of the list in a file passed at a commit.

    Raises:
        ValueError: there is no such commit, or its list is another one, so the tests of this list
            have not passed there.
    """
    git = lambda *command: subprocess.run(
        ["git", *command], cwd=path.parent, capture_output=True, encoding="utf-8"
    )
    name = git("rev-parse", "--short=7", f"{commit}^{{commit}}")
    there = git("show", f"{commit}:./{path.name}")
    if name.returncode or there.returncode:
        raise ValueError(f"--green={commit} is no commit of git with a {path.name}")
    digest = digest_of(read_facts(path)[1])
    if digest_of(_parsed(there.stdout)[1]) != digest:
        raise ValueError(
            f"--green={commit} has another list than {path}: commit this one, and run its tests"
        )
    return Passed(name.stdout.strip(), digest)


def write_facts(passed: Passed, facts: list[Fact], path: Path = FACTS) -> None:
    """Write what `read_facts` reads, a fact a line."""
    row = lambda fact: {key: value for key, value in fact._asdict().items() if value != ()}
    lines = (f"    {json.dumps(row(fact), ensure_ascii=False)}" for fact in facts)
    first = f'{{\n  "passed": {json.dumps(passed._asdict())},\n  "facts": [\n'
    path.write_text(first + ",\n".join(lines) + "\n  ]\n}\n", encoding="utf-8")


def page(passed: Passed, facts: list[Fact]) -> str:
    """Return the page of all facts, a table for each group."""
    count = sum(len(fact.numbers) or 1 for fact in facts)
    at = f"passed at commit `{passed.commit}`."
    if passed.digest == digest_of(facts):
        state = f"All tests {at}"
    else:
        state = f"The tests of an earlier list {at} This list has not been run as a whole."
    text = f"""\
# Exactness

genjax reproduces {count} published numbers and closed forms, in {len(facts)} rows. Each row names
the test that checks it. `exactness.json`, beside this page in the repository, holds the rows.

{state}

These commands run the tests and write the page:

```sh
python -m experiments.exactness --tests=facts.txt
python -m pytest @facts.txt
python -m experiments.exactness --green=c0ffee1
```
"""
    for group, members in itertools.groupby(facts, lambda fact: fact.group):
        rows = [[fact.name, shown(fact.value), fact.source, f"`{fact.test}`"] for fact in members]
        table = markdown(["fact", "value", "source", "test"], rows)
        text += f"\n## {group[0].upper()}{group[1:]}\n\n{table}\n"
    return text


def shown(value: float | list | str) -> str:
    """Return a value as text: integers with separators, lists by commas."""
    if isinstance(value, list):
        return "; ".join(map(shown, value))
    return value if isinstance(value, str) else f"{value:,}" if value == int(value) else str(value)


def main() -> None:
    passed, facts = read_facts()
    if TESTS.value:
        tests = dict.fromkeys(fact.test for fact in facts)
        Path(TESTS.value).write_text("".join(f"{test}\n" for test in tests), encoding="utf-8")
        print(f"{len(tests)} tests: {TESTS.value}")
        return
    if GREEN.value:
        with user_errors():
            passed = passed_at(GREEN.value)
    write_facts(passed, facts)
    PAGE.write_text(page(passed, facts), encoding="utf-8")
    print(f"{len(facts)} facts: {PAGE}")


if __name__ == "__main__":
    run_program(main)
