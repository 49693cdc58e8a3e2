"""Only what all tests share: where nothing may be skipped, and what the run has.

`TESTS_REQUIRE=all` (set by `.ci/run`) turns every skip into a failure: on that machine a browser and a C compiler
are there, so a skipped test would be a test that nobody runs. Properties are judged by what they show, not by how long
a busy machine takes over one example. Started in the background of a script, a run inherits an interrupt that is
ignored, and so would every process that it starts: the tests that press Ctrl+C would wait for ever.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("turnlane", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("turnlane")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REQUIRE_ALL = os.environ.get("TESTS_REQUIRE") == "all"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"skipped, and TESTS_REQUIRE=all: {reason}"
    return report
