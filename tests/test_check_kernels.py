"""The channel without noise: what compiled loops consist of, and what they lost."""

import doctest
import json
import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gradmark.tracking.check import assembly, kernels

# Written by LLVM 20, abridged where a line says nothing about loops. Lines of directives are kept.

X86_AVX512 = """
    .section	.rodata.cst4,"aM",@progbits,4
.LCPI0_0:
	.long	0x3f800000
	.globl	_ZN8__main__4elem
_ZN8__main__4elem:
	testq	%r8, %r8
	jle	.LBB0_18
	movabsq	$.LCPI0_0, %r9
	jmp	.LBB0_12
.LBB0_5:
	vbroadcastss	(%r9), %zmm0
	xorl	%r10d, %r10d
	.p2align	4
.LBB0_6:
	vmovups	(%rcx,%r10,4), %zmm1
	vmovups	64(%rcx,%r10,4), %zmm2
	vmulps	%zmm1, %zmm1, %zmm1
	vmulps	%zmm2, %zmm2, %zmm2
	vaddps	%zmm0, %zmm1, %zmm1
	vaddps	%zmm0, %zmm2, %zmm2
	vmovups	%zmm1, (%rax,%r10,4)
	vmovups	%zmm2, 64(%rax,%r10,4)
	addq	$32, %r10
	cmpq	%r10, %rdx
	jne	.LBB0_6
	cmpq	%rdx, %r8
	je	.LBB0_18
.LBB0_12:
	vmovss	(%r9), %xmm0
.LBB0_14:
	vmovss	(%rcx,%rsi,4), %xmm1
	decq	%r9
	vmulss	%xmm1, %xmm1, %xmm1
	vaddss	%xmm0, %xmm1, %xmm1
	vmovss	%xmm1, (%rax,%rsi,4)
	leaq	1(%rsi), %rsi
	jne	.LBB0_14
.LBB0_18:
	xorl	%eax, %eax
	vzeroupper
	retq
.Lfunc_end0:
	.size	_ZN8__main__4elem, .Lfunc_end0-_ZN8__main__4elem
"""

X86_SSE = """
elem:
	movapd	.LCPI0_0(%rip), %xmm0
.LBB0_4:
	movupd	(%rdi,%rcx,8), %xmm1
	mulpd	%xmm1, %xmm1
	addpd	%xmm0, %xmm1
	movupd	%xmm1, (%rsi,%rcx,8)
	addq	$2, %rcx
	cmpq	%rcx, %rax
	jne	.LBB0_4
	retq
"""

X86_INDIRECT_CALLS = """
activate:
	movabsq	$expf, %r13
	movabsq	$numba_gammaf, %rax
	movq	%rax, 24(%rsp)
	movq	%r13, %rbp
	movabsq	$powf, %r13
	jmp	.LBB0_2
.LBB0_1:
	movabsq	$tanhf, %rbp
	retq
.LBB0_2:
	vmovss	(%r15,%r12,4), %xmm0
	callq	*%rbp
	callq	*24(%rsp)
	callq	*24(%r14)
	movabsq	$erfcf, %rax
	callq	*%rax
	vmovss	%xmm0, (%r14,%r12,4)
	incq	%r12
	cmpq	%r12, %rbx
	jne	.LBB0_2
	callq	*%r13
	retq
"""

X86_APPLE = """
_withexp:
	movabsq	$_expf, %r13
LBB1_2:
	vmovss	(%r15,%r12,4), %xmm0
	callq	*%r13
	vaddss	12(%rsp), %xmm0, %xmm0  ## 4-byte Folded Reload
	vmovss	%xmm0, (%r14,%r12,4)
	incq	%r12
	cmpq	%r12, %rbx
	jne	LBB1_2
	retq
"""

