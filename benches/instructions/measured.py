"""The process that callgrind looks at: does every operation N times and 2N times, and nothing else in between.

What is counted is marked by a function of the interpreter that nothing else calls: `@=` goes through
PyNumber_InPlaceMatrixMultiply, where callgrind starts and stops counting and writes what it has counted. So no part
of this needs to be compiled, and nothing is counted of what prepares an operation.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Sequence
from typing import Any

from benches.instructions.operations import CLAIMS, HOT, Operation, Repeat

WARM_UP = 16
"""Repetitions before; CPython specializes code after 8."""


class Gauge:
    """`gauge @= n` runs the function n times where callgrind counts."""

    def __init__(self, repeat: Repeat) -> None:
        self._repeat = repeat

    def __imatmul__(self, times: int) -> Gauge:
        self._repeat(times)
        return self


def measure(operations: Sequence[Operation]) -> list[tuple[str, int]]:
    """Two dumps for each operation, in their order; returns name and N of each."""
    done = []
    for name, prepare, times in operations:
        with prepare() as repeat:
            repeat(min(WARM_UP, times))
            gauge: Any = Gauge(repeat)
            gauge @= times
            gauge @= 2 * times
        done.append((name, times))
        gc.collect()
    return done


if __name__ == "__main__":
    gc.disable()
    operations = {
        "hot": HOT,
        "scale": [operation for claim in CLAIMS for operation in (claim.few, claim.many)],
    }[sys.argv[1]]
    print(json.dumps(measure(operations)))
