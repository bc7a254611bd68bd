"""Reference values for GGUF's block formats, from the Python package of llama.cpp.

Usage: python make_gguf.py OUTDIR
Needs: gguf==0.19.0, numpy==2.4.6, safetensors==0.8.0.

OUTDIR/blocks.safetensors holds for each type "<type>.bytes", rows of blocks as in a file, and "<type>.values",
[rows, 256] in float32. The simple types are quantized from random rows; for the others, which the package cannot
quantize to, all bits are random but those of the float16 scales.

Not named gguf.py: Python would import it in place of the package.
"""
import pathlib, sys
import numpy as np
from gguf import GGMLQuantizationType as Type, quants
from safetensors.numpy import save_file

ROWS = 6
# Bytes of a block of 256, or of the blocks, and where their float16 scales lie.
OTHERS = {"Q4_K": (144, [0, 2]), "Q5_K": (176, [0, 2]), "Q6_K": (210, [208]), "Q2_K": (84, [80, 82]), "Q3_K": (110, [108]),
          "IQ4_NL": (8 * 18, range(0, 8 * 18, 18)), "IQ4_XS": (136, [0])}


def main():
    rng = np.random.default_rng(0)
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name in ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]:
        rows = rng.standard_normal((ROWS, 256)).astype(np.float32) * np.float32(0.1)
        # A block of zeros, and one value that dwarfs the others.
        rows[0, :32], rows[1, 5] = 0, -30
        tensors[f"{name}.bytes"] = quants.quantize(rows, Type[name]).view(np.uint8)
    tensors["MXFP4.bytes"] = quants.quantize(rows, Type.MXFP4).view(np.uint8)
    for name, (size, scales) in OTHERS.items():
        blocks = rng.integers(0, 256, (ROWS, size), dtype=np.uint8)
        for at in scales:
            scale = (rng.standard_normal(ROWS) * 0.01).astype(np.float16)
            blocks[:, at:at + 2] = scale.view(np.uint8).reshape(ROWS, 2)
        tensors[f"{name}.bytes"] = blocks
    for name in [key.removesuffix(".bytes") for key in list(tensors)]:
        values = quants.dequantize(tensors[f"{name}.bytes"], Type[name])
        assert values.shape == (ROWS, 256) and np.isfinite(values).all()
        tensors[f"{name}.values"] = values.astype(np.float32)
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, out / "blocks.safetensors")


if __name__ == "__main__":
    main()