A64_NEON = """
	.globl	elem
elem:
	cmp	x2, #1
	b.lt	.LBB0_8
.LBB0_3:
	fmov	v0.4s, #1.00000000
.LBB0_4:
	ldp	q2, q1, [x10, #-16]
	subs	x11, x11, #8
	fmul	v1.4s, v1.4s, v1.4s
	fmul	v2.4s, v2.4s, v2.4s
	fadd	v1.4s, v1.4s, v0.4s
	fadd	v2.4s, v2.4s, v0.4s
	stp	q2, q1, [x9, #-16]
	add	x9, x9, #32
	b.ne	.LBB0_4
	cmp	x2, x8
	b.eq	.LBB0_8
.LBB0_7:
	ldr	s1, [x8], #4
	subs	x9, x9, #1
	fmul	s1, s1, s1
	fadd	s1, s1, s0
	str	s1, [x10], #4
	b.ne	.LBB0_7
.LBB0_8:
	ret
"""

A64_SVE = """
elem:
	ptrue	p0.d
.LBB0_4:
	ldr	z0, [x12]
	subs	x14, x14, x9
	add	x12, x12, x11
	fmul	z0.d, z0.d, z0.d
	fadd	z0.d, p0/m, z0.d, #1.0
	str	z0, [x13]
	add	x13, x13, x11
	b.ne	.LBB0_4
	ret
"""

A64_APPLE = """
_elem:
	cbz	x9, LBB0_9
LBB0_6:
	ldp	q1, q2, [x10, #-32]
	fmul.4s	v1, v1, v1
	fadd.4s	v1, v1, v0
	stp	q1, q2, [x11, #-32]
	subs	x12, x12, #16
	b.ne	LBB0_6
LBB0_9:
	ret
"""

A64_CALL = """
withexp:
	cmp	x2, #1
	b.lt	.LBB1_4
.LBB1_2:
	ldr	s8, [x21], #4
	fmov	s0, s8
	bl	expf
	fadd	s0, s8, s0
	subs	x19, x19, #1
	str	s0, [x20], #4
	b.ne	.LBB1_2
.LBB1_4:
	ret
"""

A64_INDIRECT_CALL = """
withexp:
	adrp	x22, :got:exp
	ldr	x22, [x22, :got_lo12:exp]
.LBB1_2:
	ldr	d0, [x21], #8
	blr	x22
	str	d0, [x20], #8
	subs	x19, x19, #1
	b.ne	.LBB1_2
	ret
"""


@pytest.mark.parametrize(
    ("machine", "text", "expected"),
    [
        ("x86_64", X86_AVX512, (16, 512, "f32", 2, 4, 2, 3, 3)),
        ("AMD64", X86_SSE, (2, 128, "f64", 1, 2, 0, 1, 1)),
        ("x86_64", X86_APPLE, (1, 32, "f32", 1, 0, 1, 2, 1)),
        ("aarch64", A64_NEON, (4, 128, "f32", 2, 4, 2, 2, 2)),
        ("aarch64", A64_SVE, (2, 128, "f64", 1, 2, 0, 1, 1)),
        ("arm64", A64_APPLE, (4, 128, "f32", 1, 2, 0, 1, 1)),
        ("aarch64", A64_CALL, (1, 32, "f32", 1, 0, 1, 1, 1)),
        ("aarch64", A64_INDIRECT_CALL, (1, 64, "f64", 1, 0, 0, 1, 1)),
    ],
    ids=["avx512", "sse", "x86-apple", "neon", "sve", "a64-apple", "a64-call", "a64-indirect"],
)
def test_recorded_assembly(machine, text, expected):
    found = assembly.summarize(text, machine)
    assert found["inspected"]
    keys = ("lanes", "bits", "dtype", "loops", "packed", "scalar", "loads", "stores")
    assert tuple(found[key] for key in keys) == expected


