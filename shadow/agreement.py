"""What a comparison comes to: how often the answers agree where the comparator names any, and what it measures."""

from collections.abc import Sequence

from shadow.comparators import Measure, names_answers
from shadow.evidence import StageSums


def answers_named(total: StageSums, comparator: str, named: int = 0) -> bool:
    """Whether agreement of top-1 answers is a figure of these sums: where no item has one, none can agree.

    Of a user's own comparator that is told from what was compared: ``named`` items whose baseline named an answer, or
    any that agree, the twin's among them.
    """
    known = names_answers(comparator)
    return bool(named or total.agree or total.noise.agree) if known is None else known


def measure_means(total: StageSums, measures: Sequence[Measure]) -> dict[str, float]:
    """The mean of each measure over the items that it applies to, by name; those that apply to none are not there."""
    means = {each.name: total.measures[each.name].mean(each) for each in measures if each.name in total.measures}
    return {name: mean for name, mean in means.items() if mean is not None}
