"""The line of ``%%picloud``: what it says, what is refused, and in which words."""

import pytest
from IPython.core.error import UsageError

from picloud_jupyter.magics.arguments import describe, parse_line, read_request
from picloud_jupyter.protocol.jobs import Kind


def read(line):
    return read_request(parse_line(line))


def test_every_word_reaches_its_option(tmp_path):
    (tmp_path / "a b.csv").write_text("")
    request = read(
        "-e sci -t c2 -c 4 -v /a:/b -v /c:/d:rw --label 'two words' --max-runtime 1.5 --cache --input a,b "
        f"--output '' -f '{tmp_path}/a b.csv' -f '{tmp_path}/a b.csv:z.csv' --nowait --fetch nowhere"
    )
    options = request.options
    assert options.kind is Kind.CELL
    assert (options.environment, options.core_type, options.cores) == ("sci", "c2", 4)
    assert options.volumes == ("/a:/b", "/c:/d:rw")
    assert (options.label, options.max_runtime_seconds, options.cache) == (
        "two words",
        90.0,
        True,
    )
    assert (request.inputs, request.outputs) == (("a", "b"), ())
    path = str(tmp_path / "a b.csv")
    assert request.files == ((path, "a b.csv"), (path, "z.csv"))
    assert (request.nowait, request.local, request.dry_run, request.fetch) == (
        True,
        False,
        False,
        "nowhere",
    )


def test_files_need_names_of_their_own(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    with pytest.raises(UsageError, match="2 files are called x"):
        read(f"-f {tmp_path}/a/x -f {tmp_path}/b/x")
    files = read(f"-f {tmp_path}/a/x -f {tmp_path}/b/x:y").files
    assert files == ((f"{tmp_path}/a/x", "x"), (f"{tmp_path}/b/x", "y"))


def test_a_home_that_nobody_has_is_no_place_for_files():
    with pytest.raises(UsageError, match="does not exist"):
        read("-f ~nobody_has_this_name/x")
    assert read("--fetch ~nobody_has_this_name/x").fetch == "~nobody_has_this_name/x"


def test_nothing_said_is_the_default():
    request = read("")
    assert request.inputs is None
    assert request.outputs is None
    assert request.options.core_type == "c1"


def test_a_default_can_be_taken_back():
    assert (
        read_request({**parse_line("--cache"), **parse_line("--no-cache")}).options.cache
        is False
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--nope", "--nope is none of its options"),
        ("stray", "stray is none"),
        ("--lab x", "--lab x is none"),  # no abbreviations: they would change with new options
        ("-c", "expected one argument"),
        ("-c x", "invalid int value"),
        ("-t c1 -c 2", "--cores 2 does not exist for --type c1; it has 1"),
        ("-t q", "--type must be one of c1, c2, f2, m1, s1; got 'q'"),
        ("--max-runtime nan", "--max-runtime must be a number of minutes"),
        ("--label é", "--label must be an ASCII string"),
        ("--input 1a", "'1a' is not a name"),
        ("-f /nowhere", "/nowhere does not exist"),
        ("-f /tmp", "is not a file"),
        ("-f /etc/hostname:a/b", "not a plain file name"),
        ("--fetch /etc/hostname", "is not a folder"),
        ("'", "No closing quotation"),
    ],
)
def test_refusals(line, words):
    with pytest.raises(UsageError) as caught:
        read(line)
    assert words in str(caught.value)
    assert not any(f" _{word}" in str(caught.value) for word in ("type", "cores", "label"))


def test_describe_is_read_back():
    line = "--type c2 --vol /a:/b --vol '/c d:/e' --no-cache --label 'x y'"
    given = parse_line(line)
    assert parse_line(describe(given)) == given
