"""The examples in the docstrings are right: each is run, in a folder that holds the finished sweep `runs/local`."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import finetune
from tests.report.test_page_in_browser import save_sweep

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


MODULES = [module.name for module in pkgutil.walk_packages(finetune.__path__, "finetune.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = [test for test in doctest.DocTestFinder().find(importlib.import_module(name)) if test.examples]
    if not tests:
        return
    save_sweep(tmp_path / "runs" / "local")
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    messages: list[str] = []
    for test in tests:
        runner.run(test, out=messages.append)
    assert runner.failures == 0, "".join(messages)