@pytest.mark.parametrize(
    ("machine", "text", "math", "calls"),
    [
        ("x86_64", X86_AVX512, [], 0),
        # Neither what an unreachable block puts into the register nor what is called behind the loop.
        ("x86_64", X86_INDIRECT_CALLS, ["erfcf", "expf", "gammaf"], 4),
        ("x86_64", X86_SSE.replace("	addq	$2", "	callq	exp@PLT\n	addq	$2"), ["exp"], 1),
        ("x86_64", X86_APPLE, ["expf"], 1),
        ("aarch64", A64_CALL, ["expf"], 1),
        ("aarch64", A64_INDIRECT_CALL, ["exp"], 1),
        ("aarch64", A64_CALL.replace("expf", "NRT_decref"), [], 1),
    ],
)
def test_calls_of_the_math_library(machine, text, math, calls):
    found = assembly.summarize(text, machine)
    assert (found["math"], found["calls"]) == (math, calls)


@pytest.mark.parametrize(
    ("symbol", "lanes", "bits", "dtype"),
    [
        ("__svml_expf16_ha", 16, 512, "f32"),
        ("__svml_exp22", 2, 128, "f64"),
        ("__svml_log108", 8, 512, "f64"),
        ("__svml_erf4", 4, 256, "f64"),
        ("__svml_atan2f8", 8, 256, "f32"),
    ],
)
def test_a_vector_function_is_arithmetic_and_no_scalar_call(symbol, lanes, bits, dtype):
    found = assembly.summarize(X86_APPLE.replace("$_expf", f"${symbol}").replace("vaddss", "vmovss"), "x86_64")
    assert (found["lanes"], found["bits"], found["dtype"], found["math"]) == (lanes, bits, dtype, [])


def test_what_is_not_in_a_loop_does_not_count():
    """A sum's packed end, an out-of-line block that jumps back, and Numba's wrapper around the kernel."""
    text = """
    total:
    .LBB0_1:
        vaddss (%rdi,%rax,4), %xmm0, %xmm0
        incq %rax
        jne .LBB0_1
        vaddps %zmm0, %zmm1, %zmm0
    .LBB0_2:
        vmulps %zmm0, %zmm1, %zmm0
        retq
    .LBB0_3:
        vdivps %zmm0, %zmm1, %zmm0
        jmp .LBB0_2
    _ZN7cpython5total:
    .LBB1_1:
        vaddps %ymm0, %ymm1, %ymm0
        jne .LBB1_1
        retq
    """
    found = assembly.summarize(text, "x86_64")
    assert (found["lanes"], found["loops"], found["packed"], found["scalar"]) == (1, 1, 0, 1)


def test_a_loop_is_followed_out_of_line_and_through_a_table():
    text = """
    steps:
    .LBB4_1:
        jmp .LBB4_3
    .LBB4_2:
        retq
    .LBB4_3:
        incq %rax
        je .LBB4_2
        jmpq *(%rcx,%rax,8)
    .LBB4_4:
        vmulps (%rdi), %ymm1, %ymm2
        jmp .LBB4_1
    .Lfunc_end4:
        .section .rodata
    .LJTI4_0:
        .quad .LBB4_2
        .quad .LBB4_4
    """
    assert assembly.summarize(text, "x86_64")["lanes"] == 8
    assert assembly.summarize(text.replace(".quad .LBB4_4", ""), "x86_64")["loops"] == 0


def test_the_inner_loop_decides_and_the_outer_where_only_it_computes():
    text = """
    rows:
    .LBB0_1:
        vmulps %zmm0, %zmm1, %zmm0
    .LBB0_2:
        INNER
        incq %rax
        jne .LBB0_2
        incq %rbx
        jne .LBB0_1
        retq
    """
    inner = assembly.summarize(text.replace("INNER", "vaddsd (%rdi), %xmm0, %xmm0"), "x86_64")
    assert (inner["lanes"], inner["dtype"], inner["loops"]) == (1, "f64", 1)
    outer = assembly.summarize(text.replace("INNER", "movq (%rdi), %rcx"), "x86_64")
    assert (outer["lanes"], outer["dtype"]) == (16, "f32")


