"""The core files are complete, and what they make of instructions is what was measured on the cores."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.arm.corrections import corrected, mca_options
from targets.arm.inorder import block_cycles, straight_cycles
from targets.arm.operands import Operands, operands_of
from targets.arm.parts import LLVM, QEMU
from targets.core import CORES, read_core
from targets.errors import UsageError

NAMES = sorted(path.stem for path in CORES.glob("*.toml"))
WANTED = {
    *("cortex-a53", "cortex-a55", "cortex-a55-dotprod", "cortex-a57", "cortex-a72", "cortex-a73", "cortex-a75"),
    *("cortex-a76", "cortex-a77", "cortex-a78", "cortex-a510", "cortex-a710", "cortex-a715"),
    *("cortex-x1", "cortex-x2", "cortex-x3", "exynos-m4", "kryo"),
}
COPIES = 32  # independent instructions in a row, so that throughput limits and not latency

# insn_bench_aarch64 (instructions a cycle): results/{raspberry-pi-3_cortex-a53,nxp_lx2160a_a72,aws_graviton2,
# snapdragon_8cx_gen3_x1}.md; the Graviton2's Neoverse N1 has the pipelines of the Cortex-A76.
# For the Cortex-A55: cpufp on the RK3588, 14.59 GFLOPS and 58.4 GOPS at 1.82 GHz.
MEASURED = {
    "fmla v{d}.4s, v30.4s, v31.4s": {"a53": 0.99, "a55-dotprod": 1.0, "a72": 1.0, "a76": 2.0, "x1": 3.51},
    "fmla v{d}.4s, v30.4s, v31.s[3]": {"a53": 0.99, "a55-dotprod": 1.0, "a72": 1.0, "a76": 2.0, "x1": 2.73},
    "fmla v{d}.8h, v30.8h, v31.8h": {"a55-dotprod": 1.0, "a76": 2.0, "x1": 3.48},
    "sdot v{d}.4s, v30.16b, v31.16b": {"a55-dotprod": 1.0, "a76": 2.0, "x1": 4.0},
    "sdot v{d}.4s, v30.16b, v31.4b[3]": {"a55-dotprod": 1.0, "a76": 2.0, "x1": 3.99},
    "smlal v{d}.4s, v30.4h, v31.4h": {"a53": 0.99, "a72": 1.0, "a76": 1.0, "x1": 1.97},
    "fadd v{d}.4s, v30.4s, v31.4s": {"a53": 0.99, "a72": 1.0, "a76": 2.0, "x1": 4.0},
    "fmul v{d}.4s, v30.4s, v31.4s": {"a53": 0.99, "a72": 1.0, "a76": 2.0, "x1": 4.0},
    "fmax v{d}.4s, v30.4s, v31.4s": {"a53": 0.99, "a76": 2.0, "x1": 4.0},
    "zip1 v{d}.4s, v30.4s, v31.4s": {"a53": 0.99, "a76": 2.0, "x1": 4.0},
    "dup v{d}.4s, v31.s[3]": {"a53": 0.99, "a76": 2.0, "x1": 4.0},
    "ldr q{d}, [x20, #16]": {"a53": 0.5, "a72": 1.0, "a76": 2.0, "x1": 3.0},
    "ldp q{d}, q{e}, [x20, #32]": {"a53": 0.25, "a72": 0.5, "a76": 1.0},
    "ld1 {{ v{d}.4s }}, [x20]": {"a53": 0.5, "a72": 1.0, "a76": 2.0, "x1": 3.0},
    "ld1 {{ v0.4s, v1.4s }}, [x20]": {"a53": 0.25, "a72": 0.5, "a76": 1.0},
    "ld1 {{ v0.4s, v1.4s, v2.4s }}, [x20]": {"a53": 0.17, "a72": 0.33, "a76": 0.67, "x1": 1.0},
    "ld1 {{ v0.4s, v1.4s, v2.4s, v3.4s }}, [x20]": {"a53": 0.12, "a72": 0.25, "a76": 0.5, "x1": 0.75},
    "ld1r {{ v{d}.4s }}, [x20]": {"a53": 0.99, "a72": 1.0, "a76": 2.0},
    "str q{d}, [x20, #16]": {"a53": 1.0, "a72": 0.49, "x1": 1.99},
}
ROWS = [(f"cortex-{core}", text, rate) for text, rows in MEASURED.items() for core, rate in rows.items()]

# qsdr-benchmarks by Daniel Estevez, cycles on a Cortex-A53 from first to last issue.
PAIRS = {
    ("ldr q0, [x1]", "fadd v0.4s, v0.4s, v0.4s"): 5,
    ("ldp q0, q1, [x1]", "fadd v0.4s, v0.4s, v0.4s"): 5,
    ("ldp q0, q1, [x1]", "fadd v1.4s, v1.4s, v1.4s"): 7,
    ("ldr d0, [x1]", "fadd v0.4s, v0.4s, v0.4s"): 4,
    ("ldr d0, [x1]", "ldr d1, [x1]", "fadd v1.4s, v1.4s, v1.4s"): 5,
    ("ldr d0, [x1]", "fadd v1.4s, v1.4s, v1.4s"): 2,
    ("fadd v1.4s, v1.4s, v1.4s", "ldr d0, [x1]"): 2,
    ("fadd v1.2s, v1.2s, v1.2s", "ldr d0, [x1]"): 1,
    ("ldr x0, [x1]", "fadd v0.4s, v0.4s, v0.4s"): 2,
    ("fadd v0.4s, v0.4s, v0.4s", "ldr x0, [x1]"): 1,
    ("ldr d0, [x1]", "mov v1.d[1], x0"): 1,
    ("ldr d0, [x1]", "mov v0.d[1], x0"): 2,
    ("mov v0.d[1], x0", "fadd v0.4s, v0.4s, v0.4s"): 3,
    ("ld1 { v0.d }[0], [x1]", "mov v1.d[1], x0"): 2,
    ("fadd v0.4s, v0.4s, v0.4s", "str q1, [x1]"): 2,
    ("mov v0.d[1], x0", "str q1, [x1]"): 2,
    ("ldr d0, [x1]", "str d1, [x1, #64]"): 2,
    ("fadd v0.4s, v0.4s, v0.4s", "str x0, [x1]"): 1,
    ("stp q0, q1, [x1]", "fadd v2.4s, v2.4s, v2.4s"): 3,
    ("mov x0, v1.d[0]", "fadd v0.4s, v0.4s, v0.4s"): 2,
    ("fmul v0.4s, v0.4s, v31.4s", "fmul v0.4s, v0.4s, v31.4s"): 5,
    ("nop", "nop"): 1,
}
# The same source: a saxpy loop as a compiler writes it, 16 cycles a turn, and half of one written by hand, 32 for both.
SAXPY = """add x9, x10, x11; add x11, x11, #32; cmp x11, x12; ldp q0, q1, [x9]; fmul v0.4s, v0.4s, v2.s[0]
fmul v1.4s, v1.4s, v2.s[0]; fadd v0.4s, v0.4s, v3.4s; fadd v1.4s, v1.4s, v3.4s; stp q0, q1, [x9]; b.ne #-36"""
SCHEDULED = """fmul v0.4s, v0.4s, v31.4s; ldr x0, [x20, #136]; fmul v1.4s, v1.4s, v31.4s; fmul v2.4s, v2.4s, v31.4s
ldr x1, [x20, #152]; fmul v3.4s, v3.4s, v31.4s; ldr x2, [x20, #168]; fadd v0.4s, v0.4s, v30.4s; ldr x3, [x20, #184]
fadd v1.4s, v1.4s, v30.4s; ldr x4, [x20, #176]; st1 { v4.4s, v5.4s, v6.4s, v7.4s }, [x20]; ldr d5, [x20, #144]
mov v7.d[1], x3; ldr d6, [x20, #160]; mov v5.d[1], x1; ldr d4, [x20, #128]!; mov v6.d[1], x2; mov v7.d[0], x4
mov v4.d[1], x0; fadd v2.4s, v2.4s, v30.4s; fadd v3.4s, v3.4s, v30.4s"""
EXAMPLES = (
    *("fmla v{d}.4s, v{n}.4s, v{m}.4s", "fmls v{d}.4s, v{n}.4s, v{m}.s[3]", "fmla v{d}.8h, v{n}.8h, v{m}.h[1]"),
    *("fmax v{d}.4s, v{n}.4s, v{m}.4s", "zip1 v{d}.4s, v{n}.4s, v{m}.4s", "uzp2 v{d}.8h, v{n}.8h, v{m}.8h"),
    *("sdot v{d}.4s, v{n}.16b, v{m}.4b[3]", "udot v{d}.4s, v{n}.16b, v{m}.16b", "fadd v{d}.8h, v{n}.8h, v{m}.8h"),
    *(
        "ldr q{d}, [x{n}], #16",
        "ldp q{d}, q{m}, [x{n}], #32",
        "ld1 {{ v{d}.4s }}, [x{n}], x{m}",
        "add x{d}, x{n}, x{m}",
    ),
)


