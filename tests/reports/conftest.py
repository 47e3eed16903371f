"""Fixtures of the report tests."""

from __future__ import annotations

import pytest
from report_runs import all_runs

from reports.records import RunRecord


@pytest.fixture(scope="session")
def runs() -> dict[str, RunRecord]:
    return all_runs()


@pytest.fixture(scope="session")
def met(runs) -> RunRecord:
    return runs["met"]