def test_a_loop_whose_entry_stands_behind_the_loop_inside_it():
    """LLVM lays out a rotated loop so; the entry is where the loop is reached, not what stands first."""
    text = """
    rows:
        jmp .LBB0_3
    .LBB0_1:
        vaddsd (%rdi,%rax,8), %xmm0, %xmm0
        incq %rax
        jne .LBB0_1
    .LBB0_3:
        vmulps %zmm0, %zmm1, %zmm0
        decq %rbx
        jne .LBB0_1
        retq
    """
    found = assembly.summarize(text, "x86_64")
    assert (found["lanes"], found["dtype"], found["loops"]) == (1, "f64", 1)


@pytest.mark.parametrize(
    ("machine", "body", "lanes", "dtype"),
    [
        ("x86_64", "vpaddd (%rdi), %ymm0, %ymm0", 8, "i32"),
        ("x86_64", "vpmuludq %zmm1, %zmm2, %zmm0", 8, "i64"),
        ("x86_64", "imulq %rsi, %rcx", 1, None),
        ("x86_64", "addq (%rdi,%rax,8), %rcx", 1, None),
        ("x86_64", "vxorps (%rdi), %zmm0, %zmm1", 16, None),
        ("x86_64", "xorl $-2147483648, %ecx", 1, None),
        ("x86_64", "vxorps %ymm0, %ymm0, %ymm0", None, None),  # Sets a register to zero.
        ("x86_64", "vmovups (%rdi), %ymm0", None, None),
        ("x86_64", "cmpq %rcx, 8(%rsp)", None, None),  # The end of the loop, spilled.
        ("x86_64", "vfnmadd231pd (%rdi), %ymm0, %ymm1 {%k1} {z}", 4, "f64"),
        ("x86_64", "vcmpltps %zmm0, %zmm1, %k1", 16, "f32"),
        ("x86_64", "vsqrtsd %xmm0, %xmm0, %xmm0", 1, "f64"),
        ("x86_64", "vcvtps2pd (%rdi), %zmm0", None, None),
        ("aarch64", "add v0.4s, v0.4s, v1.4s", 4, "i32"),
        ("aarch64", "mul x9, x9, x10", 1, None),
        ("aarch64", "ldr q0, [x9]", None, None),
        ("aarch64", "fmla v0.2d, v1.2d, v2.d[0]", 2, "f64"),
        ("aarch64", "fmul s0, s1, v2.s[0]", 1, "f32"),
        ("aarch64", "fcmgt p1.s, p0/z, z0.s, z1.s", 4, "f32"),
        ("aarch64", "fcvtl v0.2d, v1.2s", None, None),
    ],
)
def test_what_counts_as_arithmetic(machine, body, lanes, dtype):
    branch = "jne" if machine == "x86_64" else "b.ne"
    found = assembly.summarize(f"f:\n.LBB0_1:\n\t{body}\n\t{branch} .LBB0_1\n", machine)
    assert (found["lanes"], found["dtype"], found["loops"]) == (lanes, dtype, 1)


@pytest.mark.parametrize(
    ("text", "machine", "reason"),
    [
        (X86_AVX512, "riscv64", "riscv64"),
        (X86_AVX512, "", "this processor"),
        ("", "x86_64", "without instructions"),
        ('\t.file	"<string>"\n\t.section	".note.GNU-stack","",@progbits\n', "x86_64", "without instructions"),
    ],
)
def test_what_cannot_be_inspected_says_why(text, machine, reason):
    found = assembly.summarize(text, machine)
    assert set(found) == {"inspected", "reason"}
    assert not found["inspected"]
    assert reason in found["reason"]


@pytest.mark.parametrize("module", [assembly, kernels], ids=["assembly", "kernels"])
def test_examples(module):
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed


# The comparison.


