from pathlib import Path

import pytest

pytest_plugins = ["meterkit.testing.plugin"]


@pytest.fixture
def meterkit_plans() -> Path:
    return Path(__file__).with_name("plans.yaml")
