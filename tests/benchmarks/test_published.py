"""The emulator against a phone: MobileNetV2 on a Pixel 3a, as the XNNPACK project publishes it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from targets.arm.setup import is_ready

sys.path.insert(0, str(Path(__file__).parent))


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.export
@pytest.mark.skipif(not is_ready(), reason="the ARM64 emulator is not set up: planish targets setup pixel-4-cpu")
def test_mobilenet_v2_on_a_pixel_3a_is_within_a_fifth_of_the_published_latency(tmp_path: Path) -> None:
    from published import measure_mobilenet_v2

    (row,) = measure_mobilenet_v2(tmp_path, ("pixel-3a-cpu",))
    print(f"emulated {row['emulated_ms']:.1f} ms, published {row['published_ms']:g} ms")
    assert 0.8 * row["published_ms"] <= row["emulated_ms"] <= row["published_ms"] * 1.05
