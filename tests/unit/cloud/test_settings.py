"""The client's options."""

import json

import pytest

from picloud_jupyter.cloud.settings import DEFAULTS, Config, config_folder


@pytest.fixture
def config(tmp_path):
    return Config(lambda: tmp_path)


def test_defaults_hold_without_a_file(config):
    assert config.max_transmit_data == 256 * 1024 * 1024
    assert dir(config) == sorted([*DEFAULTS, "commit"])


def test_assignment_casts_to_the_type_of_the_default(config):
    config.max_transmit_data = "1000"
    assert config.max_transmit_data == 1000
    config.automatic_dependency_transfer = "false"
    assert config.automatic_dependency_transfer is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_transmit_data", "many"),
        ("max_transmit_data", None),
        ("max_transmit_data", -1),
        ("progress", "sometimes"),
        ("automatic_dependency_transfer", "perhaps"),
    ],
)
def test_wrong_value_raises_value_error(config, name, value):
    with pytest.raises(ValueError, match=name):
        setattr(config, name, value)


def test_unknown_option_is_refused_with_a_near_one(config):
    with pytest.raises(AttributeError, match="max_transmit_data"):
        config.max_transmit_date = 5
    with pytest.raises(AttributeError, match="use_gzip"):
        config.use_gzip  # noqa: B018


def test_file_is_read_and_what_is_wrong_in_it_is_said(tmp_path, config, capsys):
    (tmp_path / "client.json").write_text(
        json.dumps({"url": "https://lab", "max_closure_data": "x", "colour": 1})
    )
    assert config.url == "https://lab"
    assert config.max_closure_data == DEFAULTS["max_closure_data"]
    said = capsys.readouterr().err
    assert "max_closure_data" in said
    assert "colour" in said


@pytest.mark.parametrize("text", ["{", "[]"])
def test_malformed_file_falls_back_to_the_defaults_and_says_so(tmp_path, config, capsys, text):
    (tmp_path / "client.json").write_text(text)
    assert config.url == ""
    assert "client.json" in capsys.readouterr().err


def test_commit_calls_what_was_registered(config):
    seen = []
    config.on_commit(lambda: seen.append(1))
    config.commit()
    assert seen == [1]


def test_key_is_not_shown(config):
    config.api_key = "secret-key"
    assert "secret-key" not in repr(config)


def test_folder_is_the_home_of_the_service(monkeypatch, tmp_path):
    monkeypatch.setenv("PICLOUD_HOME", str(tmp_path))
    assert config_folder() == tmp_path
