"""The gates, by the names that policies call them."""

from typing import Final

from rollout.gates.compliance import Compliance
from rollout.gates.compliance_uplift import ComplianceUplift
from rollout.gates.contract import Gate
from rollout.gates.error_rate import ErrorRate
from rollout.gates.latency import Latency
from rollout.gates.memory import Memory
from rollout.gates.score_delta import ScoreDelta

GATES: Final[dict[str, type[Gate]]] = {
    "error_rate": ErrorRate,
    "latency": Latency,
    "memory": Memory,
    "score_delta": ScoreDelta,
    "compliance": Compliance,
    "compliance_uplift": ComplianceUplift,
}
