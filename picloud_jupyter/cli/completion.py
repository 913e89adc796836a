"""`picloud completion`: what a shell needs to complete our words; made from the parser itself."""

import argparse

from picloud_jupyter import __version__
from picloud_jupyter.cli.command import Command
from picloud_jupyter.cli.man_page import man_page, subparsers

_BASH = """\
_picloud() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} word= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
            -o|--output|-u|--url|-a|--api-key|-k|--api-secretkey) ((i++)) ;;
            -*) ;;
            *) word=${{COMP_WORDS[i]}}; break ;;
        esac
    done
    case $word in
{cases}
        *) COMPREPLY=($(compgen -W "{top}" -- "$current")) ;;
    esac
}}
complete -o default -F _picloud picloud
"""
# What offers nothing is completed with names of files.
_CASE = '        {name}) COMPREPLY=($(compgen -W "{words}" -- "$current")) ;;'
_CASE_OF_FILES = """\
        {name}) COMPREPLY=()
            [[ $current != -* ]] || COMPREPLY=($(compgen -W "{words}" -- "$current")) ;;"""
_FILES = ("FILE", "FILE|FOLDER", "SCRIPT")  # metavars of what is a file's name


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish", "man"))


def _run(arguments: argparse.Namespace) -> str:
    if arguments.shell == "man":
        return man_page(arguments.parser, __version__)
    return {"bash": bash, "zsh": zsh, "fish": fish}[arguments.shell](arguments.parser)


def bash(parser: argparse.ArgumentParser) -> str:
    """Return the completion for bash."""
    cases = "\n".join(
        (_CASE_OF_FILES if _takes_file(sub) else _CASE).format(
            name=name, words=" ".join(_words(sub))
        )
        for name, sub, _ in subparsers(parser)
    )
    top = " ".join([*(name for name, _, _ in subparsers(parser)), *_options(parser)])
    return _BASH.format(cases=cases, top=top).rstrip()


def zsh(parser: argparse.ArgumentParser) -> str:
    """Return the completion for zsh, through its bash compatibility."""
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash(parser)}"


def fish(parser: argparse.ArgumentParser) -> str:
    """Return the completion for fish."""
    lines = ["complete -c picloud -f"]
    for name, sub, text in subparsers(parser):
        lines.append(
            f"complete -c picloud -n __fish_use_subcommand -a {name} -d {_quoted(text)}"
        )
        lines += [
            f"complete -c picloud -n '__fish_seen_subcommand_from {name}' -a {_quoted(word)}"
            for word in _words(sub)
        ]
        if _takes_file(sub):
            lines.append(f"complete -c picloud -n '__fish_seen_subcommand_from {name}' -F")
    return "\n".join(lines)


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [word for action in parser._actions for word in action.option_strings]  # noqa: SLF001


def _words(parser: argparse.ArgumentParser) -> list[str]:
    values = [
        str(choice)
        for action in parser._actions  # noqa: SLF001
        if not action.option_strings
        for choice in action.choices or ()
    ]
    return [*values, *_options(parser)]


def _takes_file(parser: argparse.ArgumentParser) -> bool:
    return any(
        not action.option_strings and action.metavar in _FILES
        for action in parser._actions  # noqa: SLF001
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


COMMAND = Command(
    "completion",
    "print what your shell needs to complete words of picloud, or the manual page",
    (
        'eval "$(picloud completion bash)"                                     in ~/.bashrc',
        'eval "$(picloud completion zsh)"                                      in ~/.zshrc',
        "picloud completion fish > ~/.config/fish/completions/picloud.fish",
        "picloud completion man > ~/.local/share/man/man1/picloud.1",
    ),
    _run,
    _configure,
)
