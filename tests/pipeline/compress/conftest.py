"""What tests of compression share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def seeded() -> None:
    """Weights and samples that a test draws are the same every time."""
    torch.manual_seed(0)