def kernel(name="m.f", signature="int64", *, lanes=16, bits=512, dtype="f32", math=(), **counted):
    known = {"inspected": True, "reason": None, "lanes": lanes, "bits": bits, "dtype": dtype, "loops": 1}
    return {"name": name, "signature": signature, **known, "packed": 7, "math": list(math), **counted}


def unknown(name="m.f", reason="cached"):
    return {"name": name, "signature": "int64", "inspected": False, "reason": reason}


SCALAR = {"lanes": 1, "bits": 32}
F64 = {"lanes": 8, "bits": 512, "dtype": "f64"}


@pytest.mark.parametrize(
    ("base", "head", "expected"),
    [
        ({}, {}, []),
        ({}, SCALAR, ["lost vectorization: 16 lanes → 1"]),
        ({}, {"lanes": 8, "bits": 256}, ["narrower vectors: 16 lanes → 8"]),
        (SCALAR, {}, []),
        ({}, {"packed": 3}, []),
        ({}, F64, ["computes in float64 instead of float32"]),
        (F64, {}, []),
        (F64, {"lanes": 8, "bits": 256}, []),
        (
            {},
            {"lanes": 1, "bits": 64, "dtype": "f64"},
            ["lost vectorization: 16 lanes → 1", "computes in float64 instead of float32"],
        ),
        ({}, {"dtype": "f32+f64"}, ["computes partly in float64, not in float32 alone"]),
        ({"dtype": "f32+f64"}, F64, []),
        ({}, {"math": ["expf"]}, ["calls expf in its loop, one element at a time"]),
        ({"math": ["expf"]}, {}, []),
        ({"math": ["expf"]}, {"math": ["expf"]}, []),
        ({"math": ["tanhf"]}, {"math": ["expf"]}, []),
        ({"math": ["exp"]}, {"math": ["expf"]}, []),
        ({"math": ["erff"]}, {"math": ["erf"]}, []),
        (
            {"math": ["tanhf"]},
            {"math": ["erff", "logf", "tanhf"]},
            ["calls erff and logf in its loop, one element at a time"],
        ),
        ({}, {"lanes": None, "bits": None, "dtype": None}, []),
        ({"lanes": None, "bits": None, "dtype": None}, {"lanes": 1, "bits": 64, "dtype": None}, []),
        ({"dtype": "i32"}, {"lanes": 1, "bits": 64, "dtype": None}, ["lost vectorization: 16 lanes → 1"]),
        ({"dtype": "f32"}, {"lanes": 1, "bits": 64, "dtype": None}, []),
    ],
)
def test_losses(base, head, expected):
    changes = kernels.compare_kernels([kernel(**base)], [kernel(**head)], "bench.time_f")
    assert [change.what for change in changes] == expected
    for change in changes:
        assert (change.kernel, change.benchmark) == ("m.f(int64)", "bench.time_f")
        assert change.head["packed"] == head.get("packed", 7)
        assert change.base["lanes"] == base.get("lanes", 16)
        assert json.dumps([change.base, change.head])


def test_kernels_are_paired_by_name_and_signature():
    base = [kernel("m.f", "int64"), kernel("m.f", "float32"), kernel("m.g"), kernel("m.old")]
    head = [kernel("m.new", **SCALAR), kernel("m.g"), kernel("m.f", "float32", **SCALAR), kernel("m.f", "int64")]
    (change,) = kernels.compare_kernels(base, head, "b")
    assert change.kernel == "m.f(float32)"
    assert kernels.coverage(base, head) == kernels.Coverage(3, 0, 1, 1, ())


def test_what_was_not_inspected_is_counted_and_is_no_change():
    base = [unknown("m.f"), kernel("m.g"), kernel("m.h"), kernel("m.small", lanes=None, loops=0)]
    head = [kernel("m.f", **SCALAR), unknown("m.g", "object mode"), kernel("m.h")]
    assert kernels.compare_kernels(base, head, "b") == []
    assert kernels.coverage(base, head) == kernels.Coverage(1, 2, 0, 0, ("cached", "object mode"))


