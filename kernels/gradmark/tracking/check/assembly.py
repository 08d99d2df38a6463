"""What Numba's compiled loops consist of: vector width, element type, calls into the math library.

Runs in the worker, under the Python of the environment that is measured: the standard library only, nothing of
gradmark, no syntax newer than Python 3.9, and no dataclass, which cannot be made in a module that was loaded by path
and is not in `sys.modules`. Numba is looked at if the benchmark has imported it, and never imported here.

Only loops count. The assembly of a function is cut into basic blocks, its loops are the strongly connected
components of their graph, and the hot ones are the innermost loops that compute. LLVM writes a vectorized loop as
several, the wide one and its scalar remainder; so the widest instruction says what the loop can do.
"""

from __future__ import annotations

import gc
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


def compiled_kernels(known: Iterable[Iterable[str]] = ()) -> list[dict[str, Any]]:
    """Summarize every Numba kernel that this process has compiled or loaded so far.

    Call it after the timing: it makes LLVM write each kernel's assembly, some 10 ms a kernel.

    Parameters
    ----------
    known : iterable of (name, signature)
        Kernels to leave out.

    Returns
    -------
    list of dict
        One for each function and signature, sorted by these, of JSON's types alone. Functions of Numba itself are
        left out. Each has the keys of `summarize` and

        ``name`` : str
            "module.qualname", or the name under which gradmark's own cache keeps the kernel. Closures out of one
            factory share a name; two of the same signature are two entries with equal name and signature.
        ``signature`` : str
            The types of the arguments, "array(float32, 1d, C), int64".

    Notes
    -----
    For a kernel that came from the cache on disk Numba gives a text without a single instruction as its assembly; but
    the cache holds the optimized bitcode, of which LLVM writes it again. Where that fails the kernel is not inspected,
    so that nobody takes it for one that lost its vectors.
    """
    found = []
    left_out = {tuple(one) for one in known}
    for dispatcher in _dispatchers():
        try:
            module = dispatcher.py_func.__module__ or ""
            if module.partition(".")[0] == "numba":
                continue
            kernel = getattr(getattr(dispatcher, "_cache", None), "_kernel", None)
            name = kernel if isinstance(kernel, str) else f"{module}.{dispatcher.py_func.__qualname__}"
            overloads = list(dispatcher.overloads.values())
        except Exception:  # Half-built or of a Numba unlike those known: it costs this function, not the others.
            continue
        for overload in overloads:
            signature = _signature(overload)
            if (name, signature) not in left_out:
                found.append({"name": name, "signature": signature, **_inspect(dispatcher, overload)})
    return sorted(found, key=lambda summary: (summary["name"], summary["signature"]))


