"""Words of `picloud exec` and `mapexec`, without a service."""

import argparse

import pytest

from picloud_jupyter.cli import job_options
from picloud_jupyter.cli.command import WrongUsageError
from picloud_jupyter.cli.mapexec import _columns, read_values
from picloud_jupyter.cli.run import commands, make_parser


def parse(*words):
    return make_parser(commands(words)).parse_args(words)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["ls", "-l"], "ls -l"),
        (["-t", "f2", "skein", "400", "1000"], "skein 400 1000"),
        (["--", "ls", "-l"], "ls -l"),
        (["grep", "--", "-x"], "grep -- -x"),
        (["make", "-c", "3", "-t", "x"], "make -c 3 -t x"),
        (["a | b"], "a | b"),
    ],
)
def test_options_end_where_the_command_begins(words, command):
    assert job_options.command_of(parse("exec", *words)) == command


def test_every_option_becomes_a_keyword():
    words = [
        "-t",
        "f2",
        "-c",
        "4",
        "-r",
        "out",
        "-i",
        "-w",
        "/x",
        "-e",
        "base",
        "-v",
        "/a:/b",
        "-v",
        "/c:/d",
        "-l",
        "lab",
        "-m",
        "1.5",
        "-x",
        "1-3,7",
    ]
    words += ["--depends-on-errors", "ignore", "--not-restartable", "--priority", "2", "true"]
    more = [
        "--gpu",
        "1",
        "--secret",
        "TOKEN",
        "--secret",
        "KEY=OTHER",
        "--retries",
        "2",
        "--network",
        "none",
    ]
    found = job_options.keywords_of(parse("exec", *more, *words))
    assert list(found.pop("_depends_on")) == [1, 2, 3, 7]
    assert found == {
        "return_file": "out",
        "ignore_exit_status": True,
        "cwd": "/x",
        "_type": "f2",
        "_cores": 4,
        "_env": "base",
        "_vol": ["/a:/b", "/c:/d"],
        "_label": "lab",
        "_max_runtime": 1.5,
        "_depends_on_errors": "ignore",
        "_restartable": False,
        "_priority": 2,
        "_gpu": 1,
        "_secrets": {"TOKEN": "TOKEN", "KEY": "OTHER"},
        "_retries": 2,
        "_network": "none",
    }


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-d", "x=1"],
        ["-d", "x", "true"],
        ["-d", "=1", "true"],
        ["-t", "c9", "true"],
        ["-c", "3", "true"],
        ["-x", "a", "true"],
        ["-m", "soon", "true"],
    ],
)
def test_wrong_words_are_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        parse("exec", *words)
    assert caught.value.code == 2
    assert "picloud exec: error" in capsys.readouterr().err


def test_a_name_may_come_once():
    assert job_options.one_of_each([("a", "1"), ("b", "2")], "-d") == {"a": "1", "b": "2"}
    with pytest.raises(WrongUsageError, match=r"-d gives \{a\} twice"):
        job_options.one_of_each([("a", "1"), ("a", "2")], "-d")


def test_values_may_hold_signs_of_equality():
    assert job_options.named_value("a=b=c") == ("a", "b=c")
    assert job_options.named_value("a=") == ("a", "")
    with pytest.raises(argparse.ArgumentTypeError, match="NAME=VALUE"):
        job_options.named_value("a")


def columns(*words):
    return _columns(parse("mapexec", *words, "true"))


def test_values_of_a_map(tmp_path):
    (tmp_path / "values").write_text("x\n\n  \ny\n@file\n")
    assert columns("-n", r"a=1,2\,5,3") == ({"a": ["1", "2,5", "3"]}, 3)
    path = f"b={tmp_path}/values"
    found, count = columns("-n", "a=1,2,3", "-N", path)
    assert found == {"a": ["1", "2", "3"], "b": ["x", "y", f"@{tmp_path}/file"]}
    assert count == 3
    assert columns("-n", "a=1,2", "-k", "2") == ({"a": ["1", "2", "1", "2"]}, 4)
    assert columns("-k", "5") == ({}, 5)


@pytest.mark.parametrize("words", [[], ["-k", "0"], ["-k", "-3"], ["-n", "a=1", "-n", "a=2"]])
def test_maps_without_values_are_wrong_usage(words):
    with pytest.raises(WrongUsageError):
        columns(*words)


def test_files_of_values_keep_what_is_no_utf8(tmp_path):
    (tmp_path / "values").write_bytes(b"\xff\r\n@/abs\n@~root/x\nlast")
    values = read_values(str(tmp_path / "values"))
    assert values[0].encode("utf-8", "surrogateescape") == b"\xff"
    assert values[1] == "@/abs"
    assert values[2].endswith("/x")
    assert values[2].startswith("@/")
    assert values[3] == "last"


def test_what_the_user_got_wrong_is_told_without_a_traceback():
    with (
        pytest.raises(WrongUsageError, match=r"^/x/y: no such thing$"),
        job_options.plain_words(),
    ):
        raise FileNotFoundError(2, "no such thing", "/x/y")
    with pytest.raises(WrongUsageError, match="^words$"), job_options.plain_words():
        raise ValueError("words")
