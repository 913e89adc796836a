"""`cloud.call`: one function, one job."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from picloud_jupyter.cloud.functions import Runnable, check_arguments
from picloud_jupyter.cloud.handles import Jid
from picloud_jupyter.cloud.keywords import Options, take_options
from picloud_jupyter.cloud.session import Session, session
from picloud_jupyter.cloud.settings import config
from picloud_jupyter.cloud.submission import Submission, dump_checked_function, prepare, submit
from picloud_jupyter.cloud.uploads import check_size, place
from picloud_jupyter.cloud.watcher import run_callbacks
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.frames import Buffer
from picloud_jupyter.serialize.payload import dump_call
from picloud_jupyter.serialize.pickler import References


def call(func: Callable[..., object], *args: Any, **kwargs: Any) -> Jid:  # noqa: ANN401  # the user's
    """Return the id of a new job that runs ``func(*args, **kwargs)``, safely stored.

    Keywords that begin with an underscore say how it runs (docs/guide.md has them all); the others go
    to the function.

    Raises:
        TypeError: ``func`` cannot be called, or not with these arguments; or a keyword is wrong.
        ValueError: the value of a keyword is outside what is allowed.
        pickle.PicklingError: something cannot be sent; named by path, type and size.
        PayloadTooLarge: function or arguments are above their guard.
        CloudException: the control plane refused the job; the class says how.
    """
    if not callable(func):
        raise TypeError(f"the first argument must be callable, got {func!r}")
    options = take_options(kwargs, func=func, environ=os.environ)
    check_arguments(func, args, kwargs)
    return submit_call(func, args, kwargs, options)


def submit_call(
    func: Runnable,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    options: Options,
    *,
    modules: Iterable[str] = (),
) -> Jid:
    """Return the id of a new job that runs ``func`` with these arguments; errors as for `call`.

    ``modules`` are those that ``func`` imports without mentioning them in its pickle.
    """
    references = References(modules=set(modules))
    function = dump_checked_function(func, references)
    limit = config.max_transmit_data
    arguments = dump_call(
        args,
        kwargs,
        fast=options.fast_serialization,
        references=references,
        file_limit_bytes=limit,
    )
    check_size(arguments, limit, "the arguments")
    current = session()
    submission = prepare(current, func, function, references, options)
    jid = send_call(current, submission, arguments)
    if options.callbacks or options.callbacks_on_error:
        run_callbacks(jid, options.callbacks, options.callbacks_on_error)
    return jid


def send_call(current: Session, submission: Submission, arguments: Sequence[Buffer]) -> Jid:
    """Return the id of the job of ``submission``, committed; ``arguments`` are those of `dump_call`.

    Raises:
        CloudException: the control plane refused the job; the class says how.
    """
    reference, parts = place(current, arguments)
    header = submission.header("arguments", reference)
    answer = submit(current, routes.CALLS, header, (*submission.function_parts, *parts))
    return Jid(answer["jid"])