def core(name: str):
    return read_core(CORES / f"{name}.toml")


def reads(operands: Operands) -> set[str]:
    return {*operands.sources, *filter(None, [operands.accumulator])}


def lines(text: str) -> list[str]:
    return [line.strip() for line in re.split(r"[;\n]", text)]


def copies(text: str) -> list[str]:
    return [text.format(d=index % 30, e=(index + 15) % 30) for index in range(COPIES)]


def test_every_core_is_there():
    assert WANTED <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_core_is_complete(name):
    """Reading checks fields, types and sources; this checks what goes together."""
    subject = core(name)
    assert subject.window == 0 or not subject.issue
    assert all(rule.source for rule in (*subject.corrections, *subject.issue))
    assert {"fp", "asimd", "cpuid"} <= set(subject.features)
    assert ("asimddp" in subject.features) <= ("asimdhp" in subject.features)
    assert ("i8mm" in subject.features) <= ("asimddp" in subject.features)
    if subject.issue:
        assert subject.issue[-1].match == "", "the last rule takes every other instruction"


@pytest.mark.parametrize("what", ["corrections", "issue"])
def test_a_rule_with_a_misspelt_field_is_refused(tmp_path, what):
    text = (CORES / "cortex-a76.toml").read_text()
    path = tmp_path / "cortex-a76.toml"
    path.write_text(text + f'\n[[{what}]]\nmatch = "fadd"\npattern = "fadd"\nlatencies = 4\nsource = "none"\n')
    with pytest.raises(UsageError, match="cannot be used") as caught:
        read_core(path)
    assert what in str(caught.value.why)


