"""The words about cells: what is sent to be run, and what comes back."""

from dataclasses import dataclass, field

from picloud_jupyter.protocol.frames import Buffer
from picloud_jupyter.protocol.shell import UploadedFile

MAX_TITLE_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Cell:
    """A notebook cell as a job's function; its argument is one dict {name: value}.

    ``source`` is as typed: magics, ``!command`` and top-level ``await`` are understood where it runs.
    ``name`` is its file name in tracebacks, ``<picloud J7>`` by the job's number where it is empty;
    ``first_line`` is the line of the notebook's cell at which ``source`` begins (2 below a magic's line).
    ``outputs`` are names that must come back: the job fails where one cannot. None = all that the
    cell assigns, as far as they can. ``max_output_bytes`` bounds each of them, 0 = no limit.
    ``files`` lie in the working folder while it runs.
    """

    source: str
    name: str = ""
    first_line: int = 1
    outputs: tuple[str, ...] | None = None
    max_output_bytes: int = 0
    files: tuple[UploadedFile, ...] = ()

    @property
    def title(self) -> str:
        r"""The cell in one line: where it stands, and how it begins.

        >>> Cell("# fit\nmodel.fit(x)", name="In[3]").title
        '%%picloud In[3]: # fit'
        """
        first = next((line.strip() for line in self.source.splitlines() if line.strip()), "")
        return f"%%picloud {self.name}".rstrip() + f": {first[:MAX_TITLE_CHARACTERS]}"


@dataclass(frozen=True, slots=True)
class CellResult:
    """What a cell leaves behind; the last expression's value is a display in the output.

    ``values`` are payloads of `serialize.payload`, one for each name. ``modules`` are names that
    stand for an imported module: import it by its own name. ``not_sent`` says for each name why it
    stays behind, ``deleted`` lists the inputs that the cell deleted. ``plain`` says why the cell ran
    without IPython ("" = with it).
    """

    values: dict[str, Buffer] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    not_sent: dict[str, str] = field(default_factory=dict)
    deleted: tuple[str, ...] = ()
    plain: str = ""


def cell_name(cell: Cell, jid: int | None) -> str:
    """Return the file name of ``cell``'s code in the tracebacks of job ``jid``.

    >>> cell_name(Cell("1/0"), 7)
    '<picloud J7>'
    """
    return cell.name or f"<picloud J{jid}>"
