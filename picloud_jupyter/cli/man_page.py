"""The manual page of `picloud`, made from the parser itself. Pure."""

import argparse
from collections.abc import Iterator


def man_page(parser: argparse.ArgumentParser, version: str) -> str:
    """Return the page in the words of man(7)."""
    return "\n".join(_lines(parser, version))


def _lines(parser: argparse.ArgumentParser, version: str) -> Iterator[str]:
    yield f'.TH PICLOUD 1 "" "picloud {_escaped(version)}" "User Commands"'
    yield ".SH NAME"
    yield "picloud \\- run Python functions and commands as durable jobs in containers"
    yield ".SH SYNOPSIS"
    yield ".B picloud\n[\\fIOPTION\\fR]... \\fICOMMAND\\fR [\\fIARGUMENT\\fR]..."
    yield ".SH OPTIONS"
    yield from _options(parser)
    yield ".SH COMMANDS"
    for name, sub, text in subparsers(parser):
        if not text:  # an alias
            continue
        yield f".SS picloud {_escaped(name)}"
        yield _escaped(sub.description or text)
        yield from _options(sub)
        if sub.epilog:
            yield ".PP\n.nf"
            yield _escaped(sub.epilog)
            yield ".fi"
    yield ".SH EXIT STATUS"
    yield "0 done; 1 something unexpected; 2 wrong usage; 3 the service or the job said no, in words on stderr;"
    yield "130 interrupted."


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for names, value, text in _described(parser):
        yield ".TP"
        yield f"\\fB{_escaped(', '.join(names))}\\fR" + (
            f" \\fI{_escaped(value)}\\fR" if value else ""
        )
        yield _escaped(text)


def _escaped(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(
        f"\\&{line}" if line.startswith((".", "'")) else line for line in escaped.splitlines()
    )


def _described(parser: argparse.ArgumentParser) -> Iterator[tuple[list[str], str, str]]:
    """Yield (names, value, help) of each argument that is for people."""
    for action in parser._actions:  # noqa: SLF001  # argparse has no public way
        if isinstance(action, argparse._SubParsersAction) or action.help is argparse.SUPPRESS:  # noqa: SLF001
            continue
        names = list(action.option_strings) or [str(action.metavar or action.dest)]
        choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
        takes = bool(action.option_strings) and action.nargs != 0
        value = str(choices or action.metavar or action.dest.upper()) if takes else ""
        yield names, value, str(action.help or choices)


def subparsers(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Yield (name, parser, help) of each subcommand; an alias has no help."""
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001
            for name, sub in action.choices.items():
                yield name, sub, helps.get(name, "")
