"""Run by `benchmarks.compiled`: compiles for parts this machine lacks, prints what that needs.

Reads a JSON list of {"kernel", "target", "warps", "constants"} and prints one of {"registers",
"stack", "local", "shared", "async_copies"}; stack and local bytes are where registers spill to.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ella_cli.kernels.penalty_kernel import penalty_kernel
from ella_cli.kernels.reduce_kernel import reduce_kernel

KERNELS = {"penalty": penalty_kernel, "reduce": reduce_kernel}
POINTERS = {"modules_ptr": "*i64", "items_ptr": "*i64", "sums_ptr": "*i64"}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def resources(kernel: str, target: int, warps: int, constants: dict[str, Any]) -> dict[str, int]:
    function = KERNELS[kernel]
    values = {
        name: getattr(tl, value) if name.endswith("DTYPE") else value
        for name, value in constants.items()
    }
    signature, constexprs, attributes = {}, {}, {}
    for position, name in enumerate(function.arg_names):
        if name in values:
            signature[name] = "constexpr"
            constexprs[(position,)] = values[name]
        else:
            signature[name] = POINTERS.get(name, "*fp32")
            attributes[(position,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(function, signature, constexprs, attributes),
        target=GPUTarget("cuda", target, 32),
        options={"num_warps": warps},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "-res-usage", cubin.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found is not None, usage
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "local": int(found[3]),
        "shared": compiled.metadata.shared,
        "async_copies": compiled.asm["ptx"].count("cp.async.cg"),
    }


if __name__ == "__main__":
    json.dump([resources(**job) for job in json.load(sys.stdin)], sys.stdout)
