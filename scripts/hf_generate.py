"""Generation of a model by transformers + bitsandbytes + PEFT: tokens a second, to compare with
`cargo bench --features cuda --bench generate -- cuda MODEL 1x512 8x512`.

Usage: hf_generate.py MODEL BATCHxPROMPT.. [--new 128] [--rank 32] [--dense]
The weights are in NF4 with double quantization, unless --dense is given; the adapter is at all linear layers.
"""
import argparse, os, time
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
p = argparse.ArgumentParser()
p.add_argument("model"); p.add_argument("shapes", nargs="+"); p.add_argument("--new", type=int, default=128)
p.add_argument("--rank", type=int, default=32); p.add_argument("--dense", action="store_true")
a = p.parse_args()
quant = None if a.dense else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                                bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(a.model, quantization_config=quant, dtype=torch.bfloat16, device_map={"": 0},
                                             attn_implementation="sdpa")
linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
lora = LoraConfig(r=a.rank, lora_alpha=2 * a.rank, target_modules=linears, init_lora_weights=False, task_type="CAUSAL_LM")
model = get_peft_model(model, lora).to(torch.bfloat16).eval()
for shape in a.shapes:
    rows, length = map(int, shape.split("x"))
    ids = torch.randint(10, 100000, (rows, length), device="cuda")
    for round in range(2):
        times = []
        for new in (1, a.new):
            torch.cuda.synchronize(); start = time.time()
            with torch.inference_mode():
                out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
                                     do_sample=False, pad_token_id=0)
            torch.cuda.synchronize(); times.append(time.time() - start)
    made = rows * (out.shape[1] - length - 1)
    print(f"{shape}: first token after {times[0]:.3f} s, then {made / (times[1] - times[0]):.1f} tokens/s; "
          f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB", flush=True)
