"""Reference values for families other than Llama, and for each kind of rotary scaling, from Hugging Face transformers on a CPU, in float32.

Usage: python families.py OUTDIR [--seed 0]
Needs: torch, transformers, safetensors (see VERSIONS.txt in the output for those used).

Each folder OUTDIR/<family>/ holds
  config.json, model.safetensors    the model, as transformers 5 writes it
  config_old.json                   the same settings in the keys of transformers 4
  io.safetensors                    input_ids, labels (-100 = not a target), attention_mask [B,S], logits, loss
  io_short.safetensors, io_padded.safetensors    where the length matters: a short batch, and one whose rows all have padding
rope.json: frequencies at the sizes of real models.
"""
import argparse, json, pathlib
import torch, transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

BASE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
            max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)
def rope(kind, theta=10000.0, **more): return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **more))
LLAMA, MISTRAL, QWEN2, QWEN3 = (LlamaConfig, LlamaForCausalLM), (MistralConfig, MistralForCausalLM), (Qwen2Config, Qwen2ForCausalLM), (Qwen3Config, Qwen3ForCausalLM)
FAMILIES = {
    "mistral": (MISTRAL, dict(sliding_window=6, head_dim=12)),
    "qwen2": (QWEN2, dict(rope("default", 1e6), tie_word_embeddings=True)),
    "qwen2_window": (QWEN2, dict(use_sliding_window=True, sliding_window=6, max_window_layers=1, num_hidden_layers=3)),
    "qwen3": (QWEN3, dict(rope("default", 1e6), head_dim=16, attention_bias=True)),
    "llama_bias": (LLAMA, dict(attention_bias=True, mlp_bias=True)),
    "llama3": (LLAMA, rope("llama3", 500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)),
    "yarn": (LLAMA, rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "yarn_factor": (LLAMA, rope("yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=0.7, beta_fast=8.0, beta_slow=2.0, truncate=False)),
    "yarn_mscale": (LLAMA, rope("yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=0.6)),
    "linear": (LLAMA, rope("linear", factor=4.0)),
    "dynamic": (LLAMA, dict(rope("dynamic", factor=2.0), max_position_embeddings=12)),
}

def model(kind, cfg, seed):
    torch.manual_seed(seed)
    m = kind[1](kind[0](**{**BASE, **cfg}, attn_implementation="eager")).float()
    with torch.no_grad():                      # wider than the default init, so that no part is numerically invisible
        for n, p in m.named_parameters():
            if "norm" in n: p.copy_(1 + 0.2 * torch.randn_like(p))
            elif "embed" in n: p.copy_(torch.randn_like(p) * 0.3)
            elif n.endswith("bias"): p.copy_(torch.randn_like(p) * 0.2)
            else: p.copy_(torch.randn_like(p) * 0.15)
    return m.eval()

def batch(length, seed, padding=0):
    g = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(3, BASE["vocab_size"], (3, length), generator=g)
    mask = torch.ones_like(ids); mask[1, -5:] = 0; mask[2, :3] = 0            # right padding, left padding
    if padding: mask[0, -padding:] = 0
    labels = ids.clone(); labels[:, :2] = -100; labels[2, :5] = -100; labels[mask == 0] = -100
    return torch.where(mask == 1, ids, torch.zeros_like(ids)), labels, mask

def run(m, length, seed, padding=0):
    ids, labels, mask = batch(length, seed, padding)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)                            # only `generate` takes them from the mask by itself
    with torch.no_grad(): logits = m(input_ids=ids, attention_mask=mask, position_ids=positions).logits.float()
    s, t = logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
    loss = torch.nn.functional.cross_entropy(s, t, ignore_index=-100)
    return dict(input_ids=ids, labels=labels, attention_mask=mask, logits=logits.contiguous(), loss=loss.reshape(1))

def old_keys(config):
    c = dict(config); parameters = dict(c.pop("rope_parameters")); c.pop("layer_types", None)
    c["rope_theta"] = parameters.pop("rope_theta")
    kind = parameters.pop("rope_type")
    c["rope_scaling"] = None if kind == "default" else {("type" if kind in ("linear", "dynamic") else "rope_type"): kind, **parameters}
    c["torch_dtype"] = c.pop("dtype"); c["transformers_version"] = "4.46.0"
    return c

LLAMA2 = dict(hidden_size=4096, num_attention_heads=32, max_position_embeddings=4096)
LLAMA31 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
YARN = dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0, original_max_position_embeddings=32768)
ROPE = {
    "Llama 2": (LLAMA2, dict(rope_type="default", rope_theta=10000.0), [4096]),
    "Llama 3.1 8B": (dict(LLAMA2, max_position_embeddings=131072), LLAMA31, [8192]),
    "Llama 3.2 1B": (dict(hidden_size=2048, num_attention_heads=32, max_position_embeddings=131072), dict(LLAMA31, factor=32.0), [8192]),
    "Qwen 2.5 7B": (dict(hidden_size=3584, num_attention_heads=28, max_position_embeddings=32768), YARN, [8192]),
    "DeepSeek's mscale": (LLAMA2, dict(YARN, factor=40.0, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1, mscale=0.707, mscale_all_dim=1.0), [4096]),
    "bounds that are not rounded": (LLAMA2, dict(YARN, truncate=False, attention_factor=1.3), [4096]),
    "linear": (LLAMA2, dict(rope_type="linear", rope_theta=10000.0, factor=4.0), [16384]),
    "dynamic": (LLAMA2, dict(rope_type="dynamic", rope_theta=10000.0, factor=4.0), [100, 4096, 4097, 8192, 65536]),
    # transformers reads this field for other kinds only
    "dynamic with an original length": (LLAMA2, dict(rope_type="dynamic", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=2048), [8192]),
}

def frequencies():
    rows = []
    for name, (sizes, parameters, lengths) in ROPE.items():
        for length in lengths:
            c = LlamaConfig(**sizes, num_key_value_heads=sizes["num_attention_heads"], rope_parameters=dict(parameters))
            f = ROPE_INIT_FUNCTIONS.get(parameters["rope_type"], LlamaRotaryEmbedding.compute_default_rope_parameters)
            values, factor = f(c, "cpu", seq_len=length)
            rows.append(dict(name=name, length=length, factor=factor, frequencies=values.tolist(),
                             config=dict(sizes, model_type="llama", vocab_size=64, intermediate_size=64, num_hidden_layers=1, rope_parameters=parameters)))
    return rows

def main():
    p = argparse.ArgumentParser(); p.add_argument("outdir"); p.add_argument("--seed", type=int, default=0); a = p.parse_args()
    root = pathlib.Path(a.outdir); root.mkdir(parents=True, exist_ok=True)
    open(root / "VERSIONS.txt", "w").write("".join(f"{m.__name__} {m.__version__}\n" for m in (torch, transformers)))
    for name, (kind, cfg) in FAMILIES.items():
        d = root / name; m = model(kind, cfg, a.seed); m.save_pretrained(d); (d / "generation_config.json").unlink(missing_ok=True)
        old = old_keys(json.load(open(d / "config.json")))
        json.dump(old, open(d / "config_old.json", "w"), indent=1, sort_keys=True)
        # a model each: transformers keeps the frequencies of the longest sequence it has seen
        for file, length, padding in [("io", 21, 0)] + [("io_short", 8, 0), ("io_padded", 21, 2)] * (name == "dynamic"):
            io = run(model(kind, cfg, a.seed), length, a.seed, padding); save_file(io, d / f"{file}.safetensors")
            again = kind[1](kind[0](**old, attn_implementation="eager")); again.load_state_dict(m.state_dict())
            assert torch.equal(run(again.float().eval(), length, a.seed, padding)["logits"], io["logits"]), f"{name}: the old keys are another model"
    json.dump(frequencies(), open(root / "rope.json", "w"))

main()
