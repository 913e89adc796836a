"""What the command line prints, without a service."""

import argparse
import datetime
import subprocess
import sys

import pytest

from picloud_jupyter.cli import backup
from picloud_jupyter.cli.command import jid_type
from picloud_jupyter.cli.completion import bash, fish, zsh
from picloud_jupyter.cli.doctor import describe_trials
from picloud_jupyter.cli.exit_codes import DONE, REFUSED, WRONG_USAGE
from picloud_jupyter.cli.info import describe
from picloud_jupyter.cli.output import (
    NotPrintableError,
    Table,
    Text,
    format_bytes,
    to_json,
    to_text,
)
from picloud_jupyter.cli.quota_words import size_type
from picloud_jupyter.cli.result import as_bytes
from picloud_jupyter.cli.run import commands, make_parser, run
from picloud_jupyter.cli.top import cpu_percent, render


def test_tables_are_padded_to_the_widest_cell_plus_four():
    table = Table(("jid", "status"), [(5, "done"), (100000, "error\nmore")])
    assert to_text(table, header=True).splitlines() == [
        "jid       status",
        "5         done",
        "100000    error ...",
    ]
    assert to_text(table, header=False).splitlines()[0] == "5         done"
    assert (
        to_json(table)
        == '[{"jid": 5, "status": "done"}, {"jid": 100000, "status": "error\\nmore"}]'
    )


def test_lists_mappings_and_scalars_have_their_forms():
    assert to_text(["a", "b"], header=True) == "a\nb"
    assert to_text({"a": 1}, header=True) == "a: 1"
    assert to_text(5, header=True) == "5"
    assert to_json(
        Text("words", {"x": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)})
    ) == ('{"x": "2026-01-02T00:00:00+00:00"}')


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("text", b"text"),
        (b"\x00\xff", b"\x00\xff"),
        (3, b"3\n"),
        ([1, "a"], b'[1, "a"]\n'),
        (None, b""),
    ],
)
def test_results_are_printed_exactly(value, printed):
    assert as_bytes(value) == printed


def test_results_without_a_text_form_are_refused():
    with pytest.raises(NotPrintableError, match=r"cloud\.result"):
        as_bytes(object())


@pytest.mark.parametrize("text", ["{(1, 2): 3}", "10**5000", "chr(0xd800)", "Loop()"])
def test_what_cannot_be_written_is_refused_in_words(text):
    class Loop(list[object]):
        def __init__(self):
            self.append(self)

    value = eval(text, {"Loop": Loop})  # by its text: pytest would write it into the name
    with pytest.raises(NotPrintableError, match=r"cloud\.result"):
        as_bytes(value)


def test_sets_of_any_values_and_odd_characters_are_written():
    assert as_bytes({1, "a"}) == b'["a", 1]\n'
    assert as_bytes(["\ud800"]) == b'["\\ud800"]\n'
    assert as_bytes(2.5) == b"2.5\n"


def test_a_terminal_that_knows_few_characters_gets_escapes():
    script = "from picloud_jupyter.cli.output import show; show({'a': '\u20ac'}, 'json'); show(['\u20ac'], 'default')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.splitlines() == ['{"a": "\\u20ac"}', "\\u20ac"]


