"""A cell under the IPython of the user's own Python. Import it where a cell is to be run.

A shell that a cell changed (magics, callbacks, aliases, settings) is not used again; making one takes
5 ms, looking whether it was changed a tenth of that. Nothing is read from or written to the user's IPython profile.
"""

import asyncio
import atexit
import base64
import builtins
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Coroutine
from typing import Any

from IPython.core import page
from IPython.core.autocall import ExitAutocall
from IPython.core.compilerop import CachingCompiler
from IPython.core.display_functions import display
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import InputRejected, UsageError
from IPython.core.getipython import get_ipython
from IPython.core.history import HistoryManager
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from IPython.core.prefilter import PrefilterManager
from IPython.core.profiledir import ProfileDir
from traitlets import Type

from picloud_jupyter.protocol.displays import Display, DisplayType
from picloud_kernels.runner import cell_figures
from picloud_kernels.runner.cell_names import CellNames
from picloud_kernels.runner.cell_shell_state import ShellState
from picloud_kernels.runner.cell_source import CellSource
from picloud_kernels.runner.display_stream import flush_printed, write_display

_GUIS_WITHOUT_SCREEN = (None, "inline", "agg", "asyncio")


_kept: "tuple[CellShell, ShellState] | None" = (
    None  # the last cell's shell, if it did not change it
)


def execute(
    source: CellSource, module: types.ModuleType, names: CellNames
) -> BaseException | None:
    """Run the cell in ``module`` and return what it raised."""
    global _kept  # noqa: PLW0603  # one per interpreter, as IPython's own is
    (shell, state), _kept = _kept or _build(), None
    shell.enter(source, module, names)
    try:
        cell_figures.begin(shell)
        names.enter(vars(module))
        return _run(shell, source)
    finally:
        shell.leave()
        cell_figures.end()
        if state.is_unchanged():
            _kept = shell, state
        else:
            cell_figures.forget()


def _build() -> "tuple[CellShell, ShellState]":
    module = types.ModuleType("__main__")
    with tempfile.TemporaryDirectory() as folder:
        profile = ProfileDir(location=os.path.join(folder, "profile"))
        shell = CellShell(profile_dir=profile, user_module=module, user_ns=vars(module))
    atexit.unregister(shell.atexit_operations)  # it would keep each shell for ever
    cell_figures.connect(shell)
    shell.leave()
    return shell, ShellState(shell)


def _run(shell: "CellShell", source: CellSource) -> BaseException | None:
    try:
        transformed = shell.transform_cell(source.text)
    except Exception as exc:  # noqa: BLE001  # a transformer of the user's may raise anything
        return exc
    source.install(transformed)
    running = shell.run_cell_async(source.text, transformed_cell=transformed)
    try:
        if shell.should_run_async(source.text, transformed_cell=transformed):
            with asyncio.Runner() as runner:
                result = runner.run(running)
        else:
            result = _run_to_its_end(running)
    except BaseException as exc:  # noqa: BLE001  # a signal, or what a task raised through the loop
        return exc
    finally:
        shell.events.trigger("post_execute")
    shell.events.trigger("post_run_cell", result)
    error: BaseException | None = result.error_before_exec or result.error_in_exec
    if isinstance(error, SyntaxError) and error is result.error_before_exec:
        source.complete_error(error)
    return error


def _run_to_its_end(running: Coroutine[Any, Any, ExecutionResult]) -> ExecutionResult:
    """Run a coroutine that awaits nothing."""
    try:
        running.send(None)
    except StopIteration as stop:
        result: ExecutionResult = stop.value
        return result
    raise RuntimeError("the cell awaits something, and IPython did not see it")


class _Compiler(CachingCompiler):
    """Gives the cell's code the name and the line numbers that it has in the notebook."""

    source: CellSource
    names: CellNames

    def cache(self, transformed_code: str, number: int = 0, raw_code: str | None = None) -> str:
        if raw_code == self.source.text:
            return self.source.name
        name: str = super().cache(transformed_code, number, raw_code)
        return name

    def ast_parse(self, source: str, filename: str = "<unknown>", symbol: str = "exec") -> Any:  # noqa: ANN401
        if filename != self.source.name:
            return super().ast_parse(source, filename, symbol)
        tree = self.source.parse(super().ast_parse, source, symbol)
        self.names.note_tree(tree, filename)
        return tree


