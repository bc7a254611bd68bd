"""DPO of a model of Llama-3.1-8B's shape with random weights by TRL's own trainer, over PEFT + bitsandbytes or over Unsloth: tokens a
second and peak memory, to compare with `cargo bench --features cuda --bench train -- cuda MODEL 2x2048,dpo`.

Usage: trl_dpo.py PEER MODEL [--pairs 2] [--seq 2048] [--steps 8] [--rank 32] [--precompute]
PEER: bnb | unsloth. MODEL: a folder with weights and Llama 3's tokenizer, which is written with random weights if it is not there
(--tokenizer FOLDER has the tokenizer then). --precompute computes the reference before the training, as ours does; by
default TRL runs the reference in each step.
"""
import argparse, os, shutil, statistics, time
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1", UNSLOTH_DISABLE_STATISTICS="1", TOKENIZERS_PARALLELISM="false")
p = argparse.ArgumentParser()
p.add_argument("peer", choices=["bnb", "unsloth"]); p.add_argument("model"); p.add_argument("--tokenizer")
p.add_argument("--pairs", type=int, default=2); p.add_argument("--seq", type=int, default=2048); p.add_argument("--steps", type=int, default=8)
p.add_argument("--rank", type=int, default=32); p.add_argument("--layers", type=int, default=32); p.add_argument("--precompute", action="store_true")
a = p.parse_args()
if a.peer == "unsloth":
    from unsloth import FastLanguageModel, PatchDPOTrainer
    PatchDPOTrainer()
import random, torch
from datasets import Dataset
from transformers import AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TrainerCallback
from trl import DPOConfig, DPOTrainer
import trl
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

if not os.path.exists(a.model):
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=a.layers, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0, rms_norm_eps=1e-5, tie_word_embeddings=False, dtype="bfloat16")
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"): model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(a.model); del model; torch.cuda.empty_cache()
    for name in os.listdir(a.tokenizer): shutil.copy(os.path.join(a.tokenizer, name), a.model)

tokenizer = AutoTokenizer.from_pretrained(a.model)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
# Words of one token each, so that a row has `seq` tokens: half of it prompt, half of it answer.
words = [word for word in (" time year people way day man thing woman life child world school state family student group country problem hand part "
    "place case week company system program question work government number night point home water room mother area money story fact").split()]
words = [word for word in words if len(tokenizer(" " + word, add_special_tokens=False)["input_ids"]) == 1]
draw = random.Random(0)
text = lambda count: "".join(" " + draw.choice(words) for _ in range(count))
# (Beside them a token that begins a text, and one that ends it.)
answer = lambda: text(a.seq - a.seq // 2 - 1)
rows = [{"prompt": text(a.seq // 2 - 1), "chosen": answer(), "rejected": answer()} for _ in range(a.pairs * (a.steps + 2))]

if a.peer == "unsloth":
    model, _ = FastLanguageModel.from_pretrained(a.model, max_seq_length=a.seq, dtype=torch.bfloat16, load_in_4bit=True, local_files_only=True)
    model = FastLanguageModel.get_peft_model(model, r=a.rank, lora_alpha=2 * a.rank, lora_dropout=0, bias="none", target_modules=LINEARS,
        use_gradient_checkpointing="unsloth", random_state=0)
    lora = None
else:
    from peft import LoraConfig
    quant = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
    model = LlamaForCausalLM.from_pretrained(a.model, quantization_config=quant, dtype=torch.bfloat16, device_map={"": 0}, attn_implementation="sdpa")
    lora = LoraConfig(r=a.rank, lora_alpha=2 * a.rank, lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM")

class Watch(TrainerCallback):
    def __init__(self): self.times, self.begin, self.tokens = [], None, []
    def on_step_begin(self, args, state, control, **rest):
        torch.cuda.synchronize()
        if state.global_step == 2: torch.cuda.reset_peak_memory_stats()
        self.begin = time.perf_counter()
    def on_step_end(self, args, state, control, **rest):
        torch.cuda.synchronize(); self.times.append(time.perf_counter() - self.begin)
    def on_log(self, args, state, control, logs=None, **rest):
        if "num_tokens" in logs: self.tokens.append(logs["num_tokens"])

watch = Watch()
settings = dict(output_dir="/tmp/trl_dpo", per_device_train_batch_size=a.pairs, gradient_accumulation_steps=1, max_steps=a.steps, learning_rate=1e-4, lr_scheduler_type="constant",
    logging_steps=1, report_to=[], bf16=True, gradient_checkpointing=True, save_strategy="no", max_length=a.seq, beta=0.1,
    precompute_ref_log_probs=a.precompute)
trainer = DPOTrainer(model=model, ref_model=None, args=DPOConfig(**settings), train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
    callbacks=[watch], **({"peft_config": lora} if lora else {}))
trainer.train()
step = statistics.median(watch.times[2:])
tokens = 2 * a.pairs * a.seq
print("tokens by the trainer's count:", watch.tokens)
print(f"PEER {a.peer} trl {trl.__version__}{' precomputed' if a.precompute else ''}: {a.pairs} pairs of {a.seq}: {tokens:.0f} tokens a step, "
      f"{tokens / step:.0f} tokens/s, {step * 1e3:.0f} ms a step, peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB, "
      f"loss {trainer.state.log_history[-2].get('loss')}", flush=True)
