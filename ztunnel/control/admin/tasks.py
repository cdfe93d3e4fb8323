"""The tree of trio tasks as text: what the agent is doing, and where each task waits."""

from __future__ import annotations

from collections.abc import Iterator

import trio
from trio.lowlevel import Task

MAX_LINES = 20_000


def render_tasks() -> str:
    """One line a task, children beneath their parent, with the innermost place that the task waits at."""
    root = trio.lowlevel.current_root_task()
    lines: list[str] = []
    for depth, task in _walk(root):
        if len(lines) == MAX_LINES:
            lines.append("... more tasks are not shown")
            break
        lines.append(f"{'  ' * depth}{task.name}  {_place(task)}".rstrip())
    return "\n".join(lines) + "\n"


def _walk(root: Task | None) -> Iterator[tuple[int, Task]]:
    stack = [(0, root)] if root is not None else []
    while stack:
        depth, task = stack.pop()
        yield depth, task
        children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        stack.extend((depth + 1, child) for child in sorted(children, key=lambda each: each.name, reverse=True))


def _place(task: Task) -> str:
    """`file:line function` of the innermost frame outside trio itself."""
    place = ""
    for frame, line in task.iter_await_frames():
        code = frame.f_code
        if "/trio/" not in code.co_filename:
            place = f"{'/'.join(code.co_filename.rsplit('/', 2)[-2:])}:{line} {code.co_qualname}"
    return place
