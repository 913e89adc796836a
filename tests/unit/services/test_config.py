"""Settings travel from file, environment and command line."""

from pathlib import Path

import pytest

from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.config import Settings, command, from_environment, list_settings
from picloud_services.config.load import help_text, load


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServicePaths:
    for name in ("PICLOUD_CONTAINER_KIND", "PICLOUD_CORES_LEDGER"):  # of a service under test
        monkeypatch.delenv(name, raising=False)
    return ServicePaths(tmp_path, tmp_path / "run")


def test_load_when_nothing_is_set_then_defaults(paths):
    assert load(paths) == Settings(paths)


def test_load_when_set_in_three_places_then_command_line_wins_over_environment_over_file(
    paths, monkeypatch
):
    (paths.home / "picloud_config.py").write_text(
        "c.PiCloud.retention_days = 1\nc.PiCloud.row_days = 1\nc.PiCloud.cores = 1\n"
    )
    monkeypatch.setenv("PICLOUD_ROW_DAYS", "2")
    monkeypatch.setenv("PICLOUD_CORES", "2")
    settings = load(paths, ["--cores=3"])
    assert (settings.retention_days, settings.row_days, settings.cores) == (1.0, 2.0, 3)


def test_load_when_json_file_then_read(paths):
    (paths.home / "picloud_config.json").write_text('{"PiCloud": {"cost_cap": 2.5}}')
    assert load(paths).cost_cap == 2.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("c.PiCloud.retentoin_days = 1", "retentoin_days"),
        ("c.PiCloud.cores = -1", "cores"),
        ("c.PiCloud.cores = 'many'", "cores"),
        ("c.PiCloud.retention_days = float('inf')", "retention_days must be a finite number"),
        ("c.PiCloud.retention_days = float('nan')", "retention_days must be a finite number"),
        ("c.PiCloud.container_kind = 'docker'", "container_kind must be one of empty, root"),
        ("1/0", "division by zero"),
        ("c.PiCloud.cores =", "picloud_config.py"),
    ],
)
def test_load_when_the_file_is_wrong_then_its_fault_is_named(paths, text, words):
    (paths.home / "picloud_config.py").write_text(text)
    with pytest.raises(ValueError, match=words):
        load(paths)


@pytest.mark.parametrize(
    "argument",
    [
        "--nonsense=1",
        "cores=1",
        "--cores",
        "--cores=x",
        "--cores=-1",
        "--restart=maybe",
        "--network=host",
    ],
)
def test_load_when_an_option_is_wrong_then_refused(paths, argument):
    with pytest.raises(ValueError, match=argument.strip("-").partition("=")[0]):
        load(paths, [argument])


def test_exported_when_read_again_then_the_same_settings(paths):
    settings = load(
        paths,
        ["--cores=3", "--restart=false", "--cost-cap=1.5", "--database-url=postgresql://db/x"],
    )
    exported = settings.exported()
    assert exported["PICLOUD_RESTART"] == "false"
    assert from_environment(paths, exported) == settings


def test_exported_when_a_default_overrules_the_environment_then_it_does_so_for_all(
    paths, monkeypatch
):
    monkeypatch.setenv("PICLOUD_CORES", "2")
    settings = load(paths, ["--cores=0"])
    assert settings.cores == 0
    assert from_environment(paths, {"PICLOUD_CORES": "2", **settings.exported()}) == settings


def test_help_when_printed_then_every_setting_has_its_words():
    text = help_text()
    for setting in list_settings():
        assert f"--{setting.name.replace('_', '-')}=" in text
        assert len(setting.explanation) > 20


def test_command_when_made_then_names_role_and_folders(paths):
    words = command("agent", paths)
    assert words[1:] == [
        *("-m", "picloud_services", "agent"),
        *("--home", str(paths.home), "--run", str(paths.run)),
    ]