@pytest.mark.parametrize(
    ("base", "head", "expected"),
    [
        ([16, 16], [16, 1], ["lost vectorization: 16 lanes → 1"]),
        ([1, 16], [16, 1], []),
        ([16, 8], [1, 8], ["lost vectorization: 16 lanes → 1"]),
        ([16], [1, 16], []),
        ([16, 16], [1], []),  # Which of them is the one that is left, nobody can know.
    ],
)
def test_closures_of_one_name(base, head, expected):
    sides = [[kernel(lanes=lanes, bits=32 * lanes) for lanes in side] for side in (base, head)]
    assert [change.what for change in kernels.compare_kernels(*sides, "b")] == expected


# Numba's own kernels, compiled and read in a process as the worker's.

HOST = platform.machine().lower()
needs_numba = pytest.mark.skipif(HOST not in ("x86_64", "amd64", "aarch64", "arm64"), reason="reads x86 and AArch64")

BASE = """
import math
import numba
import numpy as np

@numba.njit
def elementwise(x, out):
    for i in range(x.size):
        out[i] = x[i] * x[i] + np.float32(1)

@numba.njit
def activate(x, out):
    for i in range(x.size):
        out[i] = x[i] / (np.float32(1) + abs(x[i]))

@numba.njit
def carried(x, out):
    last = np.float32(0)
    for i in range(x.size):
        out[i] = x[i] * np.float32(0.5) + x[i]

@numba.njit
def upcast(x, out):
    for i in range(x.size):
        out[i] = x[i] * np.float32(0.1) + np.float32(1)

@numba.njit(parallel=True)
def everywhere(x, out):
    for i in numba.prange(x.size):
        out[i] = np.float32(1) / x[i]

@numba.njit
def gains(x, out):
    last = np.float32(0)
    for i in range(x.size):
        last = last * np.float32(0.5) + math.exp(x[i])
        out[i] = last

@numba.njit(cache=True)
def cached(x, out):
    for i in range(x.size):
        out[i] = x[i] * x[i] + np.float32(1)

@numba.njit(cache=True, parallel=True)
def cached_everywhere(x, out):
    for i in numba.prange(x.size):
        out[i] = x[i] * x[i] + np.float32(1)

@numba.njit
def broken(x, out):
    for i in range(x.size):
        out[i] = x[i] * x[i]

@numba.vectorize(["float32(float32)"])
def vectorized(x):
    return x * x

@numba.guvectorize(["void(float32[:], float32[:])"], "(n)->(n)")
def generalized(x, out):
    for i in range(x.size):
        out[i] = x[i] * x[i]

def factory(constant):
    @numba.njit
    def closure(x, out):
        for i in range(x.size):
            out[i] = x[i] * constant
    return closure

first, second = factory(np.float32(2)), factory(np.float32(3))

@numba.njit(error_model="numpy")
def takes_a_function(f, x, out):
    f(x, out)
"""

NEWTON = """out[i] = x[i]
        while out[i] * out[i] > x[i]:
            out[i] = np.float32(0.5) * (out[i] + np.float32(1))"""
"""Each element takes as many steps as it needs: no vector can."""

HEAD = (
    BASE.replace("x[i] / (np.float32(1) + abs(x[i]))", "x[i] / (np.float32(1) + math.exp(-x[i]))")
    .replace("out[i] = x[i] * np.float32(0.5) + x[i]", "last = last * np.float32(0.5) + x[i]; out[i] = last")
    .replace("x[i] * np.float32(0.1)", "x[i] * 0.1")
    .replace("out[i] = np.float32(1) / x[i]", NEWTON)
    .replace("last = last * np.float32(0.5) + math.exp(x[i])", "last = x[i] + np.float32(1)")
)

