"""Every edge case of the HTTP contract's list, by number: a row is a body and what is said to it, or a check of its own."""

import json
import shutil

import pytest

import edge_answers  # noqa: F401  they fill the table
import edge_sockets  # noqa: F401
from conftest import router
from edge import TABLE
from volley import ROOT, Serve

COMMON = [row for row in TABLE if row.server == "server"]
OWN = [row for row in TABLE if row.server != "server"]


def test_every_edge_case_has_a_row():
    assert sorted({number for row in TABLE for number in row.numbers}) == list(range(1, 99))


@pytest.mark.parametrize("row", COMMON, ids=str)
def test_an_edge_case(server, row):
    row.check(server)


@pytest.mark.parametrize("row", OWN, ids=str)
def test_an_edge_case_on_a_server_of_its_own(request, row):
    row.check(request.getfixturevalue(row.server))


# --- The servers --------------------------------------------------------------------------------------------


def serve(*flags):
    running = Serve(*flags)
    yield running
    running.close()


@pytest.fixture
def limited():
    yield from serve("--limit-requests", "2")


@pytest.fixture
def hasty():
    running = router("--client-timeout", "2")
    yield running
    running.close()


@pytest.fixture
def brisk():
    yield from serve("--client-buffer", "8")


@pytest.fixture
def busy():
    yield from serve("--max-sequences", "1", "--max-waiting", "1")


@pytest.fixture
def fresh():
    running = Serve()
    yield running
    assert running.process.end() == 0


def tiny(folder, template, *flags):
    """A server of the smallest model, with this chat template."""
    folder = shutil.copytree(ROOT / "worker/tests/fixtures/tiny-llama", folder / "tiny")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template")
    if template:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for running in serve("--model", folder, *flags):
        running.model = "accounts/fireworks/models/tiny"
        yield running


@pytest.fixture
def plain(tmp_path):
    yield from tiny(tmp_path, None)


@pytest.fixture
def embedder(tmp_path):
    yield from tiny(tmp_path, None, "--pooling", "mean")


@pytest.fixture
def strict(tmp_path):
    yield from tiny(
        tmp_path,
        "{% if messages[0].role == 'system' and messages | length == 1 %}{{ raise_exception('only with a question') }}"
        "{% endif %}{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<think>",
    )
