"""Reference values for objectives of a head of classes: TRL's RewardTrainer, and transformers' classes for sequence and token
classification with torch's losses, on the golden model `gqa` with PEFT's adapters, on a CPU in float32.

Usage: python heads.py OUTFOLDER
Needs: torch, transformers, peft, trl (1.16.0), safetensors, scikit-learn.

  start/NAME/              adapters as they start: LoRA on q_proj, and `score` whole
  data.json                token ids and labels
  words.json               words with labels, as transformers' examples make tokens of them
  scores.json              scikit-learn's precision, recall and F1 of the models as they start
  CASE.json                settings, and loss, gradient norm and metrics of ten steps
  CASE.safetensors         grad.*: gradients of the first step, before clipping; trained.*: the adapter after ten
"""
import json, random, shutil, sys
from pathlib import Path
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from sklearn.metrics import precision_recall_fscore_support
from tokenizers import Tokenizer, models
from transformers import (AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer,
                          PreTrainedTokenizerFast, TrainerCallback)
from trl import RewardConfig, RewardTrainer

here, out = Path(__file__).parent, Path(sys.argv[1])
VOCABULARY, STEPS, RATE, NORM = 128, 10, 5e-3, 0.5
CLASSES = {"SEQ_CLS": AutoModelForSequenceClassification, "TOKEN_CLS": AutoModelForTokenClassification}

def base(task, labels, **more):
    config = AutoConfig.from_pretrained(here / "gqa", num_labels=labels, pad_token_id=0, **more)
    config.classifier_dropout = 0.0
    return CLASSES[task].from_pretrained(here / "gqa", config=config, dtype=torch.float32)

def start(name, task, labels):
    torch.manual_seed(labels)
    settings = dict(task_type=task, r=2, lora_alpha=6, target_modules=["q_proj"], modules_to_save=["score"], init_lora_weights=False)
    model = get_peft_model(base(task, labels), LoraConfig(**settings))
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "score" in key:
                value.copy_(torch.randn_like(value) * 0.3)
    model.save_pretrained(out / "start" / name)
    (out / "start" / name / "README.md").unlink(missing_ok=True)
    settings = out / "start" / name / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "gqa"}, indent=1) + "\n")

def load(name, task, labels, **more):
    return PeftModel.from_pretrained(base(task, labels, **more), out / "start" / name, is_trainable=True)

short = lambda name: name.replace(".modules_to_save.default", "").replace(".default", "")
trained = lambda model: {short(name): value for name, value in model.named_parameters() if value.requires_grad}

def write(case, settings, steps, grads, model):
    tensors = {f"grad.{name}": value for name, value in grads.items()}
    tensors |= {f"trained.{name}": value.detach() for name, value in trained(model).items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, out / f"{case}.safetensors")
    lines = ",\n".join(json.dumps(step) for step in steps)
    head = json.dumps({"settings": settings, "rate": RATE, "max_grad_norm": NORM})[:-1]
    (out / f"{case}.json").write_text(f'{head}, "steps": [\n{lines}]}}\n')
    print(case, [round(step["loss"], 4) for step in steps])

class Record(TrainerCallback):
    def __init__(self):
        self.steps = []
    def on_log(self, args, state, control, logs=None, **rest):
        if "loss" in logs:
            self.steps.append({name: value for name, value in logs.items() if isinstance(value, float)})

def reward(case, settings, data):
    record, model = Record(), load("reward", "SEQ_CLS", 1)
    arguments = RewardConfig(output_dir="/tmp/heads", per_device_train_batch_size=len(data), max_steps=STEPS, learning_rate=RATE,
                             lr_scheduler_type="constant", max_grad_norm=NORM, weight_decay=0.0, logging_steps=1, report_to=[],
                             bf16=False, use_cpu=True, gradient_checkpointing=False, optim="adamw_torch", save_strategy="no",
                             max_length=None, **settings)
    words = Tokenizer(models.WordLevel({f"t{number:03}": number for number in range(VOCABULARY)}, unk_token="t000"))
    words = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t002", pad_token="t000")
    trainer = RewardTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(data), processing_class=words, callbacks=[record])
    clip, grads = trainer.accelerator.clip_grad_norm_, {}
    def clipped(parameters, *rest, **more):
        if not grads:
            grads.update({name: value.grad.clone() for name, value in trained(model).items()})
        return clip(parameters, *rest, **more)
    trainer.accelerator.clip_grad_norm_ = clipped
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(trainer.train_dataset)
    trainer.train()
    write(case, settings, record.steps, grads, model)

def curve(case, settings, model, loss_of):
    """Ten steps of AdamW; `loss_of` returns the loss and the metrics."""
    optimizer = torch.optim.AdamW(trained(model).values(), lr=RATE, weight_decay=0.0)
    steps, grads = [], {}
    for _ in range(STEPS):
        loss, metrics = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        if not grads:
            grads = {name: value.grad.clone() for name, value in trained(model).items()}
        norm = torch.nn.utils.clip_grad_norm_(trained(model).values(), NORM)
        optimizer.step()
        steps.append({"loss": loss.item(), "grad_norm": norm.item()} | {name: float(value) for name, value in metrics.items()})
    write(case, settings, steps, grads, model)