def summarize(assembly: str, machine: str) -> dict[str, Any]:
    """Summarize the loops in the assembly of one kernel.

    Parameters
    ----------
    assembly : str
        As LLVM writes it: AT&T syntax for x86-64; for AArch64 the generic one or Apple's.
    machine : str
        The processor, as `platform.machine` has it.

    Returns
    -------
    dict
        ``inspected`` : bool
            If False, ``reason`` (str, else None) says why, and these are the only keys.
        ``lanes`` : int or None
            Elements in the widest vector of floating-point arithmetic in a hot loop; 1 if it is all scalar. In a
            kernel without floating-point arithmetic the same of its integer and bitwise arithmetic. None if there
            is no arithmetic, or no loop. Of AArch64's scalable vectors it is what 128 bits hold, the least they are.
        ``bits`` : int or None
            Width of that vector in bits, or of the scalar.
        ``dtype`` : str or None
            "f32", "f64" or "f32+f64": what hot loops compute in, calls into the math library included; "i8" to
            "i64" for integers; None for bitwise operations and scalar integers.
        ``loops`` : int
            Number of hot loops. All that follows is their total.
        ``packed``, ``scalar`` : int
            Vector and scalar instructions of arithmetic.
        ``loads``, ``stores``, ``calls`` : int
            Instructions that read or write memory, and calls of whatever function.
        ``math`` : list of str
            Functions of the math library called with one element at a time, such as "expf"; sorted.

    Examples
    --------
    >>> loop = '''f:
    ... .LBB0_1:
    ...     vmulps (%rdi,%rax,4), %ymm0, %ymm1
    ...     vmovups %ymm1, (%rsi,%rax,4)
    ...     addq $8, %rax
    ...     jne .LBB0_1
    ...     retq'''
    >>> found = summarize(loop, "x86_64")
    >>> found["lanes"], found["dtype"], found["packed"], found["loads"], found["stores"]
    (8, 'f32', 1, 1, 1)
    """
    isa = _ISAS.get(machine.lower())
    if isa is None:
        return _not_inspected(f"the assembly of {machine or 'this processor'} is not known here: x86-64, AArch64 are")
    functions = _functions(assembly, isa)
    if not functions:
        return _not_inspected("Numba gave a text without instructions as its assembly")
    loops = [loop for function in functions for loop in _loops(function, isa)]
    innermost = [loop for loop in loops if loop.innermost]
    hot = (
        [loop for loop in innermost if loop.computes_floats]
        or [loop for loop in loops if loop.computes_floats]
        or [loop for loop in innermost if loop.work.operations]
        or innermost
    )
    return {"inspected": True, "reason": None, "loops": len(hot), **_totals(_sum(loop.work for loop in hot))}


def math_family(name: str) -> str:
    """The function whatever its precision: "exp" for "exp" and "expf"."""
    known = _math_function(name)
    return known.family if known else name


# What Numba has compiled.


def _dispatchers() -> list[Any]:
    """Numba's compiled functions, those of `vectorize` and `guvectorize` among them."""
    homes = (("numba.core.dispatcher", "Dispatcher"), ("numba.np.ufunc.ufuncbuilder", "UFuncDispatcher"))
    found = (getattr(sys.modules.get(module), name, None) for module, name in homes)
    bases = tuple(base for base in found if base is not None)
    # Not isinstance: it asks the object for its class, and a weak proxy whose object is gone raises.
    return [o for o in gc.get_objects() if issubclass(type(o), bases)] if bases else []


def _signature(overload: Any) -> str:
    try:
        # A function as an argument is shown with its address, which differs in every process.
        return re.sub(r" at 0x[0-9a-f]+", "", ", ".join(map(str, overload.signature.args)))
    except Exception:
        return "?"


def _inspect(dispatcher: Any, overload: Any) -> dict[str, Any]:
    try:
        if "cuda" in type(dispatcher).__module__:
            return _not_inspected("it runs on a CUDA device")
        if overload.objectmode:
            return _not_inspected("it was compiled in object mode: its loop is Python's")
        summary = summarize(_assembly(overload.library), platform.machine())
        if summary.get("loops") == 0 and type(dispatcher).__name__ == "UFuncDispatcher":
            return _not_inspected("Numba does not keep the loop that it makes around a vectorized function")
        return summary
    except Exception as error:
        return _not_inspected(f"{type(error).__name__}: {error}")


def _assembly(library: Any) -> str:
    if getattr(library, "_disable_inspection", False):  # It was loaded from the cache on disk.
        module = library._get_module_for_linking().clone()
        return str(library._codegen._tm.emit_assembly(module))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return str(library.get_asm_str())


def _not_inspected(reason: str) -> dict[str, Any]:
    return {"inspected": False, "reason": reason}


# From a text to its loops.

_Instruction = tuple[str, str]
"""Mnemonic and operands."""


class _Operation(NamedTuple):
    """An instruction that computes: in floating point or not, on how many elements, in how many bits."""

    floating: bool
    dtype: str | None
    lanes: int
    bits: int


class _Math(NamedTuple):
    """A function of the math library: "expf" is of the family "exp" and computes in "f32"."""

    name: str
    family: str
    dtype: str


