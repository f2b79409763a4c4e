"""The contract that every preprocess step fulfils."""

from typing import Protocol

from models.tensor import Array


class Step(Protocol):
    """Makes rows of a tensor from encoded elements, such as pictures. Built from a ``models.spec.StepSpec``.

    Building it raises ``models.errors.SettingError`` where the step's settings are wrong. It is used from one thread.
    """

    def fill(self, element: bytes, row: Array) -> None:
        """Decode one element into ``row``: an array of the tensor's datatype and of its shape for one item.

        All of ``row`` must be written.

        Raises:
            models.errors.RejectedInputError: the element is not what the step takes; its sender is told so. Any other
                error is the model's failure.
        """
