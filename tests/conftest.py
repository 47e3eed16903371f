"""Tests run beside other work: threads that spin while they wait would slow both down. Read when torch is imported."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
