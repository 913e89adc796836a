"""`cloud.why`: what happened to a job."""

from picloud_jupyter.cloud.jid_ranges import read_jids
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.codec import from_wire
from picloud_jupyter.protocol.story import Story


def why(jid: object) -> Story:
    """Return what happened to a job so far, step by step; printed, it reads as text.

    It works for jobs that wait, run, or have ended; `Story.not_known` says what is kept no more.

    Raises:
        TypeError: ``jid`` is not one job.
        NotFound: the job is not yours, or was deleted.
    """
    ranges = read_jids(jid)
    if len(ranges) != 1 or ranges[0][0] != ranges[0][1]:
        raise TypeError(f"why tells of one job, got {jid!r}")
    return from_wire(Story, session().client.get(routes.WHY.format(jid=ranges[0][0])))
