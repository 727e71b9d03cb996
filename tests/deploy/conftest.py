import pytest

from tests.deploy.chart import Chart
from tests.deploy.kubernetes import find_helm


@pytest.fixture(scope="session")
def chart() -> Chart:
    return Chart(find_helm())
