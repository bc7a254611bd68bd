"""Reference values for the optimizers: ten steps of PyTorch's AdamW and of bitsandbytes' AdamW8bit, on a CPU.

Usage: python optim.py OUTFILE
Needs: torch, bitsandbytes, safetensors (see VERSIONS.txt).

Parameters and gradients come from `noise`, which the test repeats, so that only results are stored:
  adamw.LEN.{param,m,v}                                 PyTorch
  adamw8bit.LEN.{param,m,v}, adamw8bit.LEN.{m,v}_absmax bitsandbytes: codes (uint8) and absmax a block of 256, or
                                                        float32 under 4096 elements
  map.{signed,unsigned}                                 create_dynamic_map

bitsandbytes 0.50.2 decays the weights after the step in its CUDA kernel, before it in its other backends. Its CPU
backend is run here without decay, and the decay of the CUDA kernel is done in this script: the state does not depend on it.
"""
import sys
import torch, bitsandbytes as bnb
import bitsandbytes.functional as BF
from safetensors.torch import save_file

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
    p = torch.nn.Parameter(noise(length, 1000))
    optimizer = make(p)
    for t in range(1, STEPS + 1):
        optimizer.param_groups[0]["lr"] = rate(t)
        p.grad = noise(length, t) * FACTOR
        optimizer.step()
        if decay_after:
            with torch.no_grad(): p.mul_(1 - rate(t) * DECAY)
    return p.detach(), optimizer.state[p]

out = {"map.signed": BF.create_dynamic_map(signed=True), "map.unsigned": BF.create_dynamic_map(signed=False)}
for length in [1, 7, 256, 1000, 1027]:
    p, state = run(lambda p: torch.optim.AdamW([p], weight_decay=DECAY, foreach=False), length, False)
    out |= {f"adamw.{length}.param": p, f"adamw.{length}.m": state["exp_avg"], f"adamw.{length}.v": state["exp_avg_sq"]}
for length in [1000, 4099, 4352]:
    p, state = run(lambda p: bnb.optim.AdamW8bit([p], weight_decay=0.0), length, True)
    out |= {f"adamw8bit.{length}.param": p, f"adamw8bit.{length}.m": state["state1"], f"adamw8bit.{length}.v": state["state2"]}
    if "absmax1" in state:
        out |= {f"adamw8bit.{length}.m_absmax": state["absmax1"], f"adamw8bit.{length}.v_absmax": state["absmax2"]}
save_file({k: v.contiguous() for k, v in out.items()}, sys.argv[1])
for k, v in out.items(): print(k, v.dtype, tuple(v.shape), v.flatten()[:3].tolist())
