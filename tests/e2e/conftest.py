"""Every SDK test runs against both forms of the built binary."""

import pytest
from openai import OpenAI

from volley import BINARY, RUNNING, Cluster, Serve, eventually


def pytest_sessionstart(session):
    if not BINARY.exists():
        pytest.exit(f"{BINARY} is missing: cargo build --release", 2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        report.sections += [(f"end of the log of {p.name}", p.output()[-8000:]) for p in RUNNING]
    return report


@pytest.fixture(scope="session", params=["serve", "cluster"])
def server(request):
    if request.param == "serve":
        running = Serve()
    else:
        running = Cluster()
        running.worker(), running.scheduler(), running.router()
        running.wait()
    yield running
    running.close()


@pytest.fixture
def client(server):
    """The newest Python SDK, which checks the types of what it gets."""
    with OpenAI(base_url=server.base, api_key="key", max_retries=0, _strict_response_validation=True) as client:
        yield client


@pytest.fixture
def cluster():
    """An empty cluster: etcd, and whatever parts the test starts."""
    running = Cluster()
    yield running
    running.close()


def router(*flags):
    """A router without anything behind it."""
    running = Cluster()
    process = running.part("router", *flags)
    eventually(lambda: running.request("GET", "/health")[0] == 200, "healthy", [process])
    return running


@pytest.fixture(scope="session")
def alone():
    running = router()
    yield running
    running.close()


@pytest.fixture(scope="session")
def keyed():
    running = router("--api-keys", "secret-1,secret-2")
    yield running
    running.close()
