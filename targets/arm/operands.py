"""Which registers an A64 instruction reads and writes, from its assembly text.

Enough of the instruction set for what compilers and hand-written kernels put into hot loops. `v0`, `q0`, `d0` and `s0`
are one register, as are `x0` and `w0`; the flags are a register called `nzcv`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

REGISTER = re.compile(r"\b(?:([bhsdqv])|([wx]))(\d{1,2})\b|\bw?(sp)\b")
ADDRESS = re.compile(r"\[(?:x\d+|sp)[^]]*\]!?")
NO_RESULT = re.compile(
    r"st[rpun1-4]|stlr|cmp|cmn|tst|f?ccm[pn]|fcmpe?$|b$|b\.|br$|blr?$|cbn?z|tbn?z|ret|prf|nop|hint|yield|d[ms]b|isb|svc"
)
MANY_RESULTS = re.compile(r"ld(p|np|psw|[1-4]r?)$")
ACCUMULATES = re.compile(
    r"f?ml[as]l?2?$|[su]ml[as]l2?$|sqrdml[as]h$|(us|su|s|u|bf)dot$|(bf|s|u|us)mmla$|[su]adalp$|[su]r?sra$|[su]abal?2?$"
)
READS_RESULT = re.compile(
    r"movk$|bsl$|bi[tf]$|tbx$|s[lr]i$|bfi$|bfxil$|bfm$|fcvt[lnx]+2$|(sq|uq|sqr|uqr|r)?(sh|x)t?r?u?n2$|sqxtun2$|"
    r"fcmla$|fcadd$|aes[ed]$"
)
LANE = re.compile(r"\{? ?v\d+\.[bhsd] ?\}?\[\d+\]")
SETS_FLAGS = re.compile(r"(cmp|cmn|tst|adds|subs|ands|bics|negs|adcs|sbcs|f?ccm[pn]|fcmpe?)$")
READS_FLAGS = re.compile(r"b\.|f?cs|cset|cinc|cinv|cneg|f?ccm|adc|sbc|ngc")


@dataclass(frozen=True)
class Operands:
    """Register names; `xzr` is none."""

    sources: tuple[str, ...]  # read at issue
    results: tuple[str, ...]
    data: tuple[str, ...] = ()  # what a store stores, or the general register that is put into a lane
    accumulator: str = ""  # read and written by a multiply-accumulate or its like
    merged: str = ""  # vector register of which one lane is written
    base: str = ""  # written back by a pre- or post-indexed access


@lru_cache(maxsize=1 << 16)
def operands_of(line: str) -> Operands:
    """Registers of one instruction, e.g. "fmla v0.4s, v1.4s, v2.s[0]"."""
    mnemonic, _, text = line.partition(" ")
    address = ADDRESS.search(text)
    before, after = (text[: address.start()], text[address.end() :]) if address else (text, "")
    named, sources, results = _registers(before), _registers(after), []
    data, accumulator, merged, base = (), "", "", ""
    if mnemonic.startswith("st") and address:
        data = tuple(named)
    elif NO_RESULT.match(mnemonic):
        sources += named
    elif named:
        count = len(named) if MANY_RESULTS.match(mnemonic) else 1
        results, sources = named[:count], sources + named[count:]
        if ACCUMULATES.match(mnemonic):
            accumulator = results[0]
        elif LANE.match(before):
            merged, data, sources = results[0], tuple(sources), []
        elif READS_RESULT.match(mnemonic):
            sources += results
    if address:
        registers = _registers(address.group())
        sources += registers
        base = registers[0] if address.group().endswith("!") or after.strip(" ,") else ""
    if SETS_FLAGS.match(mnemonic):
        results.append("nzcv")
    if READS_FLAGS.match(mnemonic):
        sources.append("nzcv")
    return Operands(tuple(dict.fromkeys(sources)), tuple(results), data, accumulator, merged, base)


def _registers(text: str) -> list[str]:
    return ["sp" if stack else ("v" if vector else "x") + number for vector, _, number, stack in REGISTER.findall(text)]
