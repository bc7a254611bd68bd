"""Reference values for 8-bit weights, from bitsandbytes (LLM.int8), torch (E4M3) and transformers on a CPU.

Usage: python make.py OUTDIR
Needs: torch, transformers, peft, bitsandbytes, safetensors (see VERSIONS.txt).

OUTDIR/<case>.safetensors: weight (what was quantized), codes (a byte an element), scales (a float32 a block, block row
  after block row), decoded; x, y = x · decoded^T, g, dx = g · decoded
OUTDIR/<case>/             a small Llama as it is stored, for the cases int8 (bitsandbytes), fp8 (DeepSeek: `weight_scale_inv`)
  and channel (compressed-tensors: `weight_scale` a row); io.safetensors: input_ids, labels, attention_mask, logits and
  loss with the decoded weights in float32; lora/: a PEFT adapter on them, its logits and loss, and "grad.<key>" for every
  tensor
"""
import json, pathlib, sys
import torch, bitsandbytes.functional as BF
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)


def int8(w):
    codes, absmax, _ = BF.int8_vectorwise_quant(w.half())
    return codes, absmax.view(-1, 1), BF.int8_vectorwise_dequant(codes, absmax)


def fp8(w, rows, columns):
    o, i = w.shape
    down, across = -(-o // rows), -(-i // columns)
    padded = torch.zeros(down * rows, across * columns)
    padded[:o, :i] = w
    blocks = padded.view(down, rows, across, columns)
    scales = (blocks.abs().amax(dim=(1, 3), keepdim=True) / 448.0)
    scales[scales == 0] = 1.0
    whole = lambda blocks: blocks.reshape(down * rows, across * columns)[:o, :i].contiguous()
    codes = whole((blocks / scales).to(torch.float8_e4m3fn).float()).to(torch.float8_e4m3fn)
    decoded = codes.float() * whole(scales.expand_as(blocks))
    return codes, scales.view(down, across), decoded


CASES = {
    "int8": lambda w: int8(w),
    "fp8_block": lambda w: fp8(w, 16, 32),
    "fp8_row": lambda w: fp8(w, 1, w.shape[1]),
    "fp8_tensor": lambda w: fp8(w, *w.shape),
}
for name, quantize in CASES.items():
    for shape in [(48, 320), (33, 37)]:
        torch.manual_seed(len(name) + shape[0])
        w = (torch.randn(shape) * torch.rand(shape[0], 1)).half().float()
        w[3] = 0
        codes, scales, decoded = quantize(w)
        x, g = torch.randn(5, shape[1]), torch.randn(5, shape[0])
        save_file(dict(weight=w, codes=codes.view(torch.uint8).contiguous(), scales=scales.float().contiguous(),
                       decoded=decoded.contiguous(), x=x, y=x @ decoded.T, g=g, dx=g @ decoded),
                  out / f"{name}_{shape[0]}x{shape[1]}.safetensors")

ATTN = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
CONFIG = dict(hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              vocab_size=96, max_position_embeddings=128, tie_word_embeddings=False)
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 32]}
CHANNEL = {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"], "config_groups": {
    "group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True,
                                                   "dynamic": False}}}}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 6.0}
MODELS = {
    "int8": (INT8, int8, "SCB", lambda s: s.flatten()),
    "fp8": (FP8, lambda w: fp8(w, 16, 32), "weight_scale_inv", lambda s: s),
    "channel": (CHANNEL, lambda w: fp8(w, 1, w.shape[1]), "weight_scale", lambda s: s.to(torch.bfloat16).float()),
}
for name, (quantization, quantize, suffix, stored) in MODELS.items():
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG, attn_implementation="eager")).float().eval()
    tensors = {}
    with torch.no_grad():
        for path, p in model.named_parameters():
            p.copy_(1 + 0.2 * torch.randn_like(p) if "norm" in path else torch.randn_like(p) * 0.08)
            if not path.endswith("proj.weight"):
                tensors[path] = p.detach().clone()
                continue
            codes, scales, decoded = quantize(p.detach())
            scales = stored(scales)
            if name == "channel":   # its scales are bfloat16
                decoded = codes.float() * scales
                scales = scales.to(torch.bfloat16)
            tensors[path] = codes
            tensors[path.removesuffix("weight") + suffix] = scales.contiguous()
            if name == "int8":
                tensors[path.removesuffix("weight") + "weight_format"] = torch.tensor(0, dtype=torch.uint8)
            p.copy_(decoded)
    folder = out / name
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"quantization_config": quantization, "dtype": "float32"}
    config = {k: v for k, v in config.items() if k not in ("transformers_version", "_name_or_path")}
    config["architectures"] = ["LlamaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    ids = torch.randint(3, 96, (2, 13))
    batch = dict(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids))

    result = model(**batch)
    save_file(dict(logits=result.logits.detach().contiguous(), loss=result.loss.detach().view(1),
                   **{k: v.clone() for k, v in batch.items()}), folder / "io.safetensors")
    torch.manual_seed(8)
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules=ATTN + MLP, init_lora_weights=False))
    state = get_peft_model_state_dict(peft)
    (folder / "lora").mkdir(exist_ok=True)
    peft.save_pretrained(folder / "lora")
    (folder / "lora/README.md").unlink(missing_ok=True)
    result = peft(**batch)
    result.loss.backward()
    named = {k.replace(".default", ""): p for k, p in peft.named_parameters() if p.grad is not None and "lora_" in k}
    assert set(named) == set(state), sorted(set(named) ^ set(state))[:4]
    save_file(dict(logits=result.logits.detach().contiguous(), loss=result.loss.detach().view(1),
                   **{"grad." + k: p.grad.contiguous() for k, p in named.items()}), folder / "lora/io.safetensors")