RUN = """
import importlib.util, json, sys
import numpy as np
spec = importlib.util.spec_from_file_location("loaded_by_path", sys.argv[1])
assembly = importlib.util.module_from_spec(spec)
spec.loader.exec_module(assembly)
assert assembly.compiled_kernels() == [], "nothing was compiled yet"
import loops

def refuse():
    raise OSError("no text today")

x = np.ones(100, np.float32)
kernels = [value for value in vars(loops).values() if hasattr(value, "py_func") and value is not loops.takes_a_function]
for kernel in kernels:
    kernel(x, x.copy())
loops.elementwise(x.astype(np.float64), x.astype(np.float64))
loops.takes_a_function(loops.elementwise, x, x.copy())
loops.vectorized(x), loops.generalized(x)
next(iter(loops.broken.overloads.values())).library.get_asm_str = refuse
print(json.dumps(assembly.compiled_kernels()))
"""


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """The summaries of base and head, and those of base once more in a process that finds the cache."""
    pytest.importorskip("numba")

    def run(source, folder):
        folder.mkdir(exist_ok=True)
        path = folder / "loops.py"
        if not path.exists():  # Numba's cache goes by the file's time.
            path.write_text(textwrap.dedent(source))
        environment = {**os.environ, "PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(folder / "cache")}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", RUN, assembly.__file__],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    here = tmp_path_factory.mktemp("sides")
    return run(BASE, here / "base"), run(HEAD, here / "head"), run(BASE, here / "base")


def named(side, name, signature="array(float32, 1d, C), array(float32, 1d, C)"):
    (found,) = (k for k in side if k["name"] == f"loops.{name}" and k["signature"] == signature)
    return found


@needs_numba
def test_a_vectorized_kernel(sides):
    found = named(sides[0], "elementwise")
    assert found["inspected"]
    assert found["lanes"] > 1
    assert found["bits"] == 32 * found["lanes"]
    assert found["dtype"] == "f32"
    assert found["math"] == []
    assert min(found["loops"], found["packed"], found["loads"], found["stores"]) >= 1
    wide = named(sides[0], "elementwise", "array(float64, 1d, C), array(float64, 1d, C)")
    assert wide["dtype"] == "f64"
    assert wide["bits"] == 64 * wide["lanes"]
    assert 1 < wide["lanes"] < found["lanes"]


@needs_numba
def test_kernels_that_lost_something(sides):
    base, head, _ = sides
    assert named(head, "activate")["math"] == ["expf"]
    assert named(head, "carried")["lanes"] == 1
    assert "f64" in named(head, "upcast")["dtype"]
    lanes = {name: named(base, name)["lanes"] for name in ("carried", "everywhere")}
    assert min(lanes.values()) > 1
    changes = {(c.kernel.partition("(")[0], c.what) for c in kernels.compare_kernels(base, head, "b")}
    assert changes >= {
        ("loops.activate", "calls expf in its loop, one element at a time"),
        ("loops.carried", f"lost vectorization: {lanes['carried']} lanes → 1"),
        ("loops.everywhere", f"lost vectorization: {lanes['everywhere']} lanes → 1"),
    }
    assert any(name == "loops.upcast" and "float64" in what for name, what in changes)
    # `activate` and `upcast` may have become narrower too, as the processor has it; the others are the same code.
    assert {name for name, _ in changes} == {"loops.activate", "loops.carried", "loops.everywhere", "loops.upcast"}


@needs_numba
def test_a_kernel_that_gained_is_no_change(sides):
    base, head, _ = sides
    assert named(base, "gains")["math"] == ["expf"]
    assert named(base, "gains")["lanes"] < named(head, "gains")["lanes"]
    assert any(c.kernel.startswith("loops.gains(") for c in kernels.compare_kernels(head, base, "b"))
    assert not any(c.kernel.startswith("loops.gains(") for c in kernels.compare_kernels(base, head, "b"))


