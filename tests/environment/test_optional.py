from __future__ import annotations

import json
import sys
from functools import partial

import pytest

from dive_fast.environment.optional import missing, optional, require
from dive_fast.environment.packages import PACKAGES
from dive_fast.types import DiveError, InputError
from tests.support.refusals import refused


def test_a_module_that_is_there_is_returned() -> None:
    assert optional("json", "this") is json


@pytest.mark.parametrize("error", [DiveError, InputError])
def test_a_missing_one_is_named_with_its_extra(error: type[DiveError], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sklearn", "sklearn.manifold"):  # another test may have imported either
        monkeypatch.setitem(sys.modules, name, None)
    message = r"this needs scikit-learn; pip install 'dive-fast\[reid\]', or leave it"
    refused(message, partial(optional, "sklearn.manifold", "this", "leave it", error), error=error)


def test_what_a_command_needs_is_looked_for_without_an_import() -> None:
    loaded = set(sys.modules)
    require("this", "json", "wave")
    assert "wave" in loaded or "wave" not in sys.modules
    refused("this needs .*nowhere", require, "this", "json", "nowhere", error=DiveError)


def test_each_package_has_its_extra() -> None:
    """Of onnxruntime the one for CPUs; core packages and unknown ones have none."""
    for package, wanted in PACKAGES.items():
        found = missing(f"{wanted.module}.part")
        if wanted.extra is None:
            assert found is None
        elif package != "onnxruntime-gpu":
            assert found == f"{package}; pip install 'dive-fast[{wanted.extra}]'"
    assert missing("onnxruntime") == "onnxruntime; pip install 'dive-fast[cpu]'"
    assert missing("nowhere") is None
