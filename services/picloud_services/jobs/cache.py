"""_cache=True: an earlier result of the same user for the same function, arguments, code, folder and environment."""

import functools
import hashlib
from collections import Counter

from picloud_jupyter.protocol.jobs import HostPython, JobSpec
from picloud_services.accounts.quotas import Standing
from picloud_services.base import codec
from picloud_services.base.sql import Statement, Transaction
from picloud_services.blobs.store import BlobRef
from picloud_services.environments.identity import environment_id
from picloud_services.jobs.counting import add_to_user
from picloud_services.jobs.links import blobs_of, link_blob
from picloud_services.jobs.queries import ResultReader
from picloud_services.jobs.store import PartRows
from picloud_services.jobs.sums import sum_of
from picloud_services.jobs.words import Cached, Payload

_FIND = Statement(
    """SELECT j.jid, j.result FROM cache_keys c JOIN jobs j ON j.jid = c.jid
    WHERE c.user_id = :user_id AND c.digest = :digest AND j.status = 'done'
      AND j.result IS NOT NULL ORDER BY c.jid DESC LIMIT 1"""
)
_COPY = Statement(
    """INSERT INTO results (user_id, batch, first_jid, attempt, node, first_position, items, data,
      data_sum, links, bytes, files, seen_seconds, finished_at)
    SELECT user_id, CAST(:batch AS BIGINT), CAST(:jid AS BIGINT), attempt, node, 0,
      CAST(:items AS TEXT), :data, CAST(:sum AS BIGINT), 1, CAST(:bytes AS BIGINT), CAST(:files AS BIGINT),
      (SELECT seen_seconds FROM sequences), CAST(:at AS DOUBLE PRECISION)
    FROM results WHERE result = :source RETURNING result"""
)
_FINISH = Statement("UPDATE jobs SET result = :result, finished_at = :at WHERE jid = :jid")


@functools.lru_cache(maxsize=256)
def environment_of(host_python: HostPython) -> str:
    """Return the environment id of a Python installation."""
    return environment_id(host_python)


def cache_digest(spec: JobSpec, function_digest: str, arguments: Payload) -> str:
    """Return what must be equal for a result to be used again."""
    if isinstance(arguments, BlobRef):
        content = arguments.digest or arguments.blob
    else:
        content = hashlib.sha256(arguments).hexdigest()
    environment = environment_of(spec.host_python)
    return codec.digest(
        [
            *(function_digest, content, spec.code_version, environment),
            *(spec.folder, spec.variables, spec.volumes),
            *((spec.secrets, spec.secret_versions) if spec.secrets else ()),
        ]
    )


def find_cached(
    tx: Transaction, user_id: int, digest: str, reader: ResultReader
) -> Cached | None:
    """Return the newest earlier job that may answer; neighbours share a record of ``reader``."""
    row = tx.one(_FIND, user_id=user_id, digest=digest)
    if row is None:
        return None
    record = reader.row(row[1])
    if record is None:
        return None
    return Cached(row[0], record.item(row[0]), record.body(row[0]), row[1])


def take_cached(tx: Transaction, cached: Cached, rows: PartRows, jid: int) -> Standing | None:
    """Give a copy of the earlier result to ``jid`` of ``rows``, which was entered as done.

    Returns what that makes of the user's disk use.
    """
    item = list(cached.item)
    extra = dict(item[6] or {})
    extra["cached_from"] = cached.jid
    item[6] = extra
    size = len(cached.body)
    files = 0
    for ref in blobs_of(extra):
        link_blob(tx, ref)
        size += ref.size_bytes
        files += 1
    items = codec.encode([item])
    result = tx.value(
        _COPY,
        source=cached.result,
        batch=rows.batch,
        jid=jid,
        items=items.decode(),
        data=cached.body or None,
        sum=sum_of(cached.body or b"", items),
        bytes=size,
        files=files,
        at=rows.at,
    )
    tx.run(_FINISH, jid=jid, result=result, at=rows.at)
    return add_to_user(tx, rows.user_id, Counter(), disk_bytes=size)
