"""Loading a bundle here, as an app does, with this project's errors."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from pipeline.bundle.loaders.edgeloop_bundle import Bundle, BundleError
from pipeline.bundle.manifest import Manifest
from profiles.errors import UsageError


def load_bundle(
    path: Path, public_keys: Sequence[str], now: datetime.datetime | None = None
) -> tuple[Bundle, Manifest]:
    """A verified bundle and its manifest.

    Args:
        path: of the zip.
        public_keys: that are trusted, in base64.
        now: the time that an expiry is compared with; the clock's unless given.

    Raises:
        UsageError: if it cannot be read, or is refused, with the reason.
    """
    try:
        bundle = Bundle.open(path, public_keys, now)
        return bundle, Manifest.model_validate(bundle.manifest)
    except BundleError as error:
        raise UsageError(f"{path} is refused: {error}", "have it made and sent again") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        (first, *_) = error.errors()
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path} is refused: its manifest's {where}: {first['msg']}") from None
