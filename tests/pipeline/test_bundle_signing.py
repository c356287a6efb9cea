"""Keys: made once, the user's alone, and refused once they have expired."""

from __future__ import annotations

import base64
import datetime
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from pipeline.bundle.signing import moment, own_key_path, public_key, signing_key
from profiles.errors import ConfigError, UsageError


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


def write_key(path: Path, **changes: object) -> Path:
    record = {"algorithm": "ed25519", "private_key": base64.b64encode(b"k" * 32).decode()}
    path.write_text(json.dumps({**record, **changes}))
    return path


def test_a_key_is_made_on_first_use_for_its_owner_alone(config: Path):
    old = os.umask(0)
    try:
        first = signing_key()
    finally:
        os.umask(old)
    path = own_key_path()
    assert path.is_relative_to(config)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert signing_key().public_key == first.public_key == public_key(None)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_without_a_configured_folder_it_is_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert own_key_path() == tmp_path / ".config/edgeloop/bundle-key.json"


def test_a_signature_is_the_same_for_the_same_content(tmp_path: Path):
    key = signing_key(write_key(tmp_path / "key.json"))
    assert key.sign(b"text") == key.sign(b"text") != key.sign(b"other")


def test_an_expired_key_does_not_sign(tmp_path: Path):
    path = write_key(tmp_path / "key.json", not_after="2027-12-31")
    last = datetime.datetime(2027, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
    assert signing_key(path, last).not_after == "2027-12-31T23:59:59Z"
    with pytest.raises(UsageError, match="expired at 2027-12-31T23:59:59Z"):
        signing_key(path, last + datetime.timedelta(seconds=1))


def test_a_key_that_openssl_made_is_taken(tmp_path: Path):
    path = tmp_path / "key.pem"
    made = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(path)]
    try:
        subprocess.run(made, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl on this machine")
    assert signing_key(path).not_after is None


@pytest.mark.parametrize(
    "content",
    ["", "no key", "[]", "5", '{"private_key": "secret"}', '{"private_key": "c2VjcmV0"}',
     "-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n"],
)  # fmt: skip
def test_what_is_no_key_is_refused_without_a_word_of_it(tmp_path: Path, content: str):
    (tmp_path / "key").write_text(content)
    with pytest.raises(UsageError) as found:
        signing_key(tmp_path / "key")
    assert str(tmp_path / "key") in str(found.value)
    assert "secret" not in str(found.value) and "c2VjcmV0" not in str(found.value)


def test_all_that_is_wrong_with_a_key_s_record_is_told(tmp_path: Path):
    path = write_key(tmp_path / "key.json", algorithm="rsa", not_after="soon")
    with pytest.raises(ConfigError) as found:
        signing_key(path)
    assert len(found.value.problems) == 2


def test_a_folder_that_cannot_be_written_is_said(config: Path):
    config.write_text("a file")
    with pytest.raises(UsageError, match="no key can be made"):
        signing_key()
    with pytest.raises(UsageError, match="cannot be read"):
        signing_key(config / "key")


def test_a_public_key_is_a_text_or_a_file(tmp_path: Path):
    known = signing_key(write_key(tmp_path / "key.json")).public_key
    (tmp_path / "maker.pub").write_text(f"{known}\n")
    assert public_key(known) == public_key(str(tmp_path / "maker.pub")) == known
    for wrong in ("short", "A" * 5000, str(tmp_path), str(tmp_path / "key.json")):
        with pytest.raises(UsageError, match="is no public key"):
            public_key(wrong)
    with pytest.raises(UsageError, match="no key is trusted here"):
        public_key(None)


def test_a_date_is_its_last_second():
    assert moment("2027-12-31") == "2027-12-31T23:59:59Z"
    assert moment("2027-12-31T12:00:00Z") == "2027-12-31T12:00:00Z"
    for wrong in ("soon", "2027-13-01", "2027-12-31T12:00:00", "31.12.2027", ""):
        with pytest.raises(ValueError, match="is no date"):
            moment(wrong)
