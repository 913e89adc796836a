"""The hook that registers joblib's backend: once, and out of the way afterwards."""

import sys
import types

from picloud_jupyter.cloud import joblib_hook


def parallel_module():
    module = types.ModuleType("joblib.parallel")
    module.registered = []  # type: ignore[attr-defined]
    module.register_parallel_backend = lambda name, make: module.registered.append(name)  # type: ignore[attr-defined]
    return module


def test_a_loaded_joblib_is_registered_with_at_once(monkeypatch):
    module = parallel_module()
    monkeypatch.setitem(sys.modules, "joblib.parallel", module)
    joblib_hook.install()
    assert module.registered == ["picloud"]


def test_one_finder_waits_and_finds_nothing_else(monkeypatch):
    monkeypatch.delitem(sys.modules, "joblib.parallel", raising=False)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    joblib_hook.install()
    joblib_hook.install()
    found = [f for f in sys.meta_path if type(f).__module__ == joblib_hook.__name__]
    assert len(found) == 1
    assert found[0].find_spec("json", None) is None
    assert found[0] in sys.meta_path