class _Function(NamedTuple):
    blocks: list[list[_Instruction]]
    successors: list[list[int]]
    predecessors: list[list[int]]


class _Work(NamedTuple):
    """What the instructions of a basic block, or of a loop, do."""

    operations: list[_Operation]
    math: list[_Math]
    calls: int
    loads: int
    stores: int


class _Loop(NamedTuple):
    innermost: bool
    work: _Work

    @property
    def computes_floats(self) -> bool:
        return bool(self.work.math) or any(operation.floating for operation in self.work.operations)


class _Isa(NamedTuple):
    """What must be known of an instruction set; each function takes a mnemonic and its operands.

    `branch` gives (target, whether the next instruction may follow), the target "" where the function ends and None
    where a table of labels or a register has it; None alone for what does not branch. `call` gives the operand that
    says what is called, `move` (destination, source), `memory` (loads, stores).
    """

    comment: re.Pattern[str]
    branch: Callable[[str, str], tuple[str | None, bool] | None]
    operation: Callable[[str, str], _Operation | None]
    call: Callable[[str, str], str | None]
    move: Callable[[str, str], tuple[str, str]]
    memory: Callable[[str, str], tuple[int, int]]


_LOCAL = re.compile(r"\.L|L(?:BB|JTI|CPI|tmp|func_)")
_TABLE_ENTRY = re.compile(r"\.(?:long|quad|word|byte|hword|xword)\s.*?(\.?LBB\d+_\d+)")
_WRAPPER = re.compile(r'"?_{0,2}(?:ZN7cpython|cfunc\.)')
"""Numba's entries from Python and from C around the kernel: they convert arguments."""


def _functions(assembly: str, isa: _Isa) -> list[_Function]:
    """All functions in the text but Numba's wrappers."""
    functions: list[list[tuple[str, list[_Instruction]]]] = []
    tables: dict[str, list[str]] = {}
    for line in assembly.splitlines():
        text = isa.comment.split(line, maxsplit=1)[0].strip()
        if text.endswith(":"):
            label = text[:-1]
            if not _LOCAL.match(label):
                functions.append([(label, [])])
            elif "LBB" in label and functions:
                if functions[-1][-1] == ("", []):
                    functions[-1].pop()  # Nothing stands between a branch and this label, so nothing falls into it.
                functions[-1].append((label, []))
        elif text.startswith("."):
            entry = _TABLE_ENTRY.match(text)
            if entry:  # Of a jump table. LLVM numbers the labels by function: .LBB3_7 is of the function 3.
                tables.setdefault(entry[1].partition("_")[0], []).append(entry[1])
        elif text and functions:
            instruction = _instruction(text)
            functions[-1][-1][1].append(instruction)
            if isa.branch(*instruction):
                functions[-1].append(("", []))
    kept = (f for f in functions if any(block for _, block in f) and not _WRAPPER.match(f[0][0]))
    return [_connect(labelled, tables, isa) for labelled in kept]


def _instruction(text: str) -> _Instruction:
    mnemonic, *operands = text.split(maxsplit=1)
    if mnemonic in _PREFIXES and operands:
        return _instruction(operands[0])
    return mnemonic, operands[0] if operands else ""


def _connect(labelled: list[tuple[str, list[_Instruction]]], tables: dict[str, list[str]], isa: _Isa) -> _Function:
    """The graph of a function's basic blocks."""
    place = {label: i for i, (label, _) in enumerate(labelled) if label}
    number = next((label.partition("_")[0] for label, _ in labelled if "LBB" in label), "")
    blocks = [block for _, block in labelled]
    successors: list[list[int]] = []
    for i, block in enumerate(blocks):
        branch = isa.branch(*block[-1]) if block else None
        target, falls = branch or ("", True)
        targets = tables.get(number, []) if target is None else [target]
        following = [i + 1] if falls and i + 1 < len(blocks) else []
        successors.append(sorted({place[t] for t in targets if t in place} | set(following)))
    predecessors: list[list[int]] = [[] for _ in blocks]
    for i, following in enumerate(successors):
        for j in following:
            predecessors[j].append(i)
    return _Function(blocks, successors, predecessors)


