"""Sums of evidence for the tests of gates and judge."""

from shadow.evidence import ArmSums, Histogram, LabelCells, StageSums

OK_MS, SLOW_MS = 20.0, 600.0


def stage_sums(
    *,
    requests: int = 0,
    failures: int = 0,
    batches: int = 0,
    slow_batches: int = 0,
    answers: int = 0,
    slow_answers: int = 0,
    readings: int | None = None,
    readings_over: int = 0,
    items: int = 0,
    deltas_over: int = 0,
    gained: int = 0,
    lost: int = 0,
    both: int = 0,
    neither: int = 0,
) -> StageSums:
    """The sums of a stage; what takes long takes 600 ms, the rest 20 ms; a batch is a reading of 300 or 600 MB."""
    readings = batches if readings is None else readings
    return StageSums(
        candidate=ArmSums(
            requests=requests,
            errors=failures,
            batches=batches,
            service_over_target=slow_batches,
            service_over_breach=slow_batches,
            service=_histogram(batches, slow_batches),
            answers=answers,
            answers_over_target=slow_answers,
            answers_over_breach=slow_answers,
            latency=_histogram(answers, slow_answers),
            memory_readings=readings,
            memory_over=readings_over,
            memory_max_bytes=0 if not readings else 600_000_000 if readings_over else 300_000_000,
        ),
        items=items,
        agree=items - items // 10,
        delta_over=deltas_over,
        labels=LabelCells(both=both, baseline_only=lost, candidate_only=gained, neither=neither),
    )


def healthy(n: int, *, answered: bool = False) -> StageSums:
    """A stage of ``n`` requests of one item each, all labelled, in batches of four, with nothing to complain of."""
    return stage_sums(
        requests=n,
        batches=n // 4,
        answers=n if answered else 0,
        items=n,
        both=n * 6 // 10,
        gained=n * 2 // 10,
        lost=n // 100,
        neither=n - n * 6 // 10 - n * 2 // 10 - n // 100,
    )


def _histogram(n: int, slow: int) -> Histogram:
    return Histogram.of([round(OK_MS * 1000)] * (n - slow) + [round(SLOW_MS * 1000)] * slow)
