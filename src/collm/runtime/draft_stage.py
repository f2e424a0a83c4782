"""A stage that only guesses: a draft path, for a device that sends token ids and nothing else.

To its sessions it looks like a stage with one exit and no layer of the model: what it computes on
the way to the exit are not the model's states, and nothing may be sent up or gone on from. So it
never needs the two-row rule, and always takes the faster kernels for a lone row.
"""

from __future__ import annotations

from collm.limits import DEFAULT_LIMITS, Limits
from collm.model.artifact import Artifact
from collm.model.draft_entry import DraftEntry
from collm.model.drafts import draft_of
from collm.model.manifest import ExitEntry
from collm.runtime.backend import Backend
from collm.runtime.exits import ExitHead
from collm.runtime.stage import Stage, StageSession


def closing_exit(entry: DraftEntry) -> ExitEntry:
    """What is left of a draft path's exit, a norm and a head: its adapter is in the chain."""
    return ExitEntry(
        cut=entry.cut,
        kind="identity",
        norm=entry.norm,
        head=entry.head,
        temperature=entry.temperature,
    )


class DraftStage(Stage):
    """The draft path `name`, loaded. Its one exit is named after the cut that it stands in for.

    Files of blocks and of other exits are never opened. Raises PlacementError where the artifact
    has no such path, ArtifactError where a file is missing or damaged.
    """

    def __init__(
        self,
        artifact: Artifact,
        name: str,
        *,
        threads: int = 1,
        limits: Limits = DEFAULT_LIMITS,
        backend: Backend | None = None,
    ) -> None:
        entry = draft_of(artifact.manifest, name)
        super().__init__(artifact, range(0), threads=threads, limits=limits, backend=backend)
        chain = self._backend.chain(artifact.graph(entry.graph), artifact.architecture)
        self.chains = [chain]
        self.bounds = (0, entry.cut)
        head = self._load_head(entry.head)
        self.exits = {entry.cut: ExitHead(artifact, closing_exit(entry), self._backend, head)}
        self.cut = entry.cut

    def open(self, start: int | None = None, *, exact: bool = False) -> StageSession:
        """A new session; `exact` makes no difference to what only guesses."""
        return super().open(start, exact=False)
