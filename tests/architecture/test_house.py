"""The house rules that a machine can check: sizes, light import, public names, named places."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from picloud_jupyter.protocol.errors import BY_CODE

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path
    for folder in ("picloud_jupyter", "services", "kernels")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
FORBIDDEN_WHEN_IMPORTED = (
    "tornado",
    "httptools",
    "sqlalchemy",
    "IPython",
    "jupyter_server",
    "numpy",
    "asyncio",
    "cloudpickle",
)


def test_no_source_file_is_longer_than_400_lines():
    long = {
        str(p.relative_to(ROOT)): n
        for p in SOURCES
        if (n := len(p.read_text().splitlines())) > 400
    }
    assert not long


def test_no_class_has_more_than_twenty_five_public_methods():
    large = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                methods = [
                    n.name
                    for n in node.body
                    if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
                    and not n.name.startswith("_")
                    and not any(
                        isinstance(d, ast.Name) and d.id == "property" for d in n.decorator_list
                    )
                ]
                if len(methods) > 25:  # a machine has one per event, a facade one per request
                    large[f"{path.relative_to(ROOT)}:{node.name}"] = len(methods)
    assert not large


@pytest.mark.parametrize("module", ["picloud_jupyter", "picloud_jupyter.cloud"])
def test_import_is_light(module):
    code = f"import sys, {module}; print(*(m for m in {FORBIDDEN_WHEN_IMPORTED!r} if m in sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20
    ).stdout.split()
    allowed = {"cloudpickle"} if module.endswith("cloud") else set()
    assert set(loaded) <= allowed


def test_agent_is_light():
    code = "import sys, picloud_services.agent.agent; print(*(m for m in ('tornado','httptools','sqlalchemy','msgspec','psutil') if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout.split() == []


def test_public_names_exist():
    from picloud_jupyter import cloud

    assert all(hasattr(cloud, name) for name in cloud.__all__)


def test_no_deserialiser_of_user_bytes_in_services():
    pattern = re.compile(
        r"^\s*(import|from)\s+(pickle|cloudpickle|dill|marshal|shelve)\b", re.M
    )
    assert not [p for p in SOURCES if "services" in p.parts and pattern.search(p.read_text())]


def test_every_module_says_what_it_is_for():
    silent = [
        str(p.relative_to(ROOT))
        for p in SOURCES
        if p.read_text().strip() and not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert not silent


def test_errors_about_a_job_do_not_name_it_themselves():
    """`CloudException` puts "Job 7: " before their words."""
    errors = {cls.__name__ for cls in BY_CODE.values()}
    twice = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in SOURCES
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and getattr(call.func, "id", "") in errors
        and (len(call.args) > 1 or any(word.arg == "jid" for word in call.keywords))
        and re.search(r"\bjob \{", ast.unparse(call.args[0]), re.IGNORECASE)
    ]
    assert not twice


def test_architecture_page_names_only_files_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(
        re.findall(r"`((?:picloud_jupyter|services|kernels|tests|docs)/[\w./-]+)`", text)
    )
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_end_reasons_page_is_what_the_code_says():
    from picloud_services.jobs.reasons import end_reasons_markdown

    assert (ROOT / "docs" / "end-reasons.md").read_text() == end_reasons_markdown()
