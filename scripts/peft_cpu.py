"""Training of adapters by PEFT on a CPU: tokens a second, to compare with
`RANK=16 DENSE=1 cargo bench --bench train -- cpu MODEL 4x256,recompute=none 4x256`.

Usage: peft_cpu.py MODEL [ROWS LENGTH] [--threads 2] [--rank 16] [--steps 5]
MODEL is a folder; one that is not there is made with random weights of SmolLM2-135M's shape. The adapter is at all linear layers.
"""
import argparse, os, statistics, time
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
p = argparse.ArgumentParser()
p.add_argument("model"); p.add_argument("rows", nargs="?", type=int, default=4); p.add_argument("length", nargs="?", type=int, default=256)
p.add_argument("--threads", type=int, default=2); p.add_argument("--rank", type=int, default=16); p.add_argument("--steps", type=int, default=5)
a = p.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(0)
if not os.path.exists(a.model):
    LlamaForCausalLM(LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                                 vocab_size=49152, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_theta=100000.0,
                                 max_position_embeddings=8192)).save_pretrained(a.model)
linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
for again in (True, False):
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32, attn_implementation="sdpa")
    if again:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model = get_peft_model(model, LoraConfig(r=a.rank, lora_alpha=2 * a.rank, target_modules=linears, task_type="CAUSAL_LM")).train()
    optimizer = torch.optim.AdamW([x for x in model.parameters() if x.requires_grad], lr=1e-4)
    tokens, times = torch.randint(0, 49152, (a.rows, a.length)), []
    for step in range(a.steps + 1):
        start = time.perf_counter()
        model(input_ids=tokens, labels=tokens).loss.backward(); optimizer.step(); optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - start)
    rate = a.rows * a.length / statistics.median(times[1:])
    print(f"{'every layer run again' if again else 'nothing run again'}: {rate:.0f} tokens/s", flush=True)
