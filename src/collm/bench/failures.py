"""What can go wrong in a benchmark, as one-line errors."""

from __future__ import annotations

import importlib.util

from collm.errors import CollmError, UsageError


class MissingPackage(UsageError):
    """A baseline's package is not installed."""


class UnusableSetting(UsageError):
    """A benchmark setting that cannot be run with this artifact."""


class BaselineFailed(CollmError):
    """A baseline ended or answered with an error."""


def require(*packages: str) -> None:
    """Raise MissingPackage unless all `packages` can be imported."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackage(
            f"this benchmark needs {' and '.join(missing)}; get what is missing with: "
            "pip install 'collm[bench]'"
        )
