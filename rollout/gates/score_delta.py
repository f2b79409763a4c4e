"""R7: numerical equivalence: the share of items whose scores differ by more than the comparator's tolerance."""

from typing import ClassVar

from rollout.gates.contract import Gate, Look, Reading, Share
from rollout.gates.rate import Rate
from rollout.gates.text import percent
from shadow.evidence import StageSums


class ScoreDelta(Gate):
    """Items with max |Δscore| over the tolerance, of all items that both versions answered, at every stage.

    F1 both ways. To certify a share below 0.1 % takes about 4000 items without one; ``advance_below`` may be wider
    than ``roll_back_above`` where that is too long to wait: then the two answer different questions.
    """

    requirement: ClassVar[str] = "R7"
    proves_harm: ClassVar[bool] = True

    advance_below: Share = 0.001
    roll_back_above: Share = 0.001

    def threshold(self) -> str:
        """Its limits, fit to print."""
        return (
            f"|Δscore| over tolerance in < {percent(self.advance_below)} of items to advance, "
            f"in > {percent(self.roll_back_above)} rolls back"
        )

    def read(self, look: Look) -> Reading:
        """Read one look."""
        return Rate(
            name="share of items over tolerance",
            counted="items",
            bad=_over,
            advance_below=self.advance_below,
            roll_back_above=self.roll_back_above,
        ).read(look)


def _over(sums: StageSums) -> tuple[int, int]:
    return sums.delta_over, sums.items
