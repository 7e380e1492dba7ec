"""Fixtures of every test: where the real data is, and which tests are slow."""
import os
from pathlib import Path

import pytest

# a helper's process or a notebook's kernel must draw without a screen
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests too (minutes each)")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow only")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data that FUSION_NB_DATA names; tests that need it are skipped where there is none."""
    named = os.environ.get("FUSION_NB_DATA")
    if not named:
        pytest.skip("real data: set FUSION_NB_DATA to the folder that holds it")
    folder = Path(named).expanduser().resolve()
    if not folder.is_dir():
        pytest.fail(f"FUSION_NB_DATA names {named!r}, which is not a folder")
    return folder
