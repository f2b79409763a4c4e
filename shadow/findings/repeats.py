"""The same answer to different questions, told within a bounded memory."""

from hashlib import blake2b
from typing import Final

import numpy as np

from models.tensor import Array
from shadow.findings.constants import differ, rich
from shadow.findings.numeric import Float

ANSWERS: Final = 256  # that are remembered: the last given ones, each once
QUESTIONS: Final = 3  # that one answer was given to, before it is a finding

_VALUES: Final = 1024  # of an answer, that are compared bit for bit
_SKETCHED: Final = 16  # of these, the baseline's are kept


class Repeats:
    """Remembers one output's last answers: ``add`` says when one has answered three different questions.

    Questions are told apart by what the baseline answered: beyond noise, and pairwise, so that a picture which many
    clients send is one question. Of a request the first row is looked at (of a model without batches, all), its first
    1,024 values. Only answers rich in bits count (``shadow.findings.constants.rich``): a saturated score is 0 or 1 for
    many pictures by right, and so is any single number for a few; a model that answers one shows nothing here.

    Holds at most 256 answers of a hash and three sketches of 16 values each, some 200 KB. Deterministic: the hash is
    the same in every process.
    """

    def __init__(self, datatype: Float) -> None:
        self._datatype = datatype
        # Hash of an answer → what the baseline said, nothing of answers that repeat by right; oldest first.
        self._questions: dict[bytes, list[Array]] = {}

    def __len__(self) -> int:
        return len(self._questions)

    def add(self, before: Array, after: Array, rows: int) -> bool:
        """Note the answers of a request; whether the candidate's has answered three different questions by now."""
        mine, sketch = _head(after, rows), _head(before, rows)
        sketch = sketch[:: -(-sketch.size // _SKETCHED)].copy()
        key = blake2b(mine.tobytes(), digest_size=16).digest()
        questions = self._questions.pop(key, None)
        if questions is None:
            self._questions[key] = [sketch]
            if len(self._questions) > ANSWERS:
                del self._questions[next(iter(self._questions))]
            return False
        self._questions[key] = questions
        if 0 < len(questions) < QUESTIONS and self._is_new(sketch, questions):
            questions.append(sketch)
            if len(questions) == QUESTIONS and not rich(mine, self._datatype):
                questions.clear()
        return len(questions) == QUESTIONS

    @np.errstate(all="ignore")
    def _is_new(self, sketch: Array, questions: list[Array]) -> bool:
        return all(sketch.shape == other.shape and differ(sketch, other, self._datatype) for other in questions)


def _head(array: Array, rows: int) -> Array:
    first = array[:1] if array.shape[:1] == (rows,) else array
    return first.reshape(-1)[:_VALUES]
