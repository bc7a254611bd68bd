"""Reference values for distillation: TRL's own losses on the golden model `gqa` with the adapter `lora_qv` as the student, and with
`rslora` as the teacher, on a CPU in float32.

Usage: python distillation.py OUTFOLDER
Needs: torch, transformers, peft, trl (1.16.0), safetensors; answers.json of preferences.py.

  CASE.json         settings, and loss, gradient norm and metrics of ten steps
  CASE.safetensors  grad.*: gradients of the first step, before clipping; trained.*: the adapter after ten
  CASE_top.*        the same by the teacher's `top_k` most probable tokens
  top.safetensors   the teacher's eight most probable tokens for each target, in the order of the data
"""
import json, sys
from pathlib import Path
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from trl.experimental.gkd import GKDTrainer
from trl.experimental.server_distillation.server_distillation_trainer import ServerDistillationTrainer, _add_tail_bucket, _jsd_divergence
from trl.trainer.distillation_trainer import _chunked_divergence_loss

here, out = Path(__file__).parent, Path(sys.argv[1])
STEPS, RATE, NORM, TOP = 10, 5e-3, 0.5, 8
answers = json.loads((here / "preferences" / "answers.json").read_text())
load = lambda adapter, trains: PeftModel.from_pretrained(
    AutoModelForCausalLM.from_pretrained(here / "gqa", dtype=torch.float32, attn_implementation="eager"), here / "gqa" / adapter, is_trainable=trains)
teacher = load("rslora", False).eval()
short = lambda name: name.replace(".default", "")

longest = max(len(one["prompt"]) + len(one["completion"]) for one in answers)
ids = torch.zeros(len(answers), longest, dtype=torch.long)
mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
for row, one in enumerate(answers):
    both = one["prompt"] + one["completion"]
    ids[row, :len(both)], mask[row, :len(both)] = torch.tensor(both), 1
    labels[row, len(one["prompt"]):len(both)] = torch.tensor(one["completion"])
targets = labels[:, 1:]
valid = targets != -100

def hidden(model):
    """States after the last layer that predict each next token."""
    return model.get_base_model().model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]

with torch.no_grad():
    of_teacher = hidden(teacher)
    teacher_head = teacher.get_base_model().lm_head
    teacher_logits = teacher_head(of_teacher)

def whole(student, beta=1.0, temperature=1.0):
    """TRL's two: they have to agree."""
    head = student.get_base_model().lm_head
    states = hidden(student)
    loss, entropy, count = _chunked_divergence_loss(states, of_teacher, head.weight, teacher_head.weight, valid.long(), beta, temperature=temperature)
    logits = head(states)
    other = GKDTrainer.generalized_jsd_loss(logits, teacher_logits, targets, beta=beta, temperature=temperature)
    assert abs(loss - other) < 1e-5, (loss, other)
    return other, logits, entropy / count

def top(temperature, k):
    return F.log_softmax(teacher_logits / temperature, dim=-1).topk(k)

def of_top(student, beta=1.0, temperature=1.0, top_k=TOP, loss_add_tail=True):
    logits = student.get_base_model().lm_head(hidden(student))
    known, which = top(temperature, top_k)
    log_probs = F.log_softmax(logits / temperature, dim=-1)
    if beta == 0.0:
        trainer = type("Settings", (), {"loss_add_tail": loss_add_tail, "_reduce_divergence_loss": staticmethod(ServerDistillationTrainer._reduce_divergence_loss)})()
        result = {"topk_logprobs": known, "topk_token_ids": which}
        loss = ServerDistillationTrainer._compute_server_forward_kl_loss(trainer, result, log_probs, targets)
    else:
        # TRL has these for one token; its own parts, on more.
        own, known_mask = log_probs.gather(-1, which), torch.ones_like(which, dtype=torch.bool)
        if loss_add_tail:
            own, support = _add_tail_bucket(own, known_mask)
            known, _ = _add_tail_bucket(known, known_mask)
        else:
            own, known, support = own - own.logsumexp(-1, True), known - known.logsumexp(-1, True), known_mask
        loss = ServerDistillationTrainer._reduce_divergence_loss(_jsd_divergence(own, known, beta, support), valid)
    entropy = -(log_probs.exp() * log_probs).sum(-1)[valid].mean()
    return loss, logits, entropy

def run(case, step, settings):
    torch.manual_seed(0)
    student = load("lora_qv", True)
    trained = {short(name): value for name, value in student.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.0)
    steps, tensors = [], {}
    for number in range(STEPS):
        optimizer.zero_grad()
        loss, logits, entropy = step(student, **settings)
        loss.backward()
        if number == 0:
            tensors |= {f"grad.{name}": value.grad.clone() for name, value in trained.items()}
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), NORM)
        accuracy = (logits.argmax(-1) == targets)[valid].float().mean()
        steps.append({"loss": loss.item(), "grad_norm": norm.item(), "entropy": entropy.item(), "mean_token_accuracy": accuracy.item()})
        optimizer.step()
    tensors |= {f"trained.{name}": value.detach() for name, value in trained.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, out / f"{case}.safetensors")
    (out / f"{case}.json").write_text(json.dumps({"settings": settings, "rate": RATE, "max_grad_norm": NORM, "steps": steps}, indent=1) + "\n")
    print(case, [round(step["loss"], 4) for step in steps])

out.mkdir(exist_ok=True)
known, which = top(1.0, TOP)
save_file({"token_ids": which[valid].int().contiguous(), "logprobs": known[valid].contiguous()}, out / "top.safetensors")
run("forward", whole, {"beta": 0.0})
run("reverse", whole, {})
run("jsd", whole, {"beta": 0.5, "temperature": 2.0})
run("skewed", whole, {"beta": 0.1, "temperature": 0.7})
run("forward_top", of_top, {"beta": 0.0})
run("forward_top_alone", of_top, {"beta": 0.0, "loss_add_tail": False})
run("reverse_top", of_top, {"beta": 1.0})
run("jsd_top", of_top, {"beta": 0.3, "temperature": 1.5})
run("reverse_top_alone", of_top, {"beta": 1.0, "loss_add_tail": False})
