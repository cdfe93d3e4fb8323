"""SPIFFE identities of workloads (https://github.com/spiffe/spiffe, SPIFFE-ID section 2; Istio's path form)."""

from __future__ import annotations

from typing import NamedTuple

DEFAULT_TRUST_DOMAIN = "cluster.local"
DEFAULT_SERVICE_ACCOUNT = "default"


class Identity(NamedTuple):
    """`spiffe://<trust domain>/ns/<namespace>/sa/<service account>`."""

    trust_domain: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @property
    def principal(self) -> str:
        """The form that policies compare: without the scheme."""
        return f"{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


def parse_identity(text: str) -> Identity:
    """Raises ValueError when `text` is not of Istio's SPIFFE form."""
    parts = text.split("/")
    if len(parts) != 7 or parts[0] != "spiffe:" or parts[1] or parts[3] != "ns" or parts[5] != "sa":
        raise ValueError(f"{text!r} is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>")
    return Identity(parts[2], parts[4], parts[6])
