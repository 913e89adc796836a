"""Keys of jobs and ids of uploads prove themselves."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_services.accounts.keys import JobIdentity, KeyRing, make_job_key

RING = KeyRing(b"s" * 32)
ANN = JobIdentity(1000, 42, 2, "0123456789abcdef")


def test_key_when_made_as_documented_then_accepted():
    lease_key = hmac.new(b"s" * 32, b"lease:0123456789abcdef", hashlib.sha256).hexdigest()
    claim = "1000.42.2.0123456789abcdef"
    mac = hmac.new(lease_key.encode(), claim.encode(), hashlib.sha256).hexdigest()[:32]
    assert RING.lease_key(ANN.lease) == lease_key
    assert make_job_key(lease_key, ANN) == f"pcj_{claim}.{mac}"
    assert RING.check(f"pcj_{claim}.{mac}") == ANN


@pytest.mark.parametrize(
    "changed",
    [
        lambda key: key.replace("1000", "0"),
        lambda key: key.replace(".42.", ".43."),
        lambda key: key.replace(".2.", ".3."),
        lambda key: key.replace("abcdef", "abcdee"),
        lambda key: key[:-1],
        lambda key: key + "0",
        lambda key: key.removeprefix("pcj_"),
        lambda key: key.replace("42", "٤٢"),
        lambda _key: "pcj_" + "." * 300,
    ],
)
def test_key_when_changed_then_refused(changed):
    key = make_job_key(RING.lease_key(ANN.lease), ANN)
    assert RING.check(key) == ANN
    assert RING.check(changed(key)) is None


@given(st.text(max_size=80))
def test_key_when_arbitrary_text_then_refused(text):
    assert RING.check(text) is None
    assert RING.check("pcj_" + text) is None


def test_key_when_of_another_service_then_refused():
    other = KeyRing(b"t" * 32)
    assert RING.check(make_job_key(other.lease_key(ANN.lease), ANN)) is None


def test_upload_when_given_then_its_owner_alone_owns_it():
    upload = RING.upload_id(1000)
    assert RING.owns_upload(1000, upload)
    assert not RING.owns_upload(1001, upload)
    assert not RING.owns_upload(1000, upload[:-1] + ("0" if upload[-1] != "0" else "1"))
    assert not RING.owns_upload(1000, "")


def test_secret_when_made_then_private_and_the_same_next_time(tmp_path):
    key = make_job_key(KeyRing.load(tmp_path).lease_key(ANN.lease), ANN)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert KeyRing.load(tmp_path).check(key) == ANN


def test_secret_when_readable_by_others_or_damaged_then_refused_in_words(tmp_path):
    KeyRing.load(tmp_path)
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(PermissionError, match="chmod 600"):
        KeyRing.load(tmp_path)
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(ValueError, match="damaged"):
        KeyRing.load(tmp_path)


def test_ring_when_printed_then_no_secret():
    assert "s" * 5 not in repr(RING)
