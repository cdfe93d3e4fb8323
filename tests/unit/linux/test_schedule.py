"""In a process of its own each, because a turn stays what it was set to."""

import subprocess
import sys

import pytest

from ztunnel.linux import schedule
from ztunnel.linux.schedule import set_turn, turn

PROGRAM = """
import os, threading
from ztunnel.linux.schedule import set_turn, turn
began = os.nice(0)
os.nice(3)
before = turn()
taken = set_turn(0.0005)
of_thread = []
thread = threading.Thread(target=lambda: of_thread.append(turn()))
thread.start()
thread.join()
print(before, taken, turn(), of_thread[0], os.nice(0) - began, os.sched_getscheduler(0) == os.SCHED_OTHER)
"""


def test_a_turn_is_set_for_the_thread_and_its_threads_and_nothing_else_changes():
    output = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True).stdout
    before, taken, now, of_thread, niceness, is_normal = output.split()
    expected = "0.0005" if taken == "True" else before
    assert (now, of_thread) == (expected, expected)
    assert (niceness, is_normal) == ("3", "True")


def test_an_unknown_machine_is_left_alone(monkeypatch):
    monkeypatch.setattr(schedule.platform, "machine", lambda: "abacus")
    assert turn() is None
    assert not set_turn(0.0005)


def test_a_refusal_is_no_error(monkeypatch):
    before = turn()
    monkeypatch.setattr(schedule.platform, "machine", lambda: "none")
    monkeypatch.setitem(schedule._NUMBERS, "none", (-1, -1))
    assert not set_turn(0.0005)
    monkeypatch.undo()
    assert turn() == before


@pytest.mark.parametrize("number", schedule._NUMBERS.values())
def test_system_calls_are_next_to_each_other(number):
    assert number[1] == number[0] + 1