class _Publisher(DisplayPublisher):
    """Sends displays through the job's output."""

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        *_source: object,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **_ignored: object,
    ) -> None:
        self._validate_data(data, metadata)
        kind = DisplayType.UPDATE if update else DisplayType.DISPLAY_DATA
        write_display(Display(kind, _as_json(data), metadata or {}, transient or {}))

    def clear_output(self, wait: bool = False) -> None:  # noqa: FBT001, FBT002  # IPython's signature
        write_display(Display(DisplayType.CLEAR, wait=wait))


class _Hook(DisplayHook):
    """Sends the last expression's value through the job's output."""

    source: CellSource

    def __call__(self, result: object = None) -> None:
        if isinstance(result, ExitAutocall):  # `quit` without parentheses
            result()
        if result is None or self.quiet():
            return
        data, metadata = self.compute_format_data(result)
        self.fill_exec_result(result)
        if data:
            write_display(Display(DisplayType.RESULT, _as_json(data), metadata))

    def quiet(self) -> bool:
        return bool(self.semicolon_at_end_of_expression(self.source.text))


class CellShell(InteractiveShell):
    """IPython without a terminal, a history, a profile or a screen."""

    compiler_class = Type(_Compiler)  # type: ignore[mutable-override]  # traits are typed so
    displayhook_class = Type(_Hook)  # type: ignore[mutable-override]
    display_pub_class = Type(_Publisher)  # type: ignore[mutable-override]

    compile: _Compiler  # type: ignore[mutable-override]
    displayhook: _Hook  # type: ignore[mutable-override]

    def enter(self, source: CellSource, module: types.ModuleType, names: CellNames) -> None:
        """Become IPython's one shell, with ``module`` as its namespace."""
        for each in self._walk_mro():
            each._instance = self  # type: ignore[assignment]  # noqa: SLF001  # what `instance` does for one that it makes
        vars(builtins).update({"__IPYTHON__": True, "display": display})
        self.compile.source = self.displayhook.source = source
        self.compile.names = names
        self.user_module, self.user_ns = self.prepare_user_module(module, vars(module))
        sys.modules[module.__name__] = module
        self.ns_table.update(user_global=vars(module), user_local=vars(module))
        self._history.dir_hist[:] = self._history._dir_hist_default()  # noqa: SLF001  # for %cd
        self.user_ns_hidden.clear()
        self.init_user_ns()

    def leave(self) -> None:
        """Forget the cell."""
        self.remove_temporary_files()
        self.last_execution_result = None
        self.last_execution_succeeded = True
        self.displayhook.exec_result = None
        self._history.dir_hist[:] = []
        self.clear_instance()

    def __reduce__(self) -> tuple[Any, ...]:  # functions of a cell may use it
        return get_ipython, ()

    def init_ipython_dir(self, _ipython_dir: object) -> None:
        """Use no folder of the user's."""

    @property
    def db(self) -> dict[str, Any]:
        """What IPython keeps in the profile's folder, which is not there: see `_build`."""
        values: dict[str, Any] = self.__dict__.setdefault("_values", {})
        return values

    @db.setter
    def db(self, value: object) -> None:
        """Take none: IPython 8 makes one at once."""

    def init_virtualenv(self) -> None:
        """Stay: the interpreter is the user's own already."""

    def init_completer(self) -> None:
        """Complete nothing: nobody types."""
        self.Completer = None  # type: ignore[assignment]

    def init_prefilter(self) -> None:
        """Leave lines as the static transformers made them."""
        self.prefilter_manager = _NoPrefilter(shell=self, parent=self)
        self.prefilter = self.prefilter_manager.prefilter_lines

    def init_history(self) -> None:
        """Keep none."""
        self._history = self.history_manager = HistoryManager(
            shell=self, parent=self, enabled=False, hist_file=":memory:"
        )
        self.configurables.append(self.history_manager)  # type: ignore[arg-type]

    def init_user_ns(self) -> None:
        """Have functions of the cell that use ``get_ipython`` work elsewhere too."""
        super().init_user_ns()
        names = {"get_ipython": get_ipython, "_": "", "__": "", "___": ""}
        self.user_ns_hidden.update(names)
        self.user_ns.update(names)

    def init_hooks(self) -> None:
        """Show pages, as of ``name?``, as displays."""
        super().init_hooks()
        self.set_hook("show_in_pager", page.as_hook(page.display_page), 99)

    async def run_code(
        self,
        code_obj: types.CodeType,
        result: ExecutionResult | None = None,
        *,
        async_: bool = False,
    ) -> bool:
        """Return whether ``code_obj`` raised; what the cell raised is in ``result``, and not printed."""
        try:
            value = eval(code_obj, self.user_global_ns, self.user_ns)  # noqa: S307
            if async_:
                await value
        except BaseException as exc:  # noqa: BLE001  # the job's failure, SystemExit too
            if result is not None:
                result.error_in_exec = exc
            if code_obj.co_filename != self.compile.source.name:  # of a cell within the cell
                super().showtraceback(running_compiled_code=True)
            return True
        return False

    def showtraceback(self, *arguments: Any, **keywords: Any) -> None:  # noqa: ANN401
        """Print the traceback, unless it is the cell's own: that one ends the job."""
        error = sys.exc_info()[1]
        running = self.displayhook.exec_result
        is_cells = (
            running is not None
            and running.error_before_exec is error
            and running.info.raw_cell == self.compile.source.text
        )
        if not is_cells and not isinstance(error, InputRejected):
            super().showtraceback(*arguments, **keywords)

    def showsyntaxerror(self, *arguments: Any, **keywords: Any) -> None:  # noqa: ANN401
        """Print a syntax error, unless it is the cell's own."""
        error = sys.exc_info()[1]
        if not isinstance(error, SyntaxError) or error.filename != self.compile.source.name:
            super().showsyntaxerror(*arguments, **keywords)

    def enable_gui(self, gui: str | None = None) -> None:
        """Refuse what needs a screen."""
        if gui not in _GUIS_WITHOUT_SCREEN:
            raise UsageError(f"a job has no screen for {gui}; use %matplotlib inline")

    def ask_exit(self) -> None:
        """End the cell, as ``quit()`` asks."""
        raise SystemExit

    def system(self, cmd: str) -> None:
        """Run ``cmd`` in sh, through pipes: where it asks something it finds the end of its input.

        With a terminal, as IPython gives one, it would wait for ever for an answer.
        """
        command = self.var_expand(cmd, depth=1)
        flush_printed()
        environment = {
            "PYTHONUNBUFFERED": "1",
            **os.environ,
        }  # its output is seen while it runs
        code = subprocess.call(command, shell=True, stdin=subprocess.DEVNULL, env=environment)  # noqa: S602  # that is what `!` means
        self.user_ns["_exit_code"] = code if code <= 128 else 128 - code  # as IPython has it
        if code and getattr(self, "system_raise_on_error", False):  # IPython 9
            raise subprocess.CalledProcessError(code, command)

    def remove_temporary_files(self) -> None:
        """Remove what `%edit` and its like left."""
        import shutil

        for file in self.tempfiles:
            file.unlink(missing_ok=True)
        for folder in self.tempdirs:
            shutil.rmtree(folder, ignore_errors=True)


class _NoPrefilter(PrefilterManager):
    """Takes the place of IPython's prefilters, which are for people who type and cost 2 ms."""

    def init_checkers(self) -> None:
        """Know none."""
        self._checkers = []

    def init_handlers(self) -> None:
        """Know none."""
        self._handlers = {}
        self._esc_handlers = {}

    def prefilter_lines(self, lines: str, *_continue_prompt: object, **_keyword: object) -> str:
        """Return ``lines`` without the end of the last one, which IPython adds."""
        return lines.rstrip("\n")


def _as_json(data: dict[str, Any]) -> dict[str, Any]:
    """Return ``data`` with bytes, as of pictures, in base64."""
    return {
        kind: base64.b64encode(content).decode("ascii")
        if isinstance(content, bytes)
        else content
        for kind, content in data.items()
    }
