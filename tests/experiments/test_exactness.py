"""Every published number on the list of exactness stands in the test that its row names."""

import ast
import functools
import math
import re
import shutil
import subprocess

import pytest

from experiments.exactness import (
    PAGE,
    Fact,
    Passed,
    digest_of,
    page,
    passed_at,
    read_facts,
    write_facts,
)
from tests.experiments.launching import ROOT

PASSED, FACTS = read_facts()


@functools.cache
def parsed(path: str) -> tuple[str, ast.Module]:
    source = (ROOT / path).read_text(encoding="utf-8")
    return source, ast.parse(source)


def docstrings(tree: ast.AST) -> set[ast.AST]:
    """Return the constants that are docstrings, whose numbers check nothing."""
    alone = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    return {value for value in alone if isinstance(value, ast.Constant)}


@functools.cache
def numbers_in(path: str, function: str) -> list[float]:
    """Return the numbers in a test's code and in the module's own, outside its other functions."""
    _, tree = parsed(path)
    outside = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    own = [node for node in tree.body if getattr(node, "name", None) == function]
    found = []
    for node in outside + own:
        left_out = docstrings(node)
        for each in ast.walk(node):
            if isinstance(each, ast.Constant) and each not in left_out:
                value = each.value
                if isinstance(value, str):  # a table in a string
                    found += map(float, re.findall(r"(?<![\w.])\d*\.?\d+(?!\w)", value))
                elif isinstance(value, int | float):
                    found.append(value)
    return found


def fault_of(fact: Fact) -> str | None:
    """Return why a fact is not tested, or None."""
    path, _, function = fact.test.partition("::")
    if not (ROOT / path).exists():
        return f"{path} does not exist"
    source, tree = parsed(path)
    if function not in (node.name for node in tree.body if isinstance(node, ast.FunctionDef)):
        return f"{path} has no {function}"
    if missing := [text for text in fact.written if text not in source]:
        return f"{path} does not have {missing[0]}"
    there = numbers_in(path, function)
    same = lambda number: any(math.isclose(abs(number), each, rel_tol=1e-12) for each in there)
    missing = [number for number in fact.numbers if not same(number) and not fact.written]
    return f"{fact.test} does not have {missing[0]}" if missing else None


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_a_fact_stands_in_its_test(fact):
    assert fault_of(fact) is None
    assert fact.source and fact.name


def test_names_are_unique():
    assert len({(fact.group, fact.name) for fact in FACTS}) == len(FACTS)


def test_a_wrong_number_or_test_would_be_noticed():
    fact = next(fact for fact in FACTS if fact.name == "DiT-S/2")
    path, _, _ = fact.test.partition("::")
    assert "does not have 32865057" in fault_of(fact._replace(value=[32_865_057, 32_963_360]))
    assert "has no test_counts" in fault_of(fact._replace(test=f"{path}::test_counts"))
    assert "does not exist" in fault_of(fact._replace(test="tests/nothing.py::test_x"))
    assert "does not have 2 ** 7" in fault_of(fact._replace(written=("2 ** 7",)))


def test_the_page_is_that_of_the_facts(tmp_path):
    assert PAGE.read_text(encoding="utf-8") == page(PASSED, FACTS)
    passed = Passed("c0ffee1", digest_of(FACTS))
    write_facts(passed, FACTS, tmp_path / "facts.json")
    again, facts = read_facts(tmp_path / "facts.json")
    assert again == passed and [fact.test for fact in facts] == [fact.test for fact in FACTS]
    assert "All tests passed at commit `c0ffee1`" in page(again, facts)


def test_a_list_that_has_changed_has_not_passed():
    passed = Passed("c0ffee1", digest_of(FACTS))
    added = [*FACTS, FACTS[-1]._replace(name="another")]
    assert "All tests passed" not in page(passed, added)
    assert "an earlier list passed at commit `c0ffee1`" in page(passed, added)


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_list_has_not_passed_at_a_commit_that_has_another_one(tmp_path):
    path, named = tmp_path / "facts.json", ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    write_facts(PASSED, FACTS[:2], path)
    for command in (["init", "-q"], ["add", "."], [*named, "commit", "-qm", "two facts"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    passed = passed_at("HEAD", path)
    assert re.fullmatch("[0-9a-f]{7,}", passed.commit) and passed.digest == digest_of(FACTS[:2])
    write_facts(passed, FACTS[:3], path)
    with pytest.raises(ValueError, match="HEAD has another list"):
        passed_at("HEAD", path)
    with pytest.raises(ValueError, match="c0ffee1 is no commit"):
        passed_at("c0ffee1", path)