draw = random.Random(11)
ids = lambda least, most: [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(least, most))]
data = {
    "pairs": [{"chosen_ids": (prompt := ids(3, 9)) + ids(1, 9), "rejected_ids": prompt + ids(1, 9), "margin": round(draw.uniform(0, 2), 3)} for _ in range(4)],
    "sequences": [ids(2, 12) for _ in range(5)],
    "class": [2, 0, 1, 1, 2],
    "present": [[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]],
    "target": [[0.5, -1.0], [2.25, 0.0], [-0.75, 3.5], [1.0, 1.0], [0.0, -2.0]],
}
data["tags"] = [[draw.choice([-100, 0, 0, 1, 2, 3]) for _ in row] for row in data["sequences"]]
data["tags"][0][0] = 3  # The first token can have one.
out.mkdir(exist_ok=True, parents=True)
(out / "data.json").write_text(json.dumps(data) + "\n")
shutil.rmtree(out / "start", ignore_errors=True)
for name, task, labels in [("reward", "SEQ_CLS", 1), ("three", "SEQ_CLS", 3), ("two", "SEQ_CLS", 2), ("tags", "TOKEN_CLS", 4)]:
    start(name, task, labels)

plain = [{name: pair[name] for name in ("chosen_ids", "rejected_ids")} for pair in data["pairs"]]
reward("reward", {}, plain)
reward("reward_centered", {"center_rewards_coefficient": 0.1}, plain)
reward("reward_margin", {"center_rewards_coefficient": 0.02}, data["pairs"])

longest = max(map(len, data["sequences"]))
pad = lambda rows, value: torch.tensor([row + [value] * (longest - len(row)) for row in rows])
batch = {"input_ids": pad(data["sequences"], 0), "attention_mask": pad([[1] * len(row) for row in data["sequences"]], 0)}

def sequence(case, settings, name, labels, target, loss, metrics, **more):
    """`loss` of logits and target; `None` for that of transformers."""
    def loss_of(model):
        result = model(**batch, labels=target)
        value = result.loss if loss is None else loss(result.logits, target)
        return value, metrics(result.logits.detach(), target)
    curve(case, settings, load(name, "SEQ_CLS", labels, **more), loss_of)

right = lambda logits, target: {"accuracy": (logits.argmax(1) == target).float().mean()}
def decisions(logits, target):
    same = ((logits > 0) == (target > 0.5)).float()
    return {"accuracy": same.min(1).values.mean(), "label_accuracy": same.mean()}
error = lambda logits, target: {"mean_absolute_error": (logits - target.view_as(logits)).abs().mean()}
classes, present, targets = torch.tensor(data["class"]), torch.tensor(data["present"]).float(), torch.tensor(data["target"])
weights = [0.5, 2.0, 1.25]
sequence("single", {}, "three", 3, classes, None, right)
sequence("weighted", {"weights": weights}, "three", 3, classes, torch.nn.CrossEntropyLoss(weight=torch.tensor(weights)), right)
kind = {"problem_type": "multi_label_classification"}
sequence("multi_label", {}, "three", 3, present, None, decisions, **kind)
sequence("multi_label_weighted", {"weights": weights}, "three", 3, present, torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weights)), decisions, **kind)
kind = {"problem_type": "regression"}
sequence("regression", {}, "reward", 1, targets[:, 0], None, error, **kind)
sequence("regression_of_two", {}, "two", 2, targets, None, error, **kind)

tags = pad(data["tags"], -100)
def tagged(loss):
    def loss_of(model):
        result = model(**batch, labels=tags)
        found, counted = result.logits.detach().argmax(2), tags != -100
        return result.loss if loss is None else loss(result.logits.view(-1, 4), tags.view(-1)), {"accuracy": (found == tags)[counted].float().mean()}
    return loss_of
curve("tags", {}, load("tags", "TOKEN_CLS", 4), tagged(None))
weights = [0.25, 2.0, 1.0, 1.5]
curve("tags_weighted", {"weights": weights}, load("tags", "TOKEN_CLS", 4), tagged(torch.nn.CrossEntropyLoss(weight=torch.tensor(weights))))

def scores(name, task, labels, expected):
    with torch.no_grad():
        found = load(name, task, labels).eval()(**batch).logits.argmax(-1)
    counted = expected != -100
    settings = dict(average="macro", zero_division=0)
    return precision_recall_fscore_support(expected[counted], found[counted], **settings)[:3]
found = {"three": scores("three", "SEQ_CLS", 3, classes), "tags": scores("tags", "TOKEN_CLS", 4, tags)}
(out / "scores.json").write_text(json.dumps(found) + "\n")

def words():
    """Tokens and labels by `tokenize_and_align_labels` of transformers' example run_ner.py."""
    sentences = [["EU", "rejects", "German", "call"], ["unbelievably", "priced", "diamonds,", "Zürich", "$5"], ["hello"]]
    found = []
    for folder in ("quickstart/model", "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(here / folder)
        for sentence in sentences:
            encoded = tokenizer(sentence, is_split_into_words=True)
            labels, previous = [], None
            for word in encoded.word_ids():
                labels.append(word + 1 if word is not None and word != previous else -100)
                previous = word
            found.append({"tokenizer": folder, "tokens": sentence, "ids": encoded["input_ids"], "labels": labels})
    return found
(out / "words.json").write_text("[" + ",\n".join(json.dumps(record) for record in words()) + "]\n")
