"""Compiles the fused kernels for GPUs that need not be there, and prints what the machine code is made of, as JSON.

    python tests/gpu_code.py 80 90 100 --widths 512 1024 2048

Standard library and Triton alone: a process that interprets kernels cannot compile them.
"""

import argparse
import importlib.util
import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# fmt: off
WIDTHS = {512: 32, 1024: 16, 2048: 8}  # of FCDM-XL's levels, and the sides of their feature maps at 256 px
FLOAT32 = {"taps_ptr", "bias_ptr", "shift_ptr", "scale_ptr", "gate_ptr", "gain_ptr", "slope_ptr", "parts_ptr"}
KERNELS = {  # name → constants, and arguments that are numbers
    "depthwise": ({"FLIP": False, "NORM": True, "ADD": False, "SAVE": True, "TILE": 8, "K": 7}, ()),
    "depthwise_kernel_gradient": ({"CHANNELS": 128, "TILE": 8, "K": 7}, ("LINES", "B")),
    "activate": ({"BM": 64, "BN": 128}, ()),
    "contract": ({"BM": 128, "BN": 128, "BK": 64, "GROUP": 8, "SAVE": True}, ("M", "ROWS")),
    "gate_gradient": ({"BM": 64, "BN": 128}, ("ROWS",)),
    "gain_gradient": ({"BM": 64, "BN": 128}, ()),
    "activation_gradient": ({"BM": 64, "BN": 128}, ("ROWS",)),
    "norm_gradient": ({}, ("ROWS", "PIXELS")),
}
# fmt: on


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capabilities", type=int, nargs="+", help="of the GPUs: 80 is an A100, 90 an H100")
    parser.add_argument("--widths", type=int, nargs="+", choices=WIDTHS, default=list(WIDTHS))
    options = parser.parse_args()
    modules = [loaded(name) for name in ("convolution", "pointwise")]
    found = {}
    for capability in options.capabilities:
        for width in options.widths:
            side = WIDTHS[width]
            for name, (constants, numbers) in KERNELS.items():
                kernel = next(getattr(module, name) for module in modules if hasattr(module, name))
                sizes = {"C": width, "D": width, "N": 3 * width, "CHANNELS": width, "H": side, "W": side}
                sizes |= {"ROWS": 2 if width <= 1024 else 1, "BM": 4096 // width, **constants}
                warps = {"depthwise": min(width * sizes["ROWS"] // 128, 16), "contract": 4}.get(name, 8)
                warps = 2 if name == "depthwise_kernel_gradient" else warps
                used = {n: sizes[n] for n in kernel.arg_names if n in sizes and n not in numbers}
                found[f"{name} {width} sm_{capability}"] = content(kernel, used, warps, capability)
    print(json.dumps(found, indent=1))


def loaded(name):
    """A module of the kernels, without the package, which would import Keras."""
    path = Path(__file__).parents[1] / "fcdm_keras" / "kernels" / "gpu" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def content(kernel, constants, warps, capability):
    """Registers, bytes of stack, and numbers of operations by name of a compiled kernel."""
    names = kernel.arg_names
    types = {name: "*fp32" if name in FLOAT32 else "*bf16" if name.endswith("_ptr") else "i32" for name in names}
    if kernel.fn.__name__ == "contract":
        types["gain_ptr"] = "*bf16"
    types |= dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in constants}
    program = triton.compile(
        ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": 3},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()
        usage, code = (_dumped(flag, file.name) for flag in ("-res-usage", "-sass"))
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    operations = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+ )?([A-Z0-9_]+)", code, re.MULTILINE)
    counts = {name: operations.count(name) for name in ("FFMA", "HMMA", "HGMMA", "STL", "LDL")}
    return {"registers": int(registers), "stack": int(stack), "operations": len(operations), **counts}


def _dumped(flag, file):
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, flag, file], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
