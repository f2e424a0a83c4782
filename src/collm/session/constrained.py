"""The constraint of a cloud's session: compiled while others have their turn, then followed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from collm.config import Constraint, Sampling
from collm.limits import Limits
from collm.model.artifact import Artifact
from collm.runtime.constraints import Masks, constraint_bytes
from collm.session.aside import aside

_SLICE_SECONDS: Final = 0.02


class Constrained:
    """Of one session; no more than one constraint at a time."""

    def __init__(self, artifact: Artifact, limits: Limits) -> None:
        self._artifact = artifact
        self._limits = limits
        self._masks: Masks | None = None

    def prepare(self, sampling: Sampling | None) -> Iterator[None]:
        """Have the masks of a question ready; yields while they are made.

        Raises PromptError for a constraint that cannot be kept to.
        """
        constraint = sampling.constraint if sampling is not None else None
        if constraint is None:
            self.forget()
        if constraint is None or self._is(constraint):
            return
        made = (Masks(self._artifact, one, self._limits) for one in (constraint,))
        for masks in aside(made, _SLICE_SECONDS):
            if masks is None:
                yield None
            else:
                self._masks = masks

    def masks(self, sampling: Sampling) -> Masks | None:
        """What a question with this sampling has to keep to, which was prepared."""
        if sampling.constraint is None:
            return None
        assert self._masks is not None and self._is(sampling.constraint)
        return self._masks

    @property
    def bytes(self) -> int:
        """About the memory it takes now."""
        return 0 if self._masks is None else self._bytes_of(self._masks.constraint)

    def bytes_for(self, sampling: Sampling | None) -> int:
        """About what it takes when a question with this sampling is dealt with."""
        constraint = sampling.constraint if sampling is not None else None
        return 0 if constraint is None else self._bytes_of(constraint)

    def crop(self, position: int) -> None:
        """The text ends here now; where the constrained answer has gone, so does the memory."""
        if self._masks is not None and position < self._masks.constraint.start:
            self.forget()

    def forget(self) -> None:
        """Give the memory back."""
        self._masks = None

    def _is(self, constraint: Constraint) -> bool:
        return self._masks is not None and self._masks.constraint == constraint

    def _bytes_of(self, constraint: Constraint) -> int:
        return constraint_bytes(constraint, self._artifact.architecture.vocab_size)
