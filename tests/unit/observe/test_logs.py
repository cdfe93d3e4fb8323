"""Logging is filtered at run time and never makes its caller wait."""

from __future__ import annotations

import errno
import logging
import os
import select
from collections.abc import Iterator

import pytest

from ztunnel.observe import logs as module
from ztunnel.observe.logs import Logs, install


class Output:
    """Reads what the writer thread wrote to the other end of a pipe."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()

    def line(self) -> str:
        """The next line; fails the test when none comes."""
        text = b""
        while not text.endswith(b"\n"):
            assert select.select([self.read_end], [], [], 10)[0], f"no line came, only {text!r}"
            byte = os.read(self.read_end, 1)
            assert byte, "the output was closed"
            text += byte
        return text.decode().rstrip("\n")


@pytest.fixture
def output() -> Iterator[Output]:
    made = Output()
    yield made
    os.close(made.write_end)
    os.close(made.read_end)


@pytest.fixture
def logs(output: Output) -> Iterator[Logs]:
    made = install("info,access=error", fd=output.write_end)
    yield made
    made.close(10)


def test_a_line_reaches_the_output(logs: Logs, output: Output) -> None:
    logging.getLogger("ztunnel.node").info("ready", extra={"fields": {"pods": 2}})
    assert output.line().split("\t")[1:] == ["info", "node", "ready", "pods=2"]


def test_the_filter_decides_per_target_and_changes_at_run_time(logs: Logs, output: Output) -> None:
    access = logging.getLogger("access")
    access.info("unwanted")
    assert logs.change("access=info,ztunnel::proxy=debug") == "info,access=info,ztunnel.proxy=debug"
    access.info("wanted")
    logging.getLogger("ztunnel.proxy.outbound").debug("wanted beneath")
    assert output.line().endswith("\twanted")
    assert output.line().endswith("\twanted beneath")


def test_reset_returns_to_the_filter_of_the_start(logs: Logs, output: Output) -> None:
    logs.change("debug,access=debug,ztunnel.proxy=off")
    assert logs.change("", reset=True) == "info,access=error"
    assert logs.change("warn", reset=True) == "warn,access=error"
    assert not logging.getLogger("access").isEnabledFor(logging.INFO)
    assert logging.getLogger("ztunnel.proxy").isEnabledFor(logging.WARNING)


def test_a_mistake_leaves_the_filter_as_it_was(logs: Logs) -> None:
    with pytest.raises(ValueError, match="'loud' is neither a level"):
        logs.change("access=info,loud")
    assert logs.spec == "info,access=error"


def test_a_whole_filter_replaces_the_one_before(logs: Logs) -> None:
    logs.replace("debug")
    assert logs.spec == "debug"
    assert logging.getLogger("access").isEnabledFor(logging.DEBUG)


def test_close_leaves_nothing_installed(output: Output) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    install("trace,access=debug", fd=output.write_end).close(10)
    assert (root.level, list(root.handlers)) == before
    assert logging.getLogger("access").level == logging.NOTSET


def test_a_stalled_reader_costs_lines_but_never_time(output: Output) -> None:
    logs = install("info", fd=output.write_end, capacity=10)
    try:
        log = logging.getLogger("ztunnel.flood")
        for number in range(200):
            log.info("line %d %s", number, "x" * 4096)
        assert logs.dropped > 0
        written = reported = 0
        while written + reported < 200:
            line = output.line()
            if "log lines dropped" in line:
                reported += int(line.rpartition("=")[2])
            else:
                written += 1
        assert reported == logs.dropped == 200 - written
    finally:
        logs.close(10)


def test_a_non_blocking_output_is_waited_for_by_the_writer_only(output: Output) -> None:
    os.set_blocking(output.write_end, False)
    logs = install("info", fd=output.write_end)
    try:
        for number in range(50):
            logging.getLogger("ztunnel.flood").info("line %d %s", number, "x" * 4096)
        assert [output.line().split("\t")[3].split()[1] for _ in range(50)] == [str(number) for number in range(50)]
    finally:
        logs.close(10)


def test_an_output_whose_reader_is_gone_counts_every_line(output: Output) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    logs = install("info", fd=write_end)
    logging.getLogger("ztunnel.gone").info("first")
    logs.close(10)
    os.close(write_end)
    assert logs.dropped == 1


def test_a_full_disk_is_waited_for_and_costs_no_line(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[OSError | None] = [OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "full"), None]
    write = os.write

    def write_when_there_is_room(fd: int, data: memoryview) -> int:
        answer = answers.pop(0) if answers else None
        if answer is not None:
            raise answer
        return write(fd, data[:7])  # a disk that was full takes a piece first

    monkeypatch.setattr(os, "write", write_when_there_is_room)
    monkeypatch.setattr(module, "RETRY", 0.01)
    logs = install("info", fd=output.write_end)
    for word in ("first", "second"):
        logging.getLogger("ztunnel.full").info(word)
    assert [output.line().split("\t")[3] for _ in range(2)] == ["first", "second"]
    logs.close(10)
    assert answers == []
    assert logs.dropped == 0


def test_a_disk_that_stays_full_does_not_hold_up_the_end() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    logs = install("info", fd=fd)
    writer = logs._writer._thread
    logging.getLogger("ztunnel.full").info("lost")
    logs.close(0.01)
    writer.join(10)
    assert not writer.is_alive()
    assert logs.dropped == 1
    os.close(fd)


def test_a_wrong_log_call_still_gives_a_line(logs: Logs, output: Output) -> None:
    logging.getLogger("ztunnel.wrong").info("pods", extra={"fields": ["not a mapping"]})
    assert "unprintable log record" in output.line()
