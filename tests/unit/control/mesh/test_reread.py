from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benches import mesh as benches_mesh
from ztunnel.control.mesh import reread
from ztunnel.control.mesh.localfile import parse
from ztunnel.control.mesh.reread import Rereader
from ztunnel.core.errors import ConfigError
from ztunnel.core.model.capture import CaptureMode
from ztunnel.runtime.slices import at_once

EXAMPLE = (Path(__file__).parents[3] / "golden/mesh/full.yaml").read_text()


def reader():
    return Rereader(trust_domain="cluster.local", capture=CaptureMode.REDIRECT)


def fresh(text):
    """What reading the text as a whole gives: the mesh, or the problems."""
    try:
        return parse(text, "m", trust_domain="cluster.local", capture=CaptureMode.REDIRECT)
    except ConfigError as error:
        return error.problems


def again(rereader, text):
    """What a source makes of the text."""
    mesh = at_once(rereader.read(text))
    return fresh(text) if mesh is None else mesh


@pytest.fixture
def parsed(monkeypatch):
    """The texts that were parsed."""
    texts = []
    real = reread.read_items

    def read_items(text):
        texts.append(text)
        return real(text)

    monkeypatch.setattr(reread, "read_items", read_items)
    return texts


def test_only_items_that_are_new_are_parsed(parsed):
    rereader = reader()
    before = at_once(rereader.read(benches_mesh.pair() + benches_mesh.crowd(100) + benches_mesh.policy(1)))
    parsed.clear()
    text = benches_mesh.pair() + benches_mesh.crowd(100, changed=[7, 50], version=2) + benches_mesh.policy(2)
    after = at_once(rereader.read(text))
    assert after == fresh(text)
    assert [count.count("name: ") for count in parsed] == [2, 1]
    assert sum(one is two for one, two in zip(before.workloads, after.workloads, strict=True)) == 100


def test_an_item_that_moves_is_not_parsed_again(parsed):
    rereader = reader()
    text = benches_mesh.pair() + benches_mesh.crowd(20)
    at_once(rereader.read(text))
    parsed.clear()
    head, *items = text.split("\n- ")
    assert at_once(rereader.read("\n- ".join([head, *reversed(items)]).replace("\n\n", "\n") + "\n"))
    assert len(parsed) <= 1


def test_a_bad_text_leaves_what_is_known(parsed):
    rereader = reader()
    text = benches_mesh.pair() + benches_mesh.crowd(20)
    at_once(rereader.read(text))
    assert at_once(rereader.read(text + "- {name: x}\n")) is None
    parsed.clear()
    assert at_once(rereader.read(text)) == fresh(text)
    assert parsed == []


def test_an_item_does_not_mean_the_same_with_another_indentation():
    rereader = reader()
    narrow = "workloads:\n- name: a\n  namespace: n\n"
    assert again(rereader, narrow) == fresh(narrow)
    wide = "workloads:\n  - name: a\n  namespace: n\n"
    assert again(rereader, wide) == fresh(wide)


@pytest.mark.parametrize(
    "text",
    [
        'workloads:\n- name: "a\n- b"\n  namespace: n\n',
        "workloads:\n- {name: a,\n- namespace: n}\n",
        "policies:\n- name: 'x\npods:\n- y'\n",
        "workloads:\n- name: |\n    a\n\n  namespace: n\n# end\n",
        "workloads:\n- - name: a\n",
        "workloads:\n- ? name\n  : a\n  namespace: n\n",
        "workloads:\n- name: a\n  namespace: n\n- name: a\n  namespace: n\n",
        "workloads:\n- " + "[" * 500 + "]" * 500 + "\n",
        "workloads:\n- " + "[" * 5000 + "]" * 5000 + "\n",
        "workloads:\n- name: a\n  namespace: \udc80\n",
    ],
)
def test_strange_texts_mean_what_they_mean_as_a_whole(text):
    assert again(reader(), text) == fresh(text)


LINES = st.sampled_from(
    [
        "workloads:",
        "services:",
        "policies: []",
        "---",
        "",
        "  # note",
        "- {name: a, namespace: n}",
        "- {name: b, namespace: n, workloadIps: [10.0.0.1]}",
        "- {name: c, namespace: n, workloadIps: [10.0.0.1]}",
        "- {name: s, namespace: n, hostname: s.n, ports: {80: 80}, endpoints: {Kubernetes//Pod/n/a: {}}}",
        "- {name: d, namespace: n, services: {n/s.n: {80: 8080}}}",
        "- name: e",
        "  namespace: n",
        "- namespace: n",
        "    name: 'f",
        "  name: g'",
        '- "h',
        "- i: |",
        "    - j",
        "- !Exact k",
        "- &l {name: l, namespace: n}",
        "- *l",
        "- {name: m,",
        "  namespace: n}",
        "- - o",
        "-",
        "  - {name: p, namespace: n}",
    ]
)


@st.composite
def edits(draw):
    """A text, and what is left of it after one edit after the other, each of a few lines."""
    text = draw(st.sampled_from([EXAMPLE, benches_mesh.pair() + benches_mesh.crowd(3) + benches_mesh.policy(1)]))
    texts = [text]
    for _ in range(draw(st.integers(1, 6))):
        base = draw(st.sampled_from(texts))
        lines = base.split("\n")
        start = draw(st.integers(0, len(lines)))
        end = draw(st.integers(start, min(start + 3, len(lines))))
        texts.append("\n".join([*lines[:start], *draw(st.lists(LINES, max_size=3)), *lines[end:]]))
    return texts


@given(edits())
def test_after_any_edits_the_answer_is_that_of_reading_anew(texts):
    rereader = reader()
    for text in texts:
        assert again(rereader, text) == fresh(text)


@given(st.lists(LINES, min_size=1, max_size=8), st.lists(LINES, max_size=8))
def test_any_lines_after_any_others_mean_what_they_mean_alone(first, second):
    rereader = reader()
    for lines in (first, second, first + second, ["workloads:", *first], ["workloads:", *second, *first]):
        text = "\n".join([*lines, ""])
        assert again(rereader, text) == fresh(text)


def test_the_example_with_any_item_missing_means_the_same_read_again():
    rereader = reader()
    starts = [0, *(at for at in range(len(EXAMPLE)) if EXAMPLE.startswith("\n- ", at)), len(EXAMPLE)]
    assert len(starts) > 5
    for start, end in pairwise(starts):
        text = EXAMPLE[:start] + EXAMPLE[end:]
        assert again(rereader, text) == fresh(text)
