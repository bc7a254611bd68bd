"""Reference values for the optimizers: ten steps of PyTorch's AdamW and of bitsandbytes' AdamW8bit, on a CPU.

Usage: python optim.py OUTFILE
Needs: torch, bitsandbytes, safetensors (see VERSIONS.txt).

The state of AdamW8bit is that after nine steps (`before`) and after ten: a value in the middle between two codes may go to
either by its last bit, and what comes of that grows, so it is one step that is compared closely.
Parameters and gradients come from `noise`, which the test repeats, so that only results are stored:
  adamw.LEN.{param,m,v}                                 PyTorch
  adamw8bit.LEN.{param,m,v}                             bitsandbytes under 4096 elements: the same
  adamw8bit.LEN[.before].{param,m,v,m_absmax,v_absmax}  bitsandbytes: codes (uint8) and an absmax a block of 256
  map.{signed,unsigned}                                 create_dynamic_map

bitsandbytes' CPU backend is run, with two parts replaced by those of its CUDA kernel, which differ in 0.50.2:
- The weights decay after the step; in the other backends before it. The state does not depend on it.
- A value takes the nearest code. The CPU library first rounds it to one of 65536 steps of [-1, 1], so that averages of
  squares below 1e-5 of their block's largest all get one code.
The CUDA kernel also writes the code before zero's for a negative average that is nearest to zero (less than 2.8e-7 of
its block's largest). That is done neither here nor in the library.
"""
import sys
import torch, bitsandbytes as bnb
import bitsandbytes.functional as BF
from bitsandbytes.backends.cpu import ops as cpu
from safetensors.torch import save_file

def quantize(values, code, absmax_out, out, blocksize):
    blocks = torch.nn.functional.pad(values, (0, -len(values) % blocksize)).view(-1, blocksize)
    absmax = blocks.abs().amax(1)
    scaled = blocks / absmax.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    absmax_out.copy_(absmax)
    out.copy_((scaled[..., None] - code).abs().argmin(-1).flatten()[:len(values)])
cpu._quant_blockwise_fp32_direct = quantize

STEPS, DECAY, FACTOR = 10, 0.1, 0.5
rate = lambda t: 1e-2 / t

def noise(length, t):
    """Exact in float32: 24 random bits in [-1, 1), a power of two by element, and some blocks of zeros."""
    i = torch.arange(length, dtype=torch.int64)
    x = (i * 2654435761 + t * 40503 + 12345) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 2246822519) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 3266489917) & 0xFFFFFFFF
    x = (x ^ (x >> 16)) >> 8
    x = (x - (1 << 23)).float() / (1 << 23) * torch.exp2(-(i % 11).float())
    return torch.where(i // 256 % 7 == 2, 0.0, x)

def run(make, length, decay_after):
    """Parameter and state after each step."""
    p = torch.nn.Parameter(noise(length, 1000))
    optimizer = make(p)
    for t in range(1, STEPS + 1):
        optimizer.param_groups[0]["lr"] = rate(t)
        p.grad = noise(length, t) * FACTOR
        optimizer.step()
        if decay_after:
            with torch.no_grad(): p.mul_(1 - rate(t) * DECAY)
        yield {"param": p, **optimizer.state[p]}

NAMES = {"param": "param", "exp_avg": "m", "exp_avg_sq": "v", "state1": "m", "state2": "v", "absmax1": "m_absmax", "absmax2": "v_absmax"}
out = {"map.signed": BF.create_dynamic_map(signed=True), "map.unsigned": BF.create_dynamic_map(signed=False)}
def put(prefix, state):
    out.update({f"{prefix}.{NAMES[k]}": v.detach().clone() for k, v in state.items() if k in NAMES})

for length in [1, 7, 256, 1000, 1027]:
    *_, last = run(lambda p: torch.optim.AdamW([p], weight_decay=DECAY, foreach=False), length, False)
    put(f"adamw.{length}", last)
for length in [1000, 4099, 4352]:
    for t, state in enumerate(run(lambda p: bnb.optim.AdamW8bit([p], weight_decay=0.0), length, True), 1):
        if t == STEPS: put(f"adamw8bit.{length}", state)
        if t == STEPS - 1 and length >= 4096: put(f"adamw8bit.{length}.before", state)
save_file(out, sys.argv[1])
for k, v in out.items(): print(k, v.dtype, tuple(v.shape), v.flatten()[:3].tolist())
