"""Secrets: values that jobs get as environment variables, and that are shown nowhere.

``cloud.secret.set("TOKEN")`` asks for the value; ``cloud.call(f, _secrets=["TOKEN"])`` gives it to a job
as ``os.environ["TOKEN"]``.
"""

import sys
import warnings
from collections.abc import Sequence

from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.codec import from_wire
from picloud_jupyter.protocol.secrets import SecretLine, check_name, check_value

__all__ = ["SecretLine", "delete", "list", "set"]


def set(name: str, *, value: str | None = None) -> SecretLine:  # noqa: A001  # as `picloud secret set`
    """Keep a secret, which replaces one of the same name; return what is shown of it.

    Asks for the value without showing it. ``value`` is for programs that have it from elsewhere; in
    a notebook it would stay in the cell and in the history, of which you are warned.

    Raises:
        TypeError, ValueError: the name or the value cannot be a secret's.
        EOFError: nobody can be asked: there is no terminal and no notebook.
    """
    check_name(name)
    value = _ask(name) if value is None else value
    data = check_value(value).encode()
    if _is_in_cell(value):
        warnings.warn(
            f"the value of {name} stands in this cell and in IPython's history; delete it there, and "
            f"leave value= out: cloud.secret.set({name!r}) asks for it",
            stacklevel=2,
        )
    answer = session().client.put_bytes(_path(name), (data,))
    return from_wire(SecretLine, answer["secret"])


def list() -> Sequence[SecretLine]:  # noqa: A001
    """Return name, version and time of each of your secrets; values are never given back."""
    answer = session().client.get(routes.SECRETS)
    return [from_wire(SecretLine, line) for line in answer["secrets"]]


def delete(name: str) -> None:
    """Forget a secret. Jobs that run keep it; those that have not begun end as `secret_missing`.

    Raises:
        NotFound: you have none of that name.
    """
    session().client.delete(_path(check_name(name)))


def _path(name: str) -> str:
    return routes.SECRET.format(name=name)


def _ask(name: str) -> str:
    import getpass

    try:
        # In a kernel it is IPython's, which asks the notebook.
        return getpass.getpass(f"{name}: ")
    except (EOFError, NotImplementedError) as exc:
        raise EOFError(
            f"nobody can be asked for {name} here: run `picloud secret set {name}`, which also reads "
            "standard input, or give value="
        ) from exc


def _is_in_cell(value: str) -> bool:
    """Whether the value is written out in the cell that runs."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    cells = shell.user_ns.get("In") if shell is not None else None
    return bool(value and cells and value in str(cells[-1]))
