import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.control.mesh import split as module
from ztunnel.control.mesh.split import PlainError, join, split


def items(text):
    return [(window.part, window.indent, window.items) for window in split(text)]


PLAIN = """\
# a mesh
---
workloads:  # first
  # one
  - name: a
    workloadIps:
    - 10.0.0.1

  # two
  - {name: b}
services: []
policies:
- name: c
- name: |
    d
    - e
pods:
"""


def test_the_items_of_each_part_with_what_follows_them():
    assert items(PLAIN) == [
        ("workloads", 2, ["name: a\n    workloadIps:\n    - 10.0.0.1\n\n  # two", "{name: b}"]),
        ("policies", 0, ["name: c", "name: |\n    d\n    - e"]),
    ]


@pytest.mark.parametrize("width", [1, 2, 30, 1000])
def test_windows_hold_the_same_items_however_wide(monkeypatch, width):
    wide = items(PLAIN)
    monkeypatch.setattr(module, "WINDOW", width)
    merged = {}
    for part, indent, found in items(PLAIN):
        merged.setdefault((part, indent), []).extend(found)
    assert [(*key, found) for key, found in merged.items()] == wide


def test_joined_items_are_the_text_they_were():
    [first, second] = split(PLAIN)
    assert join(first) in PLAIN
    assert join(second) in PLAIN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}\n",
        "workloads: [{name: a}]\n",
        "workloads:\n- name: a",
        "workloads:\n- &a x\n- *a\n",
        "workloads:\n-\n  name: a\n",
        "workloads:\n- name: a\nworkloads:\n- name: b\n",
        "strange:\n- name: a\n",
        "workloads:\n- name: a\nstrange:\n- name: b\n",
        "workloads:\n- name: a\r\n",
        "workloads:\n- name: a\n---\n",
        "%YAML 1.1\n---\nworkloads:\n- name: a\n",
        "workloads:\n  - name: a\n - name: b\n",
        "workloads:\n\t- name: a\n",
        "workloads: []\n- name: a\n",
        "workloads: !x\n- name: a\n",
    ],
)
def test_what_is_not_plain_is_not_split(text):
    with pytest.raises(PlainError):
        items(text)


@given(
    st.lists(st.sampled_from([*"abc:-#'\"|[]{}& \n\t\r", "\n- ", "\n  - ", "\npods:\n", "workloads:\n"])).map("".join)
)
def test_any_text_is_split_or_not_plain_and_nothing_is_lost(text):
    try:
        windows = list(split(text))
    except PlainError:
        return
    assert all(join(window) in text for window in windows)
