"""When structural findings are reported: one may be an accident of the data, and a twin's are the environment's."""

from math import log
from typing import Final

from rollout.bounds import rate_above
from rollout.gates.text import percent
from shadow.evidence import Evidence
from shadow.findings import Finding

ALPHA: Final = 1e-3  # of each kind, over the whole rollout
TOLERATED_RATE: Final = 1e-3  # of requests
LEAST: Final = 3  # occurrences, of any kind

# Schemas do not match by degrees: these have no rate that is tolerable.
SCHEMA: Final = frozenset({Finding.MISSING_OUTPUT, Finding.EXTRA_OUTPUT, Finding.DATATYPE, Finding.SHAPE})

_LOG_LEVEL: Final = -log(ALPHA)
_TOO_OFTEN: Final = rate_above(TOLERATED_RATE)
_MORE_OFTEN: Final = rate_above(0.5)


def established(finding: Finding, count: int, twin_count: int, n: int) -> bool:
    """Whether a kind of finding is reported of the candidate.

    A mismatch of the schema is, from three requests more than the twin shows. The other kinds are when there are three,
    and F1 proves that P(finding | past) > 0.1 %; where the twin shows the kind as well, F1 must also prove that of all
    the findings more than half are the candidate's.

    Promise: if the candidate shows the kind at a rate of at most 0.1 %, or no more often than a twin that shows it too,
    the kind is ever reported with probability ≤ 0.1 %, however often one looks: each of the two proofs has that promise
    (``rollout.bounds.rate_above``), and both are needed. That a schema matches is not uncertain.

    Args:
        finding: the kind.
        count: the candidate's requests that show it.
        twin_count: the twin's, of the same requests; 0 where there is no twin.
        n: requests that were looked at.

    Raises:
        ValueError: counts that cannot be.
    """
    if not (0 <= count <= n and 0 <= twin_count <= n):
        raise ValueError(f"{finding}: {count} of the candidate and {twin_count} of the twin in {n} requests")
    if finding in SCHEMA:
        return count - twin_count >= LEAST
    if count < LEAST or float(_TOO_OFTEN.log_e((count, n - count))) < _LOG_LEVEL:
        return False
    return not twin_count or float(_MORE_OFTEN.log_e((count, twin_count))) >= _LOG_LEVEL


def reported(evidence: Evidence) -> tuple[str, ...]:
    """What is structurally wrong with the candidate's answers, of the whole rollout, fit to print.

    The twin runs a share of the requests alone: what it shows is taken to be as frequent among the others.
    """
    total = evidence.total()
    n = max(total.pairs, *total.findings.values(), 1)
    share = total.twin.requests / n
    lines = []
    for finding, count in total.findings.items():
        twin_count = total.noise.findings.get(finding, 0)
        of_all = min(round(twin_count / share), n) if share else 0
        if established(Finding(finding), count, of_all, n):
            lines.append(f"{finding}: {percent(count / n)} ({count} of {n} requests)")
    return tuple(lines)
