import pytest

from ztunnel.control.mesh.document import read


def problems_of(text, look):
    document, root = read(text, "m.yaml")
    if root is not None:
        look(root)
    return document.report()


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "\tx: 1", "- a\nb: c", "a: 1\n---\nb: 2", "a: *gone"])
def test_what_is_no_yaml_is_named_with_its_line(text):
    [problem] = problems_of(text, lambda root: None)
    assert problem.startswith(f"m.yaml:{problem.split(':')[1]}: not YAML: ")
    assert int(problem.split(":")[1]) >= 1


def test_the_line_of_a_syntax_error_is_where_it_is():
    assert problems_of("a: 1\nb: 2\nc: [1, 2\nd: 3\n", lambda root: None)[0].startswith("m.yaml:4: not YAML: ")


def test_a_control_character_is_one_problem_not_a_crash():
    [problem] = problems_of("a: \x00", lambda root: None)
    assert "not YAML" in problem


def test_deep_nesting_is_one_problem_not_a_crash():
    [problem] = problems_of("[" * 100_000, lambda root: None)
    assert problem.startswith("m.yaml:1: ")


def test_problems_come_in_the_order_of_lines_with_their_paths():
    def look(root):
        values = dict(root.entries())
        values["c"].boolean()
        [item] = values["b"].items()
        item.integer(1, 5)

    assert problems_of("b:\n- 9\nc: yes\n", look) == (
        "m.yaml:2: b[0]: must be between 1 and 5, not 9",
        "m.yaml:3: c: must be true or false, not 'yes'",
    )


def test_a_key_that_comes_twice_is_refused_with_both_lines():
    assert problems_of("a: 1\nb: 2\na: 3\n", lambda root: root.entries()) == ("m.yaml:3: a: is already in line 1",)


def test_text_is_what_was_written_not_what_yaml_1_1_makes_of_it():
    document, root = read("[on, 1:20, 2001-01-01, 0x10, '5']", "m")
    assert [item.text() for item in root.items()] == ["on", "1:20", "2001-01-01", "0x10", "5"]
    assert document.report() == ()


@pytest.mark.parametrize(
    ("text", "reader"),
    [("'80'", "integer"), ("1.5", "integer"), ("!N 3", "integer"), ("{}", "text"), ("!T x", "text"), ("~", "text")],
)
def test_a_value_of_another_kind_is_refused(text, reader):
    arguments = (0, 100) if reader == "integer" else ()
    assert len(problems_of(text, lambda root: getattr(root, reader)(*arguments))) == 1


def test_null_is_an_empty_mapping_and_an_empty_list():
    document, root = read("a:\n", "m")
    [(_, value)] = root.entries()
    assert (value.entries(), list(value.items())) == ([], [])
    assert document.report() == ()


def test_nothing_at_all_has_no_root():
    document, root = read("# only a comment\n", "m")
    assert root is None
    assert document.report() == ()


def test_at_leads_as_far_as_it_can():
    _, root = read("a:\n  b:\n    c: 1\n", "m")
    assert (root.at("a", "b", "c").path, root.at("a", "b", "c").line) == (".a.b.c", 3)
    assert root.at("a", "x", "y").path == ".a"
