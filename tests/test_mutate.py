"""Mutants of a small file: what is changed, and what is left alone."""

import mutate

SOURCE = b'''"""A docstring."""
LIMIT: int = 0

def area(sides, scale=2.5, unit="cm"):
    """Another."""
    first, second = sides["first"], -sides[1]
    if first <= 0 or not second:
        raise ValueError("sides must be positive" + str(1))
    print(f"{first + second}", 3)
    return round(first * second, ndigits=scale)

if __name__ == "__main__":
    area(4)
'''
EXPECTED = {
    2: {"LIMIT: int = [0 => 1]"},
    4: {
        'def area(sides, scale=[2.5 => 5.0], unit="cm"):',
        'def area(sides, scale=[2.5 => (-2.5)], unit="cm"):',
        """def area(sides, scale=2.5, unit=["cm" => 'cm_']):""",
    },
    6: {
        '[first, second = sides["first"], -sides[1] => pass]',
        """first, second = sides[["first" => 'first_']], -sides[1]""",
        'first, second = sides["first"], [-sides[1] => (sides[1])]',
        'first, second = sides["first"], -sides[[1 => 2]]',
        'first, second = sides["first"], -sides[[1 => (-1)]]',
    },
    7: {
        "if [first <= 0 or not second => True]:",
        "if [first <= 0 or not second => False]:",
        "if [first <= 0 or not second => first <= 0 and (not second)]:",
        "if [first <= 0 => first < 0] or not second:",
        "if [first <= 0 => first > 0] or not second:",
        "if first <= [0 => 1] or not second:",
        "if first <= 0 or [not second => (second)]:",
    },
    10: {
        "[return round(first * second, ndigits=scale) => return None]",
        "return [round(first * second, ndigits=scale) => round(first * second)]",
        "return round([first * second => first / second], ndigits=scale)",
    },
}


def test_every_change_is_made_once():
    found = list(mutate.mutants("a/b.py", SOURCE))
    changes = {line: {m.change for m in found if m.line == line} for line in EXPECTED}
    assert changes == EXPECTED
    assert len(found) == sum(map(len, EXPECTED.values()))
    for mutant in found:
        compile(mutant.source, "mutant", "exec")
        lines = zip(SOURCE.splitlines(), mutant.source.splitlines(), strict=True)
        assert [i for i, (a, b) in enumerate(lines, 1) if a != b] == [mutant.line]


def test_functions_can_be_left_out():
    assert [m.line for m in mutate.mutants("a/b.py", SOURCE, ["area", "LIMIT"])] == []


def test_what_only_a_gpu_runs_is_left_out():
    source = b"def f(x):\n    if x.type == 'cuda' and x:\n        y = 1\n    else:\n        y = x\n"
    changes = [m.change for m in mutate.mutants("a/b.py", source)]
    assert changes == ["[y = x => pass]"]


def test_what_an_import_executes_has_no_lines_of_its_own():
    for mutant in mutate.mutants("a/b.py", SOURCE):
        assert list(mutant.lines) == ([] if mutant.line < 5 else [mutant.line])
