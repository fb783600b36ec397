"""The look-up of known vulnerabilities, ``.ci/audit``, against a database on this machine."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "audit"


def audit(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OSV_URL": url, "VENV": sys.prefix}
    return subprocess.run([SCRIPT, *options], env=environment, capture_output=True, text=True)


@contextlib.contextmanager
def database(status: int, weak: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """The URL of one that knows a vulnerability of the package ``weak``, and the versions that it was asked for."""
    asked: dict[str, str] = {}

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked[query["package"]["name"]] = query["version"]
            affected = [{"package": {"name": weak, "ecosystem": "PyPI"}}]
            weakness = {"vulns": [{"id": "PYSEC-0000-1", "affected": affected}]}
            body = json.dumps(weakness if query["package"]["name"] == weak else {}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", asked
        finally:
            server.shutdown()


def test_without_a_way_to_the_database_it_is_skipped() -> None:
    with database(200) as (url, _):
        pass  # gone again: no one listens there
    done = audit(url)
    assert (done.returncode, done.stdout) == (0, f"skipped: the advisory database cannot be reached ({url})\n")


def test_a_gate_on_the_way_is_no_database() -> None:
    with database(403) as (url, asked):
        done = audit(url)
    assert done.returncode == 0
    assert done.stdout.startswith("skipped: ")
    assert asked == {"pip": "1"}


@pytest.mark.slow  # it installs pip-audit
@pytest.mark.parametrize(("options", "status"), [((), 1), (("--ignore-vuln", "PYSEC-0000-1"), 0)])
def test_a_vulnerability_is_an_error(options: tuple[str, ...], status: int) -> None:
    with database(200, weak="pillow") as (url, asked):
        done = audit(url, *options)
    if "No matching distribution found for pip-audit" in done.stderr:
        pytest.skip("no package index to install pip-audit from")
    assert done.returncode == status, done.stderr
    assert ("PYSEC-0000-1" in done.stdout) == (status == 1)
    assert asked["torch"] == version("torch").partition("+")[0]
    assert "calor-hf" not in asked
