"""Criteria by their names, with what the artifact and files bring to them."""

from __future__ import annotations

from pathlib import Path

from collm.errors import ArtifactError
from collm.model.artifact import Artifact
from collm.model.policy_file import read_policy
from collm.policy.criterion_spec import Available, parse_criterion
from collm.policy.learned import learned_criterion, split_knob
from collm.policy.observation import Criterion


def load_criterion(spec: str, artifact: Artifact) -> Criterion:
    """The criterion that `spec` names (its grammar: `policy.criterion_spec`).

    `risk` takes the thresholds that `collm calibrate` stored in the manifest, `learned:PATH` a
    file that `collm tune-policy` wrote for this artifact. Raises PromptError, ArtifactError.
    """

    def learned(argument: str) -> Criterion:
        path, bias = split_knob(argument)
        file = read_policy(Path(path), artifact)
        name = f"learned:{argument}"
        try:
            return learned_criterion(
                file.kind, file.exits, file.features, file.tensors, name=name, bias=bias
            )
        except ValueError as error:
            raise ArtifactError(f"{path}: {error}") from None

    thresholds = {e.cut: e.threshold for e in artifact.manifest.exits if e.calibration}
    return parse_criterion(spec, Available(thresholds=thresholds, learned=learned))
