import pytest

from tinycanvas.model import load_pipeline


@pytest.fixture(scope="session")
def pipeline():
    return load_pipeline()
