"""Reference values for products in FP8 with weights of 4 bits, from bitsandbytes and torch (E4M3) on a CPU.

Usage: python make.py OUTDIR
Needs: torch, bitsandbytes, safetensors (see VERSIONS.txt).

OUTDIR/<case>.safetensors: weight (what was quantized), x, g (gradient of y), a, b; and of
y = q(x) · q(decoded)^T + 2.5 · (x · a^T) · b^T: y, dx, da, db. q rounds to E4M3: the weight with one scale, the least power of
two that maps no block's absmax beyond 448; x, and in dx = q(g) · q(decoded) + .. also g, with a scale a row.
"""
import math, pathlib, sys
import torch, bitsandbytes.functional as BF
from safetensors.torch import save_file

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
e4m3 = lambda x: x.to(torch.float8_e4m3fn).double()


def rows(x):
    largest = x.abs().amax(dim=1, keepdim=True)
    factor = torch.where(largest > 0, 448.0 / largest, 0.0)
    return e4m3(x * factor) * (largest / 448.0).double()


def decode(w, quant_type, nested):
    codes, state = BF.quantize_4bit(w, blocksize=64, quant_type=quant_type, compress_statistics=nested)
    absmax = state.absmax
    if nested:
        absmax = BF.dequantize_blockwise(absmax, state.state2) + state.offset
    return BF.dequantize_4bit(codes, state), absmax.abs().max().item()


for name, shape, quant_type, nested in [
    ("nf4_nested", (208, 144), "nf4", True),
    ("fp4", (48, 320), "fp4", False),
]:
    torch.manual_seed(len(name))
    w = torch.randn(shape) * torch.rand(shape[0], 1) * 0.05
    x, g = torch.randn(24, shape[1]), torch.randn(24, shape[0]) * 1e-3
    x[:, 5] *= 40      # an outlier channel
    x[3] = 0
    a, b = torch.randn(4, shape[1]) * 0.1, torch.randn(shape[0], 4) * 0.1
    decoded, largest = decode(w, quant_type, nested)
    scale = 2.0 ** math.ceil(math.log2(largest / 448.0))
    w8 = e4m3(decoded / scale) * scale
    xd, gd, ad, bd = (t.double() for t in (x, g, a, b))
    h, dh = xd @ ad.T, 2.5 * gd @ bd
    values = dict(y=rows(x) @ w8.T + 2.5 * h @ bd.T, dx=rows(g) @ w8 + dh @ ad, da=dh.T @ xd, db=2.5 * gd.T @ h)
    save_file(dict(weight=w, x=x, g=g, a=a, b=b) | {k: v.float().contiguous() for k, v in values.items()},
              out / f"{name}.safetensors")
