"""Blocks as llama.cpp's own library rounds them: python quantized.py LIBGGML_BASE

`quantized.safetensors` holds "values", [rows, 256] in float32, and for each type "<type>.bytes". Made with
`libggml-base.so` of the llama.cpp in llama-cpp-python 0.3.36 (for x86-64 without FMA, as its releases are).
"""

import ctypes
import pathlib
import sys

import numpy as np
from safetensors.numpy import save_file

TYPES = {"F16": (1, 512), "BF16": (30, 512), "Q8_0": (8, 272), "Q4_0": (2, 144), "Q4_K": (12, 144), "Q6_K": (14, 210),
         "Q5_0": (6, 176), "MXFP4": (39, 136)}

library = ctypes.CDLL(sys.argv[1])
library.ggml_quantize_chunk.restype = ctypes.c_size_t
library.ggml_quantize_chunk.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
]
library.ggml_quantize_init.argtypes = [ctypes.c_int]

rng = np.random.default_rng(1)
rows = [rng.standard_normal(256) * scale for scale in (0.02, 0.02, 0.02, 0.1, 1.0, 30.0, 1e-5, 1e-3)]
rows += [rng.standard_t(3, 256) * 0.02 for _ in range(6)]
rows += [np.abs(rng.standard_normal(256)), -np.abs(rng.standard_normal(256)), rng.uniform(0.5, 1, 256)]
rows += [np.zeros(256), np.ones(256), np.full(256, -0.3), np.arange(256) / 64 - 2, np.round(rng.standard_normal(256) * 4)]
rows = np.array(rows, np.float32)
rows[0, :32], rows[1, 5], rows[2, 64:80] = 0, -30, 1e-20
tensors = {"values": rows}
for name, (kind, size) in TYPES.items():
    out = np.zeros((len(rows), size), np.uint8)
    library.ggml_quantize_init(kind)
    done = library.ggml_quantize_chunk(kind, rows.ctypes.data, out.ctypes.data, 0, len(rows), 256, None)
    assert done == out.nbytes, (name, done, out.nbytes)
    tensors[f"{name}.bytes"] = out
save_file(tensors, pathlib.Path(__file__).parent / "quantized.safetensors")