@pytest.mark.parametrize("name", [name for name in NAMES if core(name).corrections])
@given(d=st.integers(0, 28), n=st.integers(0, 28), m=st.integers(0, 28))
def test_a_correction_keeps_the_registers(name, d, n, m):
    subject = core(name)
    for example in EXAMPLES:
        line = example.format(d=d, n=n, m=m)
        before, after = operands_of(line), operands_of(corrected(line, subject))
        step = {f"x{m}"} if line.startswith("ld1") else set()  # of a post-indexed load, which a correction may drop
        assert after.results == before.results
        assert reads(before) - step <= reads(after) <= reads(before)


def test_every_correction_is_exercised():
    for name in NAMES:
        for correction in core(name).corrections:
            texts = [example.format(d=1, n=2, m=3) for example in EXAMPLES]
            assert any(re.fullmatch(correction.pattern, text) for text in texts), correction.pattern


def test_what_needs_no_correction_is_left_alone():
    assert corrected("\tadd\tx0, x1, x2", core("cortex-x3")) == "\tadd\tx0, x1, x2"
    assert corrected("\tadd\tx0, x1, x2", core("cortex-a76")) == "add x0, x1, x2"


@pytest.mark.parametrize(("name", "text", "rate"), [row for row in ROWS if core(row[0]).issue])
def test_in_order_throughput_is_as_measured(name, text, rate):
    assert COPIES / block_cycles(copies(text), core(name)) == pytest.approx(rate, rel=0.1)