def _loops(function: _Function, isa: _Isa) -> Iterable[_Loop]:
    """The loops of a function, each with the loops inside it as a part.

    A loop is a strongly connected component; the loops inside it are those of what is left without its entry.
    """
    works: dict[int, _Work] = {}
    pending = _cycles(set(range(len(function.blocks))), function)
    while pending:
        cycle = pending.pop()
        entries = [i for i in cycle if any(p not in cycle for p in function.predecessors[i])]
        inner = _cycles(cycle - {min(entries or cycle)}, function)
        pending += inner
        works.update((i, _work(function, i, isa)) for i in cycle - works.keys())
        yield _Loop(not inner, _sum(works[i] for i in sorted(cycle)))


def _cycles(region: set[int], function: _Function) -> list[set[int]]:
    """The strongly connected components of a part of the graph (Kosaraju), without single blocks that never repeat."""
    order: list[int] = []
    seen: set[int] = set()
    for root in sorted(region):
        stack = [(root, iter(function.successors[root]))] if root not in seen else []
        seen.add(root)
        while stack:
            block, following = stack[-1]
            unseen = next((j for j in following if j in region and j not in seen), None)
            if unseen is None:
                order.append(stack.pop()[0])
            else:
                seen.add(unseen)
                stack.append((unseen, iter(function.successors[unseen])))
    cycles = []
    unassigned = set(region)
    for root in reversed(order):
        component: set[int] = set()
        reached = [root] if root in unassigned else []
        while reached:
            block = reached.pop()
            if block in unassigned:
                unassigned.remove(block)
                component.add(block)
                reached += [p for p in function.predecessors[block] if p in unassigned]
        if len(component) > 1 or (component and root in function.successors[root]):
            cycles.append(component)
    return cycles


def _work(function: _Function, block: int, isa: _Isa) -> _Work:
    operations: list[_Operation] = []
    math: list[_Math] = []
    calls = loads = stores = 0
    for i, (mnemonic, operands) in enumerate(function.blocks[block]):
        operation = isa.operation(mnemonic, operands)
        if operation:
            operations.append(operation)
        read, written = isa.memory(mnemonic, operands)
        loads += read
        stores += written
        called = isa.call(mnemonic, operands)
        if called is not None:
            calls += 1
            symbols = _symbols(function, block, i, called, isa)
            math += filter(None, map(_math_function, symbols))
            operations += filter(None, map(_vector_function, symbols))
    return _Work(operations, math, calls, loads, stores)


def _sum(works: Iterable[_Work]) -> _Work:
    total = _Work([], [], 0, 0, 0)
    for work in works:
        total.operations.extend(work.operations)
        total.math.extend(work.math)
        total = total._replace(
            calls=total.calls + work.calls, loads=total.loads + work.loads, stores=total.stores + work.stores
        )
    return total


def _symbols(function: _Function, block: int, before: int, place: str, isa: _Isa) -> set[str]:
    """Which symbols are called: the place itself names one, or holds the address of one.

    In LLVM's large code model, which Numba uses on x86, every call is indirect, and the address is put into a
    register or spilled to the stack ahead of the loop. So the way leads back through the graph to where it was put.
    """
    found: set[str] = set()
    seen: set[tuple[int, str]] = set()
    pending = [(block, before, place)]
    while pending:
        block, before, place = pending.pop()
        if not _is_place(place):
            found.add(place)
            continue
        for i in range(before - 1, -1, -1):
            destination, source = isa.move(*function.blocks[block][i])
            if destination == place:
                if source:
                    pending.append((block, i, source))
                break
        else:
            for p in function.predecessors[block]:
                if (p, place) not in seen:
                    seen.add((p, place))
                    pending.append((p, len(function.blocks[p]), place))
    return found


