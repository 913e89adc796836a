"""``%%picloud`` and ``%picloud`` as IPython sees them, and their registration."""

from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class

from picloud_jupyter import cloud
from picloud_jupyter.magics import commands
from picloud_jupyter.magics.arguments import PARSER, Request, describe, parse_line, read_request
from picloud_jupyter.magics.background import submit_in_background
from picloud_jupyter.magics.cell import (
    CellJobs,
    read_inputs,
    read_names,
    run_cell,
    run_here,
    say,
)
from picloud_jupyter.magics.completion import complete
from picloud_jupyter.magics.names import Inputs, sizes, unsendable

NAME = "picloud"


@magics_class
class PicloudMagics(Magics):
    """The magics of one IPython; what they remember is the notebook's."""

    def __init__(self, shell: Any) -> None:  # noqa: ANN401  # IPython's
        super().__init__(shell)
        self.jobs = CellJobs(shell)

    @line_cell_magic
    def picloud(self, line: str, cell: str | None = None) -> Any:  # noqa: ANN401  # shown by IPython
        """Run a cell as a job, or ask about such jobs."""
        if cell is None:
            return commands.run(self.jobs, line)
        given = {**self.jobs.defaults, **parse_line(line)}
        request = read_request(given)
        if not cell.strip():
            raise UsageError("%%picloud: the cell is empty")
        names = read_names(self.shell, cell)
        if request.local:
            return run_here(self.shell, cell)
        inputs = read_inputs(self.shell, names, request)
        if request.dry_run:
            print(_plan(given, request, inputs, names.assigned))  # noqa: T201
            return None
        if request.nowait:
            return submit_in_background(self.jobs, cell, names, inputs, request)
        run_cell(self.jobs, cell, names, inputs, request)
        return None


PicloudMagics.picloud.__doc__ = f"{PARSER.format_help()}\n{commands.HELP}"


def _plan(
    given: dict[str, Any],
    request: Request,
    inputs: Inputs,
    assigned: tuple[str, ...],
) -> str:
    """What `--dry-run` says."""
    refused = unsendable(inputs.values)
    sent = [pair for pair in sizes(inputs.values) if pair[0] not in refused]
    words = [f"{name} ({size:,} bytes)" for name, size in sent]
    words += [f"{name} (file {path})" for path, name in request.files]
    back = assigned if request.outputs is None else request.outputs
    given = {name: value for name, value in given.items() if name != "dry_run"}
    return "\n".join(
        (
            f"would run as: %%picloud {describe(given)}".rstrip(),
            f"on: {request.options.cores} x {request.options.core_type}",
            f"sends: {', '.join(words) or 'nothing'}",
            *(f"not sent: {why}" for why in refused.values()),
            f"brings back: {', '.join(back) or 'nothing'}",
        )
    )


def load(shell: Any) -> None:  # noqa: ANN401  # IPython's
    """Register the magics with ``shell`` and give it ``cloud``; twice does no more than once."""
    if not isinstance(_registered(shell), PicloudMagics):
        shell.register_magics(PicloudMagics(shell))
        for key in (f"%%{NAME}", f"%{NAME}"):
            shell.set_hook("complete_command", complete, str_key=key)
    present = shell.user_ns.get("cloud", cloud)
    if present is cloud:
        shell.user_ns["cloud"] = cloud
    else:
        say(
            f"the name cloud is yours ({type(present).__name__}) and stays; "
            "from picloud_jupyter import cloud gives ours"
        )


def unload(shell: Any) -> None:  # noqa: ANN401
    """Take the magics away; jobs go on, and ``cloud`` stays."""
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop(NAME, None)
    shell.magics_manager.registry.pop(PicloudMagics.__name__, None)
    for key in (f"%%{NAME}", f"%{NAME}"):
        shell.strdispatchers["complete_command"].strs.pop(key, None)


def _registered(shell: Any) -> object:  # noqa: ANN401
    return shell.magics_manager.registry.get(PicloudMagics.__name__)
