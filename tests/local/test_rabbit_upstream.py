"""The RabbitMQ tests that come with the endpoint, unmodified, against the broker in memory."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from gc_warm.local.amqp import Broker

TESTS = "tests/integration/endpoint/endpoint/test_interchange_with_rabbit.py"
EXPECTED = {
    "test_epi_graceful_shutdown",
    "test_epi_forwards_tasks_and_results",
    *(f"test_resource_specification[{given}]" for given in ("NO_HEADER", "null", "None")),
    'test_resource_specification[{"num_nodes": 2, "ranks_per_node": 2, "num_ranks": 4}]',
    "test_bad_resource_specification",
}


def shipped() -> Path:
    files = importlib.metadata.files("globus-compute-endpoint") or []
    found = [Path(str(file.locate())) for file in files if str(file) == TESTS]
    assert found, f"this release of the endpoint does not come with {TESTS}"
    return found[0]


@pytest.mark.engine
def test_the_endpoints_own_tests_pass(tmp_path: Path) -> None:
    ini = tmp_path / "pytest.ini"
    ini.write_text("[pytest]\n")
    report = tmp_path / "report.xml"

    command = [sys.executable, "-m", "pytest"]
    command += ["-p", "unshipped_helpers", "-p", "no:cacheprovider"]
    command += ["-c", str(ini), "--rootdir", str(tmp_path)]
    command += ["--basetemp", str(tmp_path / "temporary")]
    command += [f"--junit-xml={report}", str(shipped())]

    with Broker("guest", "not to be shown") as broker:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
        }
        environment["RABBITMQ_INTEGRATION_TEST_URI"] = broker.url
        # and nothing with another package called tests
        environment["PYTHONPATH"] = str(Path(__file__).parents[1] / "upstream")
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        run = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-5000:]
    cases = list(ET.parse(report).getroot().iter("testcase"))
    assert {case.get("name") for case in cases} == EXPECTED
    assert len(cases) == len(EXPECTED)
    for case in cases:
        assert not {child.tag for child in case} & {"failure", "error", "skipped"}, case.get("name")