def _is_place(text: str) -> bool:
    """Whether it is a register or a place in memory, not a symbol."""
    return text.startswith(("%", "[")) or "(%" in text or re.fullmatch(r"[xw]\d+|[xw]zr|sp", text) is not None


def _totals(hot: _Work) -> dict[str, Any]:
    """What the hot loops consist of: floating-point arithmetic alone where there is any, as the rest is addresses."""
    math = set(hot.math)
    operations = hot.operations
    floats = [operation for operation in operations if operation.floating]
    if floats or math:
        operations = floats
    dtypes = {operation.dtype for operation in operations if operation.dtype} | {function.dtype for function in math}
    if not floats and not math and len(dtypes) > 1:
        dtypes = set()  # Integers of several widths are mostly one computation in several steps.
    # A call of the math library is arithmetic on one element.
    widths = [(o.lanes, o.bits) for o in operations] + [(1, _BITS[function.dtype]) for function in math]
    return {
        "lanes": max((lanes for lanes, _ in widths), default=None),
        "bits": max((bits for _, bits in widths), default=None),
        "dtype": "+".join(sorted(dtypes)) or None,
        "packed": sum(operation.lanes > 1 for operation in operations),
        "scalar": sum(operation.lanes == 1 for operation in operations),
        "loads": hot.loads,
        "stores": hot.stores,
        "calls": hot.calls,
        "math": sorted({function.name for function in math}),
    }


# Functions of the math library.

_BITS = {"f32": 32, "f64": 64}
_MATH = frozenset(
    re.findall(
        r"\w+",
        "acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp10 exp2 expm1 fabs floor "
        "fma fmax fmin fmod frexp gamma hypot ldexp lgamma log log10 log1p log2 logb modf nearbyint nextafter pow "
        "remainder rint round sin sincos sinh sqrt tan tanh tgamma trunc",
    )
)
_POWI = {"powisf2": "f32", "powidf2": "f64"}
"""A float to an integer's power, in the compilers' own runtime library."""


def _math_function(symbol: str) -> _Math | None:
    """The function that a symbol stands for: "expf@PLT", Apple's "_expf", Numba's "numba_gammaf"; None if another."""
    name = symbol.partition("@")[0].strip('"').lstrip("_")
    name = name[len("numba_") :] if name.startswith("numba_") else name
    if name in _POWI:
        return _Math(name, "powi", _POWI[name])
    if name in _MATH:  # Ahead of the f at the end: "erf" and "modf" are not in single precision.
        return _Math(name, name, "f64")
    return _Math(name, name[:-1], "f32") if name.endswith("f") and name[:-1] in _MATH else None


def _vector_function(symbol: str) -> _Operation | None:
    """Intel's library of vector functions: "__svml_expf16_ha" is exp of sixteen float32 in one call."""
    found = re.match(r"_*svml_(\w*?[a-z]\d{0,2}?)(16|8|4|2)(?:_|$)", symbol)
    known = _math_function(found[1]) if found else None
    if not found or not known:
        return None
    lanes = int(found[2])
    return _Operation(True, known.dtype, lanes, lanes * _BITS[known.dtype])


# x86-64, AT&T syntax: the destination is the last operand, and operands are divided by a comma and a space.

_PREFIXES = frozenset({"lock", "rep", "repne", "notrack"})
_X86_FLOAT = re.compile(
    r"v?(?:add|sub|mul|div|sqrt|min|max|addsub|hadd|hsub|dp|round|rndscale|rcp(?:14|28)?|rsqrt(?:14|28)?|scalef|range"
    r"|reduce|getexp|getmant|fixupimm|u?comi|cmp\w*?|fn?m(?:add|sub)(?:add|sub)?(?:132|213|231)?)([ps])([sd])"
)
_X86_INTEGER = re.compile(
    r"v?p(?!s[lr]ldq)(?:add|sub|mul|madd|abs|min|max|avg|s[lr]l|sra|ro[lr]|cmp|lzcnt|popcnt)\w*?([bwdq])"
)
_X86_BITWISE = re.compile(r"v?(?:p(?:and|andn|or|xor|ternlog)([dq]?)|(?:and|andn|or|xor)p([sd]))")
_X86_SCALAR = re.compile(
    r"(?:i?mul|mulx|i?div|and|andn|or|xor|sh[lr]x?|sa[lr]x?|ro[lr]|rorx|popcnt|lzcnt|tzcnt|bswap)[bwlq]?"
)
_X86_FROM_MEMORY = re.compile(r"(?:add|sub|adc|sbb|cmp|inc|dec|not|neg)[bwlq]")
_ELEMENT = {"b": 8, "w": 16, "h": 16, "s": 32, "d": 64, "q": 64}