@needs_numba
def test_a_kernel_from_the_cache_is_inspected_as_if_it_were_fresh(sides):
    fresh, _, again = sides
    for name in ("cached", "cached_everywhere"):
        assert named(fresh, name)["lanes"] > 1
        assert named(again, name) == named(fresh, name)
    assert kernels.compare_kernels(fresh, again, "b") == []
    assert kernels.compare_kernels(again, fresh, "b") == []
    counted = kernels.coverage(fresh, again)
    assert counted.not_inspected == 2  # `broken` and the loop that NumPy's machinery gets.
    assert counted.compared == sum(k.get("loops", 0) > 0 for k in again)
    assert counted.only_in_base == counted.only_in_head == 0


@needs_numba
def test_one_broken_kernel_costs_only_itself(sides):
    found = named(sides[0], "broken")
    assert (found["inspected"], found["reason"]) == (False, "OSError: no text today")
    assert sum(k["inspected"] for k in sides[0]) > 8


@needs_numba
def test_ufuncs(sides):
    vectorized = named(sides[0], "vectorized", "float32")
    assert not vectorized["inspected"]
    assert "loop" in vectorized["reason"]
    generalized = named(sides[0], "generalized", "array(float32, 1d, A), array(float32, 1d, A)")
    assert generalized["inspected"]
    assert generalized["loops"] >= 1


@needs_numba
def test_names_and_signatures_are_the_same_in_every_process(sides):
    base, _, again = sides
    keys = [(k["name"], k["signature"]) for k in base]
    assert keys == sorted(keys) == [(k["name"], k["signature"]) for k in again]
    assert sum(name == "loops.factory.<locals>.closure" for name, _ in keys) == 2
    assert not any("0x" in signature for _, signature in keys)
    assert any("elementwise" in signature for name, signature in keys if name == "loops.takes_a_function")
    assert not any(name.startswith("numba.") for name, _ in keys)


@pytest.fixture
def only_new_kernels(monkeypatch):
    """Leaves out what other tests have compiled in this process: LLVM would write thousands of kernels once more."""
    search, others = assembly._dispatchers, assembly._dispatchers()
    known = set(map(id, others))
    monkeypatch.setattr(assembly, "_dispatchers", lambda: [one for one in search() if id(one) not in known])


@pytest.mark.usefixtures("only_new_kernels")
def test_the_name_in_gradmarks_cache(monkeypatch, tmp_path):
    """gradmark's kernels are closures of a few factories; its cache tells them apart."""
    numba = pytest.importorskip("numba")
    from gradmark.numerics import compile_cache

    monkeypatch.setenv("GRADMARK_CACHE_DIR", str(tmp_path))

    def body(x):
        return x

    compiled = compile_cache.jit(body, numba.int32(numba.int32), name="of-this-test")
    assert [k["signature"] for k in assembly.compiled_kernels() if k["name"] == "of-this-test"] == ["int32"]
    assert compiled(3) == 3


def test_runs_on_the_standard_library_alone_and_never_imports_numba():
    path = Path(assembly.__file__)
    source = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("loaded_by_path", {str(path)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.compiled_kernels() == []
assert not {{"numba", "gradmark", "numpy"}} & set(sys.modules)
"""
    # -I and -S: neither the site's packages nor this folder can be imported.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_numba
@pytest.mark.usefixtures("only_new_kernels")
def test_kernels_that_are_known_are_left_out():
    numba = pytest.importorskip("numba")

    @numba.njit
    def known_kernel(x):
        return x + 1

    known_kernel(1)
    (summary,) = [k for k in assembly.compiled_kernels() if k["name"].endswith("known_kernel")]
    left = assembly.compiled_kernels([[summary["name"], summary["signature"]]])
    assert not [k for k in left if k["name"].endswith("known_kernel")]
    other = assembly.compiled_kernels([[summary["name"], "float32"]])
    assert [k for k in other if k["name"].endswith("known_kernel")]
