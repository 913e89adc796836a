"""Keys of running jobs: made from the server's secret, checked against live leases, never stored."""

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

PREFIX = "pcj_"
MAC_DIGITS = 32
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class JobIdentity:
    """Whom a job's key speaks for."""

    user_id: int
    jid: int
    attempt: int
    lease: str


class KeyRing:
    """Makes and checks keys with one secret. Pure but for `load`."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def __repr__(self) -> str:
        return "KeyRing(...)"

    @classmethod
    def load(cls, home: Path) -> "KeyRing":
        """Return the key ring of the service at ``home``; its secret is made at the first call.

        Raises:
            ValueError: the file with the secret is damaged.
            PermissionError: others than its owner may read it.
        """
        path = home / "secret"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return cls(_create_secret(path))
        with open(descriptor, "rb") as file:
            if os.fstat(descriptor).st_mode & 0o077:
                raise PermissionError(
                    f"{path} may be read by others; run `chmod 600 {path}` and start again"
                )
            secret = file.read(SECRET_BYTES + 1)
        if len(secret) != SECRET_BYTES:
            raise ValueError(
                f"{path} is damaged; remove it and start again (keys of running jobs end with it)"
            )
        return cls(secret)

    def lease_key(self, lease: str) -> str:
        """Return the key, in hex, with which the runner under ``lease`` makes its jobs' keys."""
        return hmac.digest(self._secret, f"lease:{lease}".encode(), "sha256").hex()

    def check(self, key: str) -> JobIdentity | None:
        """Return whom ``key`` speaks for, or None if it is not one of ours.

        Whether the lease still lives is the caller's to ask.
        """
        if not key.startswith(PREFIX) or len(key) > 200 or not key.isascii():
            return None
        claim, _, mac = key.removeprefix(PREFIX).rpartition(".")
        parts = claim.split(".")
        if len(parts) != 4 or not all(part.isdecimal() for part in parts[:3]):
            return None
        user_id, jid, attempt, lease = parts
        if not hmac.compare_digest(mac, _mac(self.lease_key(lease), claim)):
            return None
        return JobIdentity(int(user_id), int(jid), int(attempt), lease)

    def upload_id(self, user_id: int) -> str:
        """Return a fresh id for an upload of ``user_id``; it proves itself, without a row."""
        fresh = secrets.token_hex(8)
        return fresh + self._upload_mac(fresh, user_id)

    def owns_upload(self, user_id: int, upload: str) -> bool:
        """Return whether ``upload`` was given to ``user_id``."""
        if len(upload) != 32 or not upload.isascii():
            return False
        return hmac.compare_digest(upload[16:], self._upload_mac(upload[:16], user_id))

    def _upload_mac(self, fresh: str, user_id: int) -> str:
        claim = f"upload:{user_id}:{fresh}".encode()
        return hmac.new(self._secret, claim, hashlib.sha256).hexdigest()[:16]


def make_job_key(lease_key: str, identity: JobIdentity) -> str:
    """Return the key of one running job."""
    claim = f"{identity.user_id}.{identity.jid}.{identity.attempt}.{identity.lease}"
    return f"{PREFIX}{claim}.{_mac(lease_key, claim)}"


def _mac(lease_key: str, claim: str) -> str:
    return hmac.new(lease_key.encode(), claim.encode(), hashlib.sha256).hexdigest()[:MAC_DIGITS]


def _create_secret(path: Path) -> bytes:
    secret = secrets.token_bytes(SECRET_BYTES)
    fresh = path.with_name("secret.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(descriptor)
    fresh.rename(path)
    return secret
