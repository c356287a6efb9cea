"""Keys: made on first use, kept by the user alone, and refused once they have expired."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator

from profiles.config import Config, parse
from profiles.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_KEY = "bundle-key.json"
_PUBLIC_BYTES = 32
_MOMENT = "%Y-%m-%dT%H:%M:%SZ"


def moment(text: str) -> str:
    """A time in UTC as manifests write it; a date alone is its last second.

    Raises:
        ValueError: if it is none.
    """
    whole = f"{text}T23:59:59Z" if re.fullmatch(r"\d{4}-\d\d-\d\d", text) else text
    try:
        return datetime.datetime.strptime(whole, _MOMENT).strftime(_MOMENT)
    except ValueError:
        raise ValueError(f"{text!r} is no date: write 2027-12-31 or 2027-12-31T12:00:00Z") from None


def _now(now: datetime.datetime | None) -> str:
    return (now or datetime.datetime.now()).astimezone(datetime.UTC).strftime(_MOMENT)


class KeyRecord(Config):
    """A key's file."""

    algorithm: Literal["ed25519"] = "ed25519"
    private_key: str
    not_after: Annotated[str, AfterValidator(moment)] | None = None


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, and until when it may be used.

    Args:
        not_after: in UTC, or ``None`` for ever.
    """

    _private: Ed25519PrivateKey
    not_after: str | None

    @property
    def public_key(self) -> str:
        """What apps trust: base64 of its 32 bytes."""
        return base64.b64encode(self._private.public_key().public_bytes_raw()).decode()

    def sign(self, content: bytes) -> bytes:
        """The 64 bytes of an Ed25519 signature; the same for the same content.

        *Source*: RFC 8032.
        """
        return self._private.sign(content)

    def until(self, not_after: str, now: datetime.datetime | None = None) -> SigningKey:
        """The same key for what ends earlier than it may.

        Raises:
            UsageError: if that lies in the past.
        """
        if _now(now) > not_after:
            raise UsageError(f"{not_after} lies in the past: loaders would refuse it")
        return replace(self, not_after=min(not_after, self.not_after or not_after))


def own_key_path() -> Path:
    """Where the user's own key is."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "edgeloop" / _KEY


def signing_key(path: Path | None = None, now: datetime.datetime | None = None) -> SigningKey:
    """The key in a file, or the user's own, made where there is none.

    Args:
        path: of a key's record, or of a private key in PEM as OpenSSL writes it.
        now: the time that an expiry is compared with; the clock's unless given.

    Raises:
        UsageError: if it cannot be read, is no Ed25519 key, or has expired.
    """
    if path is None:
        path = own_key_path()
        if not path.exists():
            _make(path)
    key = _read(path)
    if key.not_after is not None and _now(now) > key.not_after:
        raise UsageError(
            f"the key in {path} expired at {key.not_after}", "sign with another: --key"
        )
    return key


def public_key(given: str | None) -> str:
    """A public key as given: its text, a file with it, or the user's own where none is.

    Raises:
        UsageError: if there is none.
    """
    if given is not None:
        text = given if _is_public(given) else _text_of(Path(given))
        if not _is_public(text):
            raise UsageError(f"{given} is no public key", "base64 of its 32 bytes, or a file of it")
        return text
    path = own_key_path()
    if not path.exists():
        raise UsageError(
            "whose bundle is it? no key is trusted here", "name one: --public-key BASE64"
        )
    return _read(path).public_key


def _is_public(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == _PUBLIC_BYTES
    except ValueError:
        return False


def _text_of(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _make(path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()).decode()
    record = KeyRecord(private_key=private).model_dump()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
            aside = Path(folder) / path.name
            handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as stream:
                json.dump(record, stream, indent=2)
                stream.flush()
                os.fsync(stream.fileno())
            # Never over a key that another process has made meanwhile.
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
    except OSError as error:
        raise UsageError(f"no key can be made in {path}: {error.strerror}", "--key FILE") from error


def _read(path: Path) -> SigningKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"the key {path} cannot be read: {error.strerror}") from error
    try:
        if content.startswith(b"-----BEGIN"):
            private, not_after = load_pem_private_key(content, password=None), None
            if not isinstance(private, Ed25519PrivateKey):
                raise ValueError("is of another kind")
            return SigningKey(private, not_after)
        record = parse(KeyRecord, json.loads(content), str(path))
        raw = base64.b64decode(record.private_key, validate=True)
        return SigningKey(Ed25519PrivateKey.from_private_bytes(raw), record.not_after)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Its content is a secret: no word of it, nor of what a library says about it.
        raise UsageError(
            f"{path} holds no Ed25519 key", "openssl genpkey -algorithm ed25519 -out FILE makes one"
        ) from None
