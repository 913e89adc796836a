"""Templates of commands: what is a place for a value, and what the shell gets as it is."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from picloud_jupyter.cloud.shell import execute_map
from picloud_jupyter.cloud.shell_templates import (
    check_bound,
    check_length,
    check_values,
    equal_length,
    parameter_names,
    parse_template,
    split_values,
)
from picloud_jupyter.protocol.shell import MAX_COMMAND_BYTES, Parameter, ShellCommand


def filled(text, **values):
    return ShellCommand(text, parse_template(text)).fill(values)


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("echo {a}", "echo 1"),
        ("{a}{b}", "12"),  # PiCloud missed the second
        ("{a}{b}{a}", "121"),
        ("x{a}y{b}z", "x1y2z"),
        ("{}", "{}"),
        ("find . -exec ls {} +", "find . -exec ls {} +"),
        ("${a}", "${a}"),
        ("${HOME}/{a}", "${HOME}/1"),
        ("${{a}}", "${1}"),
        ("{{a}}", "{1}"),
        ("{1..2}", "{1..2}"),
        ("{a b}", "{a b}"),
        ("{ a; }", "{ a; }"),
        ("{a,b}.txt", "{a,b}.txt"),
        ("${a:-5} ${#a} ${a%.*}", "${a:-5} ${#a} ${a%.*}"),
        (r"\{a\}", "{a}"),
        (r"awk '\{print\}' {a}", "awk '{print}' 1"),
        (r"\{a\}{b}", "{a}2"),
        (r"{a}\{b\}", "1{b}"),
        (r"grep 'x\{2,3\}'", r"grep 'x\{2,3\}'"),
        (r"\{a}", r"\{a}"),  # the shell's own escape
        (r"\n\t{a}\\", r"\n\t1\\"),
        ("{größe}", "5"),
        ("line\n{a}\nline", "line\n1\nline"),
    ],
)
def test_what_becomes_of_a_command(text, becomes):
    assert filled(text, a="1", b="2", größe="5") == becomes


def test_a_value_is_not_looked_at_again():
    assert filled("{a} {b}", a="{b}", b=r"\{a\}") == r"{b} \{a\}"


def test_names_come_once_and_in_order():
    assert parameter_names(parse_template("{b} {a} {b} ${c}")) == ["b", "a"]


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_command_is_refused(text):
    with pytest.raises(ValueError, match="empty"):
        parse_template(text)


def test_a_nul_is_refused():
    with pytest.raises(ValueError, match="NUL"):
        parse_template("echo \0")
    with pytest.raises(ValueError, match="NUL"):
        check_values({"a": "\0"})


@given(st.text(st.sampled_from("{}$\\ab1 .,"), min_size=1).filter(str.strip))
@example(r"\\{a}")
@example("${{a}{b}}")
def test_every_place_is_found_by_its_name_and_all_else_is_kept(text):
    pieces = parse_template(text)
    assert all(re.fullmatch(r"\w+", p.name) for p in pieces if isinstance(p, Parameter))
    back = "".join(f"{{{p.name}}}" if isinstance(p, Parameter) else p for p in pieces)
    assert back == re.sub(r"\\\{(\w+)\\\}", r"{\1}", text)


def test_unbound_and_unused_parameters_are_named():
    pieces = parse_template("cp {source} {target}")
    check_bound(pieces, ["source", "target"])
    with pytest.raises(ValueError, match=r"needs a value for \{target\}.*\\\{target\\\}"):
        check_bound(pieces, ["source"])
    with pytest.raises(
        ValueError, match=r"does not use 'extra': it has \{source\}, \{target\}"
    ):
        check_bound(pieces, ["source", "target", "extra"])
    with pytest.raises(ValueError, match="no parameters"):
        check_bound(parse_template("true"), ["extra"])


@pytest.mark.parametrize("value", [5, None, b"x", ["x"], 1.5])
def test_values_must_be_strings(value):
    with pytest.raises(TypeError, match=r"\{a\} must be a string"):
        check_values({"a": value})
    with pytest.raises(TypeError, match="names"):
        check_values({7: "x"})  # type: ignore[dict-item]


@pytest.mark.parametrize("values", [["x"], "x", 5])
def test_values_must_have_names(values):
    with pytest.raises(TypeError, match="must be a dict"):
        check_values(values)
    with pytest.raises(TypeError, match="map_argdict must be a dict"):
        execute_map("echo {x}", None, values)


def test_a_command_longer_than_linux_takes_is_refused_with_the_way_out():
    pieces = parse_template("{a}{a}")
    check_length(pieces, {"a": "x" * (MAX_COMMAND_BYTES // 2)})
    with pytest.raises(ValueError, match=r"131,072 bytes.*@script\.sh"):
        check_length(pieces, {"a": "x" * 65536})
    with pytest.raises(ValueError, match="bytes"):
        check_length(pieces, {"a": "ü" * 40000})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2,3", ["1", "2", "3"]),
        ("one", ["one"]),
        (r"a\,b,c", ["a,b", "c"]),  # PiCloud left the backslash in
        (r"\,", [","]),
        ("a,,b", ["a", "", "b"]),
        ("", [""]),
        (r"a\nb", [r"a\nb"]),
    ],
)
def test_values_are_parted_by_commas(text, values):
    assert split_values(text) == values


def test_columns_must_have_one_length():
    assert equal_length({"a": ["1", "2"], "b": ["3", "4"]}) == 2
    with pytest.raises(ValueError, match=r"\{a\} 1, \{b\} 2"):
        equal_length({"a": ["1"], "b": ["3", "4"]})
    with pytest.raises(ValueError, match="no values"):
        equal_length({"a": []})
    with pytest.raises(ValueError, match="at least one parameter"):
        equal_length({})
