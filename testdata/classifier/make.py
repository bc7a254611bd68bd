"""Reference values for sequence classification, from transformers and peft on a CPU, in float32.

Usage: python make.py OUTDIR
Needs: torch, transformers, peft, safetensors (see VERSIONS.txt).

OUTDIR/config.json, model.safetensors   a small LlamaForSequenceClassification of 3 classes
OUTDIR/io.safetensors                   input_ids, attention_mask, labels; logits of the last tokens, and the loss
OUTDIR/lora/                            a PEFT adapter (SEQ_CLS: `score` is trained whole), as it starts; its logits and loss
OUTDIR/lora/curve.json                  losses and gradient norms (before clipping) of 8 AdamW steps
OUTDIR/lora/trained.safetensors         the adapter after them
"""
import json, pathlib, sys
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForSequenceClassification

out = pathlib.Path(sys.argv[1])
(out / "lora").mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
config = LlamaConfig(hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                     vocab_size=64, max_position_embeddings=128, tie_word_embeddings=False, num_labels=3, pad_token_id=0,
                     attn_implementation="eager")
model = LlamaForSequenceClassification(config).float().eval()
with torch.no_grad():
    for name, p in model.named_parameters():
        p.copy_(1 + 0.2 * torch.randn_like(p) if "norm" in name else torch.randn_like(p) * 0.2)
model.save_pretrained(out)

lengths, labels = [9, 4, 7, 2, 6], torch.tensor([2, 0, 1, 1, 2])
ids = torch.randint(3, 64, (5, 9))
mask = (torch.arange(9)[None] < torch.tensor(lengths)[:, None]).long()
ids = ids * mask
batch = dict(input_ids=ids, attention_mask=mask, labels=labels)


def write(model, path, **more):
    result = model(**batch)
    save_file(dict(logits=result.logits.detach().contiguous(), loss=result.loss.detach().view(1), **more), path)


write(model, out / "io.safetensors", **{k: v.contiguous() for k, v in batch.items()})
torch.manual_seed(1)
peft = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=12, target_modules=["q_proj", "v_proj", "up_proj"],
                                        init_lora_weights=False))
peft.save_pretrained(out / "lora")
(out / "lora/README.md").unlink(missing_ok=True)
write(peft, out / "lora/io.safetensors")

LR, STEPS = 1e-2, 8
optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=LR, weight_decay=0.0)
steps = []
for _ in range(STEPS):
    loss = peft(**batch).loss
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(peft.parameters(), 1.0)
    optimizer.step()
    steps.append(dict(loss=loss.item(), grad_norm=norm.item()))
json.dump(dict(lr=LR, steps=steps), open(out / "lora/curve.json", "w"), indent=1)
save_file({k: v.contiguous() for k, v in get_peft_model_state_dict(peft).items()}, out / "lora/trained.safetensors")
