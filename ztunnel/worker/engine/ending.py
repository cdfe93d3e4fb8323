"""How a carried connection ended; every endpoint reports one of these, once."""

from __future__ import annotations

from typing import NamedTuple


class Ending(NamedTuple):
    """`error` is empty when both directions ended with FIN; `flag` is Istio's response flag."""

    error: str
    flag: str = "CONNECT"

    @property
    def ok(self) -> bool:
        return not self.error


FINISHED = Ending("", "-")
RESET_BY_APPLICATION = Ending("the application's side reset the connection")
RESET_BY_PEER = Ending("the tunnel's peer reset the stream")
