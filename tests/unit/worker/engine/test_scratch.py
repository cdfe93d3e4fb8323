"""The buffers of a loop cost nothing until they are used."""

from __future__ import annotations

from pathlib import Path

from ztunnel.worker.engine.scratch import READ_SIZE, Scratch


def resident() -> int:
    """Bytes of this process that are in memory and belong to nobody's file."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel tells no Anonymous")


def test_buffers_that_are_not_used_are_not_in_memory() -> None:
    before = resident()
    scratches = [Scratch() for _ in range(20)]
    assert resident() - before < len(scratches) * READ_SIZE


def test_views_of_frames_leave_room_for_a_header_and_do_not_overlap() -> None:
    scratch = Scratch()
    views = scratch.frame_views(16384)
    assert sum(map(len, views)) == READ_SIZE
    for number, view in enumerate(views):
        view[:] = bytes([number]) * len(view)
    assert all(set(view) == {number} for number, view in enumerate(views))
    assert scratch.frame_views(16384) is views