@pytest.mark.parametrize(("block", "cycles"), PAIRS.items())
def test_a53_pairs_take_the_measured_cycles(block, cycles):
    assert straight_cycles(block, core("cortex-a53")) == cycles


def test_a53_loops_take_the_measured_cycles():
    half = lines(SCHEDULED)
    other = [re.sub(r"\b([vd])([0-7])\b", lambda hit: f"{hit[1]}{(int(hit[2]) + 4) % 8}", line) for line in half]
    assert block_cycles(lines(SAXPY), core("cortex-a53")) == 16
    assert block_cycles(half + [line.replace("x20", "x21") for line in other], core("cortex-a53")) == 32


def test_a53_accumulation_is_forwarded():
    assert block_cycles(["fmla v0.4s, v1.4s, v2.4s"], core("cortex-a53")) == 4
    assert block_cycles(["fmla v0.4s, v0.4s, v2.4s"], core("cortex-a53")) == 8
    assert block_cycles(["smlal v0.4s, v1.4h, v2.4h"], core("cortex-a53")) == 1


@pytest.mark.emulator
def test_out_of_order_throughput_is_as_measured(emulator):
    wrong = []
    for name in {name for name, _, _ in ROWS if not core(name).issue}:
        rows = [(text, rate) for row, text, rate in ROWS if row == name]
        cycles = analyse([[corrected(line, core(name)) for line in copies(text)] for text, _ in rows], name, emulator)
        for (text, rate), found in zip(rows, cycles):
            if COPIES / found != pytest.approx(rate, rel=0.1):
                wrong.append(f"{name}: {text}: {COPIES / found:.2f} a cycle, measured {rate}")
    assert not wrong


@pytest.mark.emulator
@pytest.mark.parametrize("name", NAMES)
def test_qemu_reports_the_capabilities_that_choose_kernels(name, emulator):
    """HWCAP as QEMU gives it to the runtime agrees with the core's features, bit by bit."""
    done = subprocess.run(
        [
            *(str(emulator.tools / QEMU), "-L", str(emulator.sysroot), "-cpu", core(name).qemu_cpu, "-E"),
            *("LD_SHOW_AUXV=1", "-U", "LD_LIBRARY_PATH", str(emulator.sysroot / "usr/bin/python3.11"), "-c", "pass"),
        ],
        capture_output=True,
        text=True,
        check=True,
        env={"LD_LIBRARY_PATH": emulator.libraries, "PYTHONHOME": "/usr"},
    )
    first, second = (int(re.search(rf"{field}: *(?:0x)?(\w+)", done.stdout)[1], 16) for field in ("HWCAP", "HWCAP2"))
    bits = {
        "asimd": 1,
        "atomics": 8,
        "fphp": 9,
        "asimdhp": 10,
        "asimdrdm": 12,
        "asimddp": 20,
        "sve": 22,
        "asimdfhm": 23,
    }
    reported = {feature for feature, bit in bits.items() if first >> bit & 1}
    reported |= {feature for feature, bit in {"sve2": 1, "i8mm": 13, "bf16": 14}.items() if second >> bit & 1}
    assert reported == {*bits, "sve2", "i8mm", "bf16"} & set(core(name).features)


def analyse(blocks: list[list[str]], name: str, emulator) -> list[float]:
    text = [f"# LLVM-MCA-BEGIN {i}\n" + "\n".join(block) + f"\n# LLVM-MCA-END {i}" for i, block in enumerate(blocks)]
    done = subprocess.run(
        [
            *(str(emulator.tools / LLVM / "llvm-mca"), "--mtriple=aarch64", f"--mcpu={core(name).mca_cpu}"),
            *("--mattr=+all", "--iterations=100", "--all-views=false", "--summary-view", "--json"),
            *mca_options(core(name)),
        ],
        input="\n".join(text) + "\n",
        capture_output=True,
        text=True,
        check=True,
        env={"LD_LIBRARY_PATH": emulator.libraries},
    )
    views = {region["Name"]: region["SummaryView"] for region in json.loads(done.stdout)["CodeRegions"]}
    return [views[str(i)]["TotalCycles"] / views[str(i)]["Iterations"] for i in range(len(blocks))]
