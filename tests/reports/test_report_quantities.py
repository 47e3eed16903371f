"""Numbers as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import quantities


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (8.3123, "8.31"),
        (12.34, "12.3"),
        (9.996, "10.0"),
        (99.96, "100"),
        (123.4, "123"),
        (1234.5, "1,234"),
        (0.0042, "0.00420"),
        (3.2e-7, "3.20e−7"),
        (-0.5, "−0.500"),
        (0.0001, "0.000100"),
    ],
)
def test_three_significant_digits(value, text):
    assert quantities.significant(value) == text


@given(st.floats(1e-9, 1e9))
def test_significant_keeps_the_value_to_half_a_percent(value):
    text = quantities.significant(value).replace("−", "-").replace(",", "")
    assert float(text) == pytest.approx(value, rel=0.00501)


@given(st.floats(1e-3, 1e4), st.floats(1e-5, 0.5))
def test_the_ends_of_a_real_interval_never_look_equal(low, relative):
    first, second = quantities.interval(low, low * (1 + relative)).strip("[]").split(", ")
    assert first != second


@pytest.mark.parametrize(
    ("value", "text"), [(8.31234, "8.312"), (9999.96, "10,000"), (1234.5, "1,234"), (0.00012344, "0.0001234")]
)
def test_as_many_digits_as_are_asked_for(value, text):
    assert quantities.significant(value, 4) == text


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: quantities.interval(14.157, 14.243), "[14.16, 14.24]"),
        (lambda: quantities.interval(8.31, 8.31), "[8.31, 8.31]"),
        (lambda: quantities.milliseconds(None), "–"),
        (lambda: quantities.milliseconds(8.0), "8.00 ms"),
        (lambda: quantities.percent(91.349), "91.35 %"),
        (lambda: quantities.points(-0.35), "−0.35 pt"),
        (lambda: quantities.points(0.001), "±0.00 pt"),
        (lambda: quantities.points(0.1), "+0.10 pt"),
        (lambda: quantities.quality(91.349, "%"), "91.35 %"),
        (lambda: quantities.quality(0.0821437, ""), "0.08214"),
        (lambda: quantities.quality(1234.56, ""), "1,235"),
        (lambda: quantities.quality(None, ""), "–"),
        (lambda: quantities.quality_interval(90.04, 92.46, "%"), "[90.0, 92.5]"),
        (lambda: quantities.quality_interval(0.08156, 0.0879612, ""), "[0.08156, 0.08796]"),
        (lambda: quantities.quality_change(-0.35, "%"), "−0.35 pt"),
        (lambda: quantities.quality_change(0.0025213, ""), "+0.00252"),
        (lambda: quantities.quality_change(-0.0025213, ""), "−0.00252"),
        (lambda: quantities.quality_change(0.0, ""), "±0"),
        (lambda: quantities.quality_change_interval(-0.951, 0.249, "%"), "[−0.95, +0.25]"),
        (lambda: quantities.drop(1.0, "%"), "1.00 pt"),
        (lambda: quantities.drop(0.003, ""), "0.003"),
        (lambda: quantities.measured(8.3123, "ms"), "8.31 ms"),
        (lambda: quantities.measured(1_111_872.4, "B"), "1.11 MB"),
        (lambda: quantities.measured(None, "B"), "–"),
        (lambda: quantities.measured_interval(8.29, 8.34, "ms"), "[8.29, 8.34]"),
        (lambda: quantities.measured_interval(8.3, 8.3, "ms"), ""),
        (lambda: quantities.measured_interval(8.29, None, "ms"), "[8.29, ∞]"),
        (lambda: quantities.measured_interval(1e6, 1.2e6, "B"), "[1.00 MB, 1.20 MB]"),
        (lambda: quantities.against_target(-2.2), "2.2 % under"),
        (lambda: quantities.against_target(0.34), "0.34 % over"),
        (lambda: quantities.against_target(67.06), "67 % over"),
        (lambda: quantities.against_target(0.0), "on target"),
        (lambda: quantities.change(200, 110), "−45 %"),
        (lambda: quantities.change(100, 100), "unchanged"),
        (lambda: quantities.speedup(14.2, 8.31), "1.71× faster"),
        (lambda: quantities.speedup(8, 8.4), "1.05× slower"),
        (lambda: quantities.speedup(8, 8.001), "same speed"),
        (lambda: quantities.size(999), "999 B"),
        (lambda: quantities.size(1_023_456), "1.02 MB"),
        (lambda: quantities.size(999_800), "1.00 MB"),
        (lambda: quantities.count(462_874), "463 k"),
        (lambda: quantities.count(3_710_000_000), "3.71 G"),
        (lambda: quantities.count(960), "960"),
        (lambda: quantities.duration(0.42), "0.42 s"),
        (lambda: quantities.duration(12.34), "12.3 s"),
        (lambda: quantities.duration(59.99), "1 min 00 s"),
        (lambda: quantities.duration(3599.9), "1 h 00 min"),
        (lambda: quantities.duration(3725), "1 h 02 min"),
    ],
)
def test_spellings(call, text):
    assert call() == text