def _x86_branch(mnemonic: str, operands: str) -> tuple[str | None, bool] | None:
    if mnemonic.startswith("j"):
        target = None if operands.startswith("*") else operands
        return target, not mnemonic.startswith("jmp")
    return ("", False) if mnemonic.startswith(("ret", "ud2")) else None


def _x86_operation(mnemonic: str, operands: str) -> _Operation | None:
    floating = _X86_FLOAT.fullmatch(mnemonic)
    if floating:
        element = 32 if floating[2] == "s" else 64
        bits = _x86_bits(operands) if floating[1] == "p" else element
        return _Operation(True, f"f{element}", bits // element, bits)
    if _is_zeroing(operands):
        return None
    bits = _x86_bits(operands)
    if not bits:
        scalar = _X86_SCALAR.fullmatch(mnemonic) or (
            # Integers of the kernel's data; otherwise these count the loop and step through addresses.
            _X86_FROM_MEMORY.fullmatch(mnemonic) and "(" in operands and "(%rsp" not in operands
        )
        return _Operation(False, None, 1, 64) if scalar else None
    integer = _X86_INTEGER.fullmatch(mnemonic)
    if integer:
        element = 32 if integer[1] == "d" else _ELEMENT[integer[1]]
        return _Operation(False, f"i{element}", bits // element, bits)
    bitwise = _X86_BITWISE.fullmatch(mnemonic)
    if bitwise:
        element = 64 if bitwise[1] == "q" or bitwise[2] == "d" else 32
        # Scalar code too negates a number with all 128 bits of its register. It is taken for what it most often is.
        return _Operation(False, None, bits // element, bits) if bits > 128 else _Operation(False, None, 1, element)
    return None


def _x86_bits(operands: str) -> int:
    """Width of the widest vector register among the operands; 0 if there is none."""
    return next((bits for name, bits in (("%zmm", 512), ("%ymm", 256), ("%xmm", 128)) if name in operands), 0)


def _is_zeroing(operands: str) -> bool:
    """Whether all operands are the same register: `xorl %eax, %eax` computes nothing."""
    registers = operands.split(", ")
    return len(registers) > 1 and len(set(registers)) == 1


def _x86_call(mnemonic: str, operands: str) -> str | None:
    return operands.lstrip("*") if mnemonic.startswith("call") else None


def _x86_move(mnemonic: str, operands: str) -> tuple[str, str]:
    source, _, destination = operands.rpartition(", ")
    if not source or mnemonic.startswith(("cmp", "test", "vucomi", "ucomi", "vcomi", "comi")):
        # Of instructions with one operand only pop writes it, and these are behind the loops.
        return (destination if mnemonic.startswith("pop") else ""), ""
    if not mnemonic.startswith(("mov", "lea")):
        return destination, ""
    symbol = re.fullmatch(r"\$?([A-Za-z_][\w.$]*)(?:@\w+)?(?:\(%rip\))?", source)
    if symbol:
        return destination, symbol[1]
    return destination, source if mnemonic.startswith("mov") and _is_place(source) else ""


def _x86_memory(mnemonic: str, operands: str) -> tuple[int, int]:
    if "(" not in operands or mnemonic.startswith(("lea", "prefetch", "nop", "j")):
        return 0, 0
    source, _, destination = operands.rpartition(", ")
    stores = bool(source) and "(" in destination and not mnemonic.startswith(("cmp", "test", "bt"))
    return int("(" in source or not stores), int(stores)


# AArch64: the destination is the first operand; vectors are v0.4s and, if scalable, z0.s; Apple writes fadd.4s v0.

_A64_VECTOR = re.compile(r"[vzp]\d+\.(\d*)([bhsd])\b")
_A64_INTEGER = re.compile(
    r"add|addp|sub|mul|mla|mls|neg|abs|[su]ab[ad]\w*|[su](?:max|min)p?|[su]ml[as]l2?|[su]mull2?|shl|[su]r?sh[lr]|[su]r?sra"
    r"|cm\w\w|cnt"
)
_A64_BITWISE = re.compile(r"and|orr|orn|eor|eor3|bic|bcax|bsl|bi[tf]|not|mvn")
_A64_SCALAR = re.compile(
    r"mul|madd|msub|mneg|[su]mul[lh]|[su]madd|[su]div|and|orr|orn|eor|eon|bic|mvn|lsl|lsr|asr|ror|clz|rbit|rev\w*"
)


def _a64_branch(mnemonic: str, operands: str) -> tuple[str | None, bool] | None:
    if mnemonic in ("b", "br"):
        return (operands if mnemonic == "b" else None), False
    if mnemonic in ("ret", "retaa", "retab", "brk", "udf"):
        return "", False
    if mnemonic.startswith(("b.", "bc.")) or mnemonic in ("cbz", "cbnz", "tbz", "tbnz"):
        return operands.rpartition(", ")[2], True
    return None


def _a64_operation(mnemonic: str, operands: str) -> _Operation | None:
    mnemonic, _, arrangement = mnemonic.partition(".")
    first = operands.partition(",")[0]
    vector = re.fullmatch(r"(\d+)([bhsd])", arrangement) or _A64_VECTOR.match(first)
    floating = re.match(r"f(?!mov|cvt|csel)", mnemonic)
    if vector:
        element = _ELEMENT[vector[2]]
        bits = int(vector[1]) * element if vector[1] else 128
        if floating:
            return _Operation(True, f"f{element}", bits // element, bits)
        if _A64_INTEGER.fullmatch(mnemonic):
            return _Operation(False, f"i{element}", bits // element, bits)
        return _Operation(False, None, bits // 32, bits) if _A64_BITWISE.fullmatch(mnemonic) else None
    if floating:
        element = 64 if first.startswith("d") else 32
        return _Operation(True, f"f{element}", 1, element)
    scalar = first[:1] in ("w", "x") and _A64_SCALAR.fullmatch(mnemonic)
    return _Operation(False, None, 1, 64) if scalar else None


def _a64_call(mnemonic: str, operands: str) -> str | None:
    return operands if mnemonic in ("bl", "blr") else None


def _a64_move(mnemonic: str, operands: str) -> tuple[str, str]:
    first, _, rest = operands.partition(", ")
    if mnemonic in ("str", "stur"):
        return rest, first
    if mnemonic.startswith(("st", "cmp", "tst", "cb", "tb", "fcmp")):
        return "", ""
    symbol = re.search(r":(?:got|got_lo12|lo12|pg_hi21|abs_g\d\w*):([A-Za-z_][\w.$]*)", rest)
    if symbol:
        return first, symbol[1]
    return first, rest if mnemonic in ("mov", "ldr", "ldur") and _is_place(rest) else ""


def _a64_memory(mnemonic: str, operands: str) -> tuple[int, int]:
    return int(mnemonic.startswith("ld")), int(mnemonic.startswith("st"))


_X86 = _Isa(re.compile("#"), _x86_branch, _x86_operation, _x86_call, _x86_move, _x86_memory)
_A64 = _Isa(re.compile("//|;"), _a64_branch, _a64_operation, _a64_call, _a64_move, _a64_memory)
_ISAS = {"x86_64": _X86, "amd64": _X86, "aarch64": _A64, "arm64": _A64}
