"""Logging of the whole process: installed once, filtered at run time, written without ever blocking the caller.

A line is formatted where it arises and put into a bounded queue; one thread writes whatever has gathered with a
single call. When the reader of our output stalls, or its disk is full, the thread stalls, the queue fills, and further
lines are counted and dropped: traffic does not wait for a log. Once there is room again, a line says how many are
missing. (Formatting stays with the caller because a formatting thread would fight the loop for the interpreter lock, in
larger pieces.)

Which lines are wanted is `log_filter`; how they look is `log_format`.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
from queue import Empty, SimpleQueue

from ztunnel.observe.log_filter import DEFAULT_SPEC, LEVELS, LogFilter, parse_filter
from ztunnel.observe.log_format import LogFormat, formatter

QUEUE_LINES = 10_000
"""As many as Istio's ztunnel keeps."""
BATCH_LINES = 256
FULL = (errno.ENOSPC, errno.EDQUOT)
RETRY = 0.5
"""Seconds between two looks whether a full disk has room."""

_log = logging.getLogger(__name__)


class LineWriter:
    """Writes lines to a descriptor from a thread of its own; `write` never blocks and never raises."""

    def __init__(self, fd: int, *, capacity: int = QUEUE_LINES) -> None:
        self._fd = fd
        self._capacity = capacity
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._reported = 0
        self._gone = False
        self._closed = threading.Event()
        self.dropped = 0
        """Lines that were not written since the start."""
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        if self._gone or self._lines.qsize() >= self._capacity:
            self.dropped += 1
        else:
            self._lines.put(line)

    def close(self, timeout: float = 1.0) -> None:
        """Write what is queued, waiting at most `timeout` seconds for a stalled reader."""
        self._lines.put(None)
        self._thread.join(timeout)
        self._closed.set()

    def _run(self) -> None:
        running = True
        while running and not self._gone:
            batch = self._next_batch()
            running = batch[-1] is not None
            lines = [line for line in batch if line is not None]
            try:
                self._write_all("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
            except OSError:
                self._gone = True
                self.dropped += len(lines) + self._lines.qsize()
            else:
                self._report()

    def _next_batch(self) -> list[str | None]:
        """At least one line, and as many more as are there; None, if it is there, is the last."""
        batch = [self._lines.get()]
        while batch[-1] is not None and len(batch) < BATCH_LINES:
            try:
                batch.append(self._lines.get_nowait())
            except Empty:
                break
        return batch

    def _report(self) -> None:
        """Say, as a line of its own, how many lines were dropped since this was last said."""
        missing = self.dropped - self._reported
        if missing and self._lines.empty():
            self._reported = self.dropped
            _log.warning("log lines dropped: this output took them too slowly", extra={"fields": {"lines": missing}})

    def _write_all(self, data: bytes) -> None:
        """Raises OSError when the descriptor takes nothing any more: closed by its reader, or full until the end."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                poller = select.poll()
                poller.register(self._fd, select.POLLOUT)
                poller.poll()
            except OSError as error:
                if error.errno not in FULL or self._closed.wait(RETRY):
                    raise


class _QueueHandler(logging.Handler):
    def __init__(self, writer: LineWriter, form: LogFormat) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(formatter(form))

    def emit(self, record: logging.LogRecord) -> None:
        lines: list[str] | None = getattr(record, "lines", None)
        if lines is not None:  # a batch that was rendered already
            for line in lines:
                self._writer.write(line)
            return
        try:
            line = self.format(record)
        except Exception as error:  # A wrong log call must not end a connection.
            line = f"{record.name}: unprintable log record ({error!r}): {record.msg!r}"
        self._writer.write(line)


class Logs:
    """The process's logging. Made by `install`; there is one."""

    def __init__(self, handler: logging.Handler, writer: LineWriter, initial: LogFilter) -> None:
        self._handler = handler
        self._writer = writer
        self._initial = initial
        self._filter = LogFilter()
        self._set_before: tuple[str, ...] = ()
        self._previous_level = logging.getLogger().level
        self._apply(initial)

    @property
    def spec(self) -> str:
        """The filter in force."""
        return str(self._filter)

    @property
    def dropped(self) -> int:
        """Lines lost because nobody read them."""
        return self._writer.dropped

    def change(self, spec: str = "", *, reset: bool = False) -> str:
        """Add directives to the filter in force, or with `reset` to the one of the start. Returns the new filter.

        Raises ValueError, with the filter unchanged, when `spec` has a mistake.
        """
        base = self._initial if reset else self._filter
        self._apply(base.adding(spec))
        return self.spec

    def replace(self, spec: str) -> None:
        """Put a whole filter in force, e.g. the one that the control half sent to a worker. Raises ValueError."""
        self._apply(parse_filter(spec))

    def close(self, timeout: float = 1.0) -> None:
        """Take logging down, in the reverse order of `install`; waits at most `timeout` seconds for the reader."""
        root = logging.getLogger()
        root.removeHandler(self._handler)
        for target in self._set_before:
            logging.getLogger(target).setLevel(logging.NOTSET)
        root.setLevel(self._previous_level)
        self._writer.close(timeout)

    def _apply(self, wanted: LogFilter) -> None:
        for target in self._set_before:
            if target not in wanted.targets:
                logging.getLogger(target).setLevel(logging.NOTSET)
        logging.getLogger().setLevel(LEVELS[wanted.default])
        for target, level in wanted.targets.items():
            logging.getLogger(target).setLevel(LEVELS[level])
        self._set_before = tuple(wanted.targets)
        self._filter = wanted


def install(spec: str = DEFAULT_SPEC, *, form: LogFormat = "plain", fd: int = 1, capacity: int = QUEUE_LINES) -> Logs:
    """Send every logger of this process to descriptor `fd` in the given form. Raises ValueError on a bad `spec`."""
    initial = parse_filter(spec)
    writer = LineWriter(fd, capacity=capacity)
    handler = _QueueHandler(writer, form)
    logs = Logs(handler, writer, initial)
    logging.getLogger().addHandler(handler)
    return logs
