"""Each construct of Python 2, and the line that replaces it."""

import pytest

from picloud_jupyter.cli.python2 import describe, explain, explain_line, explain_old_api


@pytest.mark.parametrize(
    ("old", "modern"),
    [
        ('print "a"', 'print("a")'),
        ("print", "print()"),
        ("print a, b,", 'print(a, b, end=" ")'),
        ('print >>f, "a", b', 'print("a", b, file=f)'),
        ("print >>f", "print(file=f)"),
        ('print "%d" % x  # why', 'print("%d" % x)  # why'),
        ("print (a), b", "print((a), b)"),
        ('if x: print "a"; y()', 'if x: print("a"); y()'),
        ("except ValueError, e:", "except ValueError as e:"),
        ("except (A, b.C), e:", "except (A, b.C) as e:"),
        ('raise E, "m"', 'raise E("m")'),
        ("raise E, v, tb", "raise E(v).with_traceback(tb)"),
        ("x = `y + 1`", "x = repr(y + 1)"),
        ("if a <> b: pass", "if a != b: pass"),
        ('exec "x = 1" in names', 'exec("x = 1", names)'),
        ("exec code", "exec(code)"),
        ("os.chmod(p, 0755)", "os.chmod(p, 0o755)"),
        ("n = 10L + 0xFFL", "n = 10 + 0xFF"),
        ("s = ur'a\\b'", "s = r'a\\b'"),
        ("for i in xrange(3): pass", "for i in range(3): pass"),
        ("name = raw_input()", "name = input()"),
        ("isinstance(s, (str, unicode))", "isinstance(s, (str, str))"),
        ("isinstance(s, basestring)", "isinstance(s, str)"),
        ("n = long(3)", "n = int(3)"),
        ("if d.has_key(k): pass", "if k in d: pass"),
        ("for k, v in d.iteritems(): pass", "for k, v in d.items(): pass"),
        ("a = string.letters", "a = string.ascii_letters"),
        ("x = it.next()", "x = next(it)"),
        ("import urllib2", "import urllib.request"),
        ("import os, cPickle as pickle", "import os, pickle as pickle"),
        ("from StringIO import StringIO", "from io import StringIO"),
        ("q = Queue.Queue()", "q = queue.Queue()"),
        ("def f(a, (b, c)): pass", "def f(a, pair): pass"),
        ("n = sys.maxint", "n = sys.maxsize"),
        ("for a, b in itertools.izip(x, y): pass", "for a, b in zip(x, y): pass"),
    ],
)
def test_the_modern_line(old, modern):
    (finding,) = explain(f"first = 1\n{old}\n")
    assert (finding.line, finding.old, finding.modern) == (2, old, modern)
    assert finding.words


@pytest.mark.parametrize(
    "line",
    [
        'print("a", b)',
        "print(a)  # print a",
        's = "print a; except X, e: `x` 0777 <>"',
        "printer = print",
        "# print a",
        "x = 0; y = 00; z = 0.5; w = 10.07; v = 1_000",
        "except ValueError as e:",
        "except (A, B):",
        "def f(a=(1, 2), *b): pass",
        "lambda a: (a, 1)",
        "raise E(a, b)",
        "raise E from None",
        "exec(code, names)",
        "file = open('x')",
        "from queue import Queue; q = Queue()",
        "t = [print, 1]",
        "unicode_name = my.unicode",
    ],
)
def test_a_modern_line_is_left_alone(line):
    assert explain(line) == []


def test_strings_of_many_lines_are_no_code():
    source = 'a = """\nprint b\n`x`\n"""\nprint a\n'
    assert [(f.line, f.modern) for f in explain(source)] == [(5, "print(a)")]
    assert explain_line(source, 2) is None


def test_a_program_that_ends_in_a_string_is_read_to_its_end():
    assert [f.line for f in explain('print "a\nprint b\nx = """never ended\nprint c')] == [
        1,
        2,
        4,
    ]


def test_describe_names_file_and_line():
    text = describe("/a/b.py", explain("x = 1\nprint x"))
    assert text.startswith("/a/b.py:2: print is a function")
    assert text.endswith("print(x)")


def test_old_idioms_of_the_api():
    assert list(explain_old_api("jids = cloud.map(f, x, _callback=g)"))
    assert list(explain_old_api("cloud.files.put('a')"))
    assert not list(explain_old_api("jid = cloud.call(f, 3)"))


def test_bytes_that_no_program_has_are_no_marks():
    (found,) = explain('print "a" \0001\000')
    assert found.modern.startswith('print("a"')
