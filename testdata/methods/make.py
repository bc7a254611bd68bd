"""Reference values of PEFT's methods beside LoRA, on the small Llamas of this folder's parent, on a CPU, in float32.

Usage: python make.py  (writes into the folder where it lies; versions in ../VERSIONS.txt)

Each folder <variant>/<case>/ holds
  adapter_config.json, adapter_model.safetensors   an adapter as PEFT writes it, trained values other than at the start
  io.safetensors                                   logits and loss with it on the batch of ../<variant>/io.safetensors,
                                                   and "grad.<key>" of every trained tensor
  curve.json, trained.safetensors                  losses and norms of the gradients of 6 steps, and the adapter after them
"""
import json, pathlib, shutil
import torch
import peft.optimizers.lorafa
from peft import LoraConfig, TrainableTokensConfig, VeraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

# LoRA-FA multiplies the gradient under autocast to bfloat16 where it can: in float32, as everything here.
peft.optimizers.lorafa.is_bf16_available = lambda: False

HERE = pathlib.Path(__file__).resolve().parent
ATTN = ["q_proj", "k_proj", "v_proj", "o_proj"]
TASK = dict(task_type="CAUSAL_LM", base_model_name_or_path="tiny")
CASES = {
    ("gqa", "vera"): VeraConfig(r=6, target_modules=["q_proj", "v_proj", "down_proj"], **TASK),
    ("gqa", "vera_key"): VeraConfig(r=4, target_modules="all-linear", projection_prng_key=7, save_projection=False, d_initial=0.3, **TASK),
    ("gqa", "tokens"): TrainableTokensConfig(token_indices=[3, 17, 90], **TASK),
    ("llama3", "tokens"): TrainableTokensConfig(token_indices=[5, 40], **TASK),
    ("llama3", "lora_tokens"): LoraConfig(r=4, lora_alpha=10, target_modules=["q_proj", "o_proj"], trainable_token_indices=[5, 40, 7], **TASK),
    ("gqa", "lora_tokens"): LoraConfig(r=4, lora_alpha=10, target_modules=["v_proj"], trainable_token_indices={"embed_tokens": [9], "lm_head": [4, 9]}, **TASK),
    ("gqa", "lorafa"): LoraConfig(r=4, lora_alpha=10, target_modules=ATTN, **TASK),
}

def randomise(m, seed=3):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for n, p in sorted(m.named_parameters()):
            if not p.requires_grad: continue
            if "lora_" in n: p.copy_(torch.randn(p.shape, generator=g) * 0.1)
            else: p.add_(torch.randn(p.shape, generator=g) * 0.2)

def key(n):
    return n.replace(".default", "")

def loss_of(m, io):
    logits = m(input_ids=io["input_ids"], attention_mask=io["attention_mask"]).logits.float()
    s, t = logits[:, :-1].reshape(-1, logits.shape[-1]), io["labels"][:, 1:].reshape(-1)
    return logits, torch.nn.functional.cross_entropy(s, t, ignore_index=-100)

def main():
    for (variant, case), config in CASES.items():
        io = load_file(HERE.parent / variant / "io.safetensors")
        base = LlamaForCausalLM.from_pretrained(HERE.parent / variant, attn_implementation="eager", dtype=torch.float32)
        base.name_or_path = base.config._name_or_path = "tiny"  # not a path of this machine
        m = get_peft_model(base, config)
        randomise(m); m.train()
        out = HERE / variant / case
        shutil.rmtree(out, ignore_errors=True); out.mkdir(parents=True)
        m.save_pretrained(out); (out / "README.md").unlink(missing_ok=True)
        if case == "lorafa":
            opt = create_lorafa_optimizer(m, r=4, lora_alpha=10, lr=1e-2, weight_decay=0.01)
        else:
            opt = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.01)
        logits, loss = loss_of(m, io); loss.backward()
        t = dict(logits=logits.detach(), loss=loss.detach().reshape(1))
        for n, p in m.named_parameters():
            if p.requires_grad: t["grad." + key(n)] = p.grad.clone()
        save_file({k: v.contiguous() for k, v in t.items()}, out / "io.safetensors")
        opt.zero_grad(); losses, norms = [], []
        for _ in range(6):
            _, loss = loss_of(m, io); loss.backward(); losses.append(loss.item())
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in m.parameters() if p.grad is not None]).item())
            opt.step(); opt.zero_grad()
        json.dump(dict(lr=1e-2, weight_decay=0.01, losses=losses, grad_norms=norms), open(out / "curve.json", "w"), indent=1)
        save_file({k: v.detach().float().contiguous().clone() for k, v in get_peft_model_state_dict(m).items()}, out / "trained.safetensors")
        print(variant, case, losses[0], losses[-1])

main()
