"""The list of `mutants.py` cannot rot: each text that is replaced stands in its module, each named test in its file."""
import ast
import re

import pytest
from mutants import MUTANTS, TESTS, chosen


def test_each_mutant_is_one_small_change_of_a_module_that_still_compiles():
    for mutant in MUTANTS:
        ast.parse(mutant.broken())
        assert mutant.old != mutant.new and len(mutant.old) < 200, mutant.name


def test_the_tests_that_must_notice_exist():
    for mutant in MUTANTS:
        for test in mutant.tests:
            file, _, function = test.partition("::")
            name = re.escape(function.partition("[")[0])
            assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.M), f"{mutant.name}: no {test}"


def test_mutants_are_chosen_by_name_or_kind():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40 and all(mutant.tests for mutant in MUTANTS)
    assert [mutant.name for mutant in chosen(["metropolis"])] == ["metropolis"]
    assert {mutant.kind for mutant in chosen(["ladj", "void"])} == {"ladj", "void"} and chosen([]) == MUTANTS
    with pytest.raises(ValueError, match="got {'nonsense'}"):
        chosen(["nonsense"])