@pytest.mark.parametrize(
    "text", ["0.4", "0", "noneG", "defaultM", "1e300T", "-5M", "nan", "G", ""]
)
def test_a_size_that_is_none_is_no_limit(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no size"):
        size_type(text)


def test_sizes_of_limits_are_read():
    assert [size_type(t) for t in ("500M", "2.5g", "7", "none", "default")] == [
        500 * 2**20,
        2.5 * 2**30,
        7,
        0,
        None,
    ]


def test_a_key_before_setup_is_kept():
    parser = make_parser(commands())
    assert parser.parse_args(["-u", "https://x", "-a", "K", "setup"]).api_key == "K"
    assert parser.parse_args(["setup", "-a"]).api_key == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-s down", "the service of this machine"),
        ("-u https://x -a K down", "the service of this machine"),
        ("-u https://x up", "the service of this machine"),
        ("-k S status", "second half"),
    ],
)
def test_options_that_would_not_count_are_refused(line, words, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PICLOUD_HOME", str(tmp_path))
    assert run(line.split()) == WRONG_USAGE
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("line", ["-o json list", "list -o json", "why 17 -o json"])
def test_the_form_of_output_stands_before_or_after_the_word(line):
    assert make_parser(commands()).parse_args(line.split()).output == "json"


def test_the_form_of_output_is_one_option_and_info_names_fields_with_its_own():
    parser = make_parser(commands())
    assert parser.parse_args(["-o", "no-header", "list"]).output == "no-header"
    assert parser.parse_args(["list"]).output == "default"
    found = parser.parse_args(["-o", "json", "info", "17", "-o", "all"])
    assert (found.output, found.fields) == ("json", "all")
    program = parser.parse_args(["run", "script.py", "-o", "its-own"])
    assert (program.output, program.arguments) == ("default", ["-o", "its-own"])


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("picloud backup ", []),  # nothing of ours: names of files
        ("picloud restore jobs", []),
        ("picloud run ", []),
        ("picloud backup --sec", ["--secrets"]),
        ("picloud secret s", ["set"]),
        ("picloud back", ["backup"]),
    ],
)
def test_completion_in_bash_offers_files_where_one_is_named(line, offered):
    words = line.split(" ")
    script = (
        f"{bash(make_parser(commands()))}\n"
        f"COMP_WORDS=({' '.join(word or chr(39) * 2 for word in words)})\n"
        f"COMP_CWORD={len(words) - 1}\n_picloud\necho ${{COMPREPLY[@]}}"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == offered
    assert "complete -o default -F _picloud picloud" in script


def test_completion_in_fish_offers_files_where_one_is_named():
    lines = fish(make_parser(commands())).splitlines()
    assert "complete -c picloud -n '__fish_seen_subcommand_from backup' -F" in lines
    assert "complete -c picloud -n '__fish_seen_subcommand_from list' -F" not in lines


@pytest.mark.parametrize(
    ("lost", "code", "words"),
    [
        ([], DONE, "1.0 KiB in jobs.tar\n"),
        (["blobs/ab/c"], REFUSED, "1 file was damaged, unreadable or gone already"),
        (["a", "b"], REFUSED, "2 files were damaged, unreadable or gone already"),
    ],
)
def test_a_backup_that_lacks_files_says_so_and_ends_with_3(
    lost, code, words, capsys, monkeypatch
):
    found = {"jobs": 4, "secrets": False, "bytes": 1024, "lost": lost}
    monkeypatch.setattr(backup, "run_copying", lambda *_: found)
    assert run(["backup", "jobs.tar"]) == code
    said = capsys.readouterr().out
    assert words in said
    assert all(name in said for name in lost)
    assert ("The rest of it is whole" in said) == bool(lost)


def test_sizes_are_readable():
    assert [format_bytes(n) for n in (0, 1023, 1024, 5 * 2**30, 2**60)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 GiB",
        "1048576.0 TiB",
    ]


def test_long_fields_stand_on_their_own_lines():
    text = describe(4, {"status": "error", "stdout": "a\nb\n", "exception": None})
    assert text == "Info for jid 4\nstatus: error\nstdout:\na\nb\nexception: None"


def test_trials_say_why_and_what_mends():
    text = describe_trials(
        [
            {"kind": "root", "works": False, "why": "not root", "mend": "sudo picloud up"},
            {"kind": "plain", "works": True, "program": ""},
        ],
        "plain",
    )
    assert "because: not root" in text
    assert "to mend: sudo picloud up" in text
    assert "plain     works  <- chosen" in text


def test_every_command_has_help_with_examples():
    for command in commands():
        assert command.help[0].islower()
        assert any(f"picloud {command.name}" in line for line in command.examples), command.name


@pytest.mark.parametrize("make", [bash, zsh, fish])
def test_completion_knows_every_word_and_option(make):
    text = make(make_parser(commands()))
    for command in commands():
        assert command.name in text
    for word in ("--replace", "--purge", "--stderr", "complete"):
        assert word in text


@pytest.mark.parametrize("wrong", ["1-4", "1,2", "x", "0"])
def test_one_jid_is_not_several(wrong):
    with pytest.raises(Exception, match="job id"):
        jid_type(wrong)
    assert jid_type("17") == 17


def test_top_shows_use_of_running_jobs():
    samples = [
        {"at": 1.0, "cpu_seconds": 1.0},
        {"at": 3.0, "cpu_seconds": 2.0, "memory_bytes": 2**20},
    ]
    job = {
        "jid": 7,
        "started_at": 90.0,
        "core_type": "c1",
        "cores": 1,
        "function": "m.f",
        "samples": samples,
    }
    service = {
        "counts": {"processing": 1, "done": 0},
        "capacity": {"cores": 2.0},
        "container_kind": "root",
    }
    lines = render(service, [job], 100.0).splitlines()
    assert lines[1] == "jobs: 1 processing"
    assert lines[-1].split() == ["7", "10", "s", "50", "%", "1.0", "MiB", "c1", "x1", "m.f"]
    assert cpu_percent(samples[:1]) == ""


def test_commands_when_the_word_is_up_then_the_api_is_not_imported():
    code = (
        "import sys; from picloud_jupyter.cli.run import commands; (found,) = commands(['up', '--replace']); "
        "print(found.name, 'picloud_jupyter.cloud' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.split() == [b"up", b"False"]
