"""Reference values for preference objectives: TRL's own trainers on the golden model `gqa` with the adapter `lora_qv`, the
reference being the base, on a CPU in float32.

Usage: python preferences.py OUTFOLDER [METHOD..]
Needs: torch, transformers, peft, trl (1.16.0), safetensors.

  pairs.json           token ids of the pairs: prompt, chosen, rejected
  long.json            the same, with prompts of 17 to 40 tokens
  answers.json         token ids of single answers: prompt, completion, label
  unpaired.json        records of each kind for KTO, with the tokens and labels that TRL makes of them
  records.json         records of each kind, with the tokens that TRL makes of them by quickstart's tokenizer and a template,
                       whole and cut
  METHOD/CASE.json     settings, and loss, gradient norm and metrics of ten steps
  METHOD/CASE.safetensors grad.*: gradients of the first step, before clipping; trained.*: the adapter after ten
"""
import json, random, sys
from pathlib import Path
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

here, out = Path(__file__).parent, Path(sys.argv[1])
VOCABULARY, STEPS, RATE, NORM = 128, 10, 5e-3, 0.5

def tokenizer():
    """Words `t000` to `t127` are the tokens 0 to 127: none is a part of another, as a special token would be found in it."""
    vocabulary = {f"t{number:03}": number for number in range(VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="t000"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t002", pad_token="t000")

def pairs(seed=7, least=3, most=9):
    draw = random.Random(seed)
    ids = lambda least, most: [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(least, most))]
    return [{"prompt": ids(least, most), "chosen": ids(1, 12) + [2], "rejected": ids(1, 12) + [2]} for _ in range(4)]

text = lambda ids, first: ("" if first else " ") + " ".join(f"t{number:03}" for number in ids)

class Record(TrainerCallback):
    def __init__(self):
        self.steps, self.grads, self.model = [], {}, None
    def on_pre_optimizer_step(self, args, state, control, **rest):
        pass
    def on_log(self, args, state, control, logs=None, **rest):
        if "loss" in logs:
            self.steps.append({name: value for name, value in logs.items() if isinstance(value, float)})

def short(name):
    return name.replace(".default", "")

def answers():
    """Six, so that the last batch of four has two."""
    draw = random.Random(21)
    ids = lambda least, most: [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(least, most))]
    return [{"prompt": ids(3, 9), "completion": ids(1, 12) + [2], "label": number not in (1, 4, 5)} for number in range(6)]

def run(trainer_class, config, folder, case, settings, data, base=None, rows=None):
    torch.manual_seed(0)
    load = lambda: AutoModelForCausalLM.from_pretrained(here / "gqa", dtype=torch.float32)
    model = PeftModel.from_pretrained(load(), here / "gqa" / "lora_qv", is_trainable=True)
    record = Record()
    arguments = dict(output_dir="/tmp/preferences", per_device_train_batch_size=rows or len(data), max_steps=STEPS,
                     learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=NORM, weight_decay=0.0,
                     logging_steps=1, report_to=[], bf16=False, use_cpu=True, gradient_checkpointing=False,
                     optim="adamw_torch", save_strategy="no", dataloader_drop_last=False,
                     max_length=64, **settings)
    extra = {"ref_model": load()} if base else {}
    trainer = trainer_class(model=model, args=config(**arguments), train_dataset=Dataset.from_list(data),
                            processing_class=tokenizer(), callbacks=[record], **extra)
    # Gradients before clipping.
    clip, grads = trainer.accelerator.clip_grad_norm_, {}
    def clipped(parameters, *rest, **more):
        if not grads:
            grads.update({short(name): value.grad.clone() for name, value in model.named_parameters() if value.requires_grad})
        return clip(parameters, *rest, **more)
    trainer.accelerator.clip_grad_norm_ = clipped
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(trainer.train_dataset)
    trainer.train()
    trained = {short(name): value.detach() for name, value in model.named_parameters() if value.requires_grad}
    (out / folder).mkdir(parents=True, exist_ok=True)
    tensors = {f"grad.{name}": value for name, value in grads.items()} | {f"trained.{name}": value for name, value in trained.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, out / folder / f"{case}.safetensors")
    (out / folder / f"{case}.json").write_text(json.dumps({"settings": settings, "rate": RATE, "max_grad_norm": NORM, "steps": record.steps}, indent=1) + "\n")
    print(folder, case, [round(step["loss"], 4) for step in record.steps])

DPO = {
    "sigmoid": {"beta": 0.1},
    "sigmoid_norm": {"loss_type": ["sigmoid_norm"], "beta": 2.0},
    "hinge": {"loss_type": ["hinge"], "beta": 0.3},
    "ipo": {"loss_type": ["ipo"], "beta": 0.4},
    "robust": {"loss_type": ["robust"], "beta": 0.2, "label_smoothing": 0.2},
    "exo_pair": {"loss_type": ["exo_pair"], "beta": 0.3, "label_smoothing": 1e-3},
    "nca_pair": {"loss_type": ["nca_pair"], "beta": 0.1},
    "bco_pair": {"loss_type": ["bco_pair"], "beta": 0.2},
    "sppo_hard": {"loss_type": ["sppo_hard"], "beta": 0.5},
    "apo_zero": {"loss_type": ["apo_zero"], "beta": 0.3},
    "apo_down": {"loss_type": ["apo_down"], "beta": 0.3},
    "mixture": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0], "beta": 0.2},
}

ORPO = {"default": {}, "strong": {"beta": 0.7}}

CPO = {
    "sigmoid": {},
    "smoothed": {"beta": 0.3, "label_smoothing": 0.2, "cpo_alpha": 0.4},
    "hinge": {"loss_type": "hinge", "beta": 0.2},
    "ipo": {"loss_type": "ipo", "beta": 0.5, "cpo_alpha": 0.3},
    "simpo": {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0},
}

KTO = {
    "kto": {},
    "weighted": {"beta": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.7},
    "apo_zero_unpaired": {"loss_type": "apo_zero_unpaired", "beta": 0.3},
}

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"

def records():
    """Tokens that TRL makes of each kind of record."""
    user, bot = lambda words: {"role": "user", "content": words}, lambda words: {"role": "assistant", "content": words}
    kinds = {
        "text": {"prompt": "Price is", "chosen": " $5, cheap.", "rejected": " five dollars."},
        "implicit text": {"chosen": "The diamond costs $5.", "rejected": "The diamond costs nothing."},
        "messages": {"prompt": [user("How much?")], "chosen": [bot("$5")], "rejected": [bot("A lot of money.")]},
        "implicit messages": {"chosen": [user("How much?"), bot("$5")], "rejected": [user("How much?"), bot("A lot.")]},
        "several turns": {"prompt": [user("Hi"), bot("Hello"), user("How much?")], "chosen": [bot("$5")], "rejected": [bot("$7")]},
    }
    quickstart = AutoTokenizer.from_pretrained(here / "quickstart" / "model")
    quickstart.chat_template = TEMPLATE
    found = []
    for kind, record in kinds.items():
        model = AutoModelForCausalLM.from_pretrained(here / "gqa", dtype=torch.float32)
        arguments = DPOConfig(output_dir="/tmp/preferences", report_to=[], bf16=False, use_cpu=True, max_length=None)
        trainer = DPOTrainer(model=model, ref_model=AutoModelForCausalLM.from_pretrained(here / "gqa"), args=arguments,
                             train_dataset=Dataset.from_list([record]), processing_class=quickstart)
        row = trainer.train_dataset[0]
        found.append({"kind": kind, "record": record, "cut": cut(row, trainer.processing_class)}
                     | {name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")})
    return {"template": TEMPLATE, "records": found}

def cut(row, tokenizer):
    """Tokens and masks of both answers, cut by TRL to several lengths; the trainer leaves out pairs of which no answer is left."""
    found = []
    for mode in ("keep_start", "keep_end"):
        for length in (4, 7, 10, 14):
            if mode == "keep_start" and len(row["prompt_ids"]) >= length:
                found.append({"truncation": mode, "max_length": length, "answers": None})
                continue
            batch = DataCollatorForPreference(0, max_length=length, truncation_mode=mode)([row])
            real = [int(mask.sum()) for mask in batch["attention_mask"]]
            answers = [{name: batch[name][at, :real[at]].tolist() for name in ("input_ids", "completion_mask")} for at in (0, 1)]
            found.append({"truncation": mode, "max_length": length, "answers": answers})
    return found

def unpaired():
    """Tokens and labels that TRL's KTO makes of each kind of records."""
    user, bot = lambda words: {"role": "user", "content": words}, lambda words: {"role": "assistant", "content": words}
    kinds = {
        "text": [{"prompt": "Price is", "completion": " $5, cheap.", "label": True}, {"prompt": "Price is", "completion": " five.", "label": False}],
        "messages": [{"prompt": [user("How much?")], "completion": [bot("$5")], "label": True},
                     {"prompt": [user("Hi"), bot("Hello"), user("How much?")], "completion": [bot("A lot.")], "label": False}],
        "pairs": [{"prompt": "Price is", "chosen": " $5, cheap.", "rejected": " five dollars."},
                  {"prompt": "It costs", "chosen": " $7.", "rejected": " seven."}],
        "implicit pairs": [{"chosen": [user("How much?"), bot("$5")], "rejected": [user("How much?"), bot("A lot.")]}],
    }
    quickstart = AutoTokenizer.from_pretrained(here / "quickstart" / "model")
    quickstart.chat_template = TEMPLATE
    found = []
    for kind, records in kinds.items():
        load = lambda: AutoModelForCausalLM.from_pretrained(here / "gqa", dtype=torch.float32)
        arguments = KTOConfig(output_dir="/tmp/preferences", report_to=[], bf16=False, use_cpu=True, max_length=None, per_device_train_batch_size=2)
        trainer = KTOTrainer(model=load(), ref_model=load(), args=arguments, train_dataset=Dataset.from_list(records), processing_class=quickstart)
        names = ("prompt_ids", "completion_ids", "KL_completion_ids", "label")
        found.append({"kind": kind, "records": records, "samples": [{name: row[name] for name in names} for row in trainer.train_dataset]})
    return {"template": TEMPLATE, "kinds": found}

out.mkdir(exist_ok=True)
methods = sys.argv[2:] or ["dpo", "orpo", "cpo", "kto", "long"]
ids = pairs()
(out / "pairs.json").write_text(json.dumps(ids) + "\n")
(out / "records.json").write_text(json.dumps(records()) + "\n")
longs = pairs(5, 17, 40)
(out / "long.json").write_text(json.dumps(longs) + "\n")
singles = answers()
(out / "answers.json").write_text(json.dumps(singles) + "\n")
(out / "unpaired.json").write_text(json.dumps(unpaired(), indent=1) + "\n")
data = [{"prompt": text(pair["prompt"], True), "chosen": text(pair["chosen"], False), "rejected": text(pair["rejected"], False)} for pair in ids]
for case, settings in DPO.items() if "dpo" in methods else ():
    run(DPOTrainer, DPOConfig, "dpo", case, settings, data, base=True)
for case, settings in ORPO.items() if "orpo" in methods else ():
    run(ORPOTrainer, ORPOConfig, "orpo", case, settings, data)
for case, settings in CPO.items() if "cpo" in methods else ():
    run(CPOTrainer, CPOConfig, "cpo", case, settings, data)
if "long" in methods:
    data = [{"prompt": text(pair["prompt"], True), "chosen": text(pair["chosen"], False), "rejected": text(pair["rejected"], False)} for pair in longs]
    run(DPOTrainer, DPOConfig, "dpo", "long", {"beta": 0.2}, data, base=True)
    run(ORPOTrainer, ORPOConfig, "orpo", "long", {"beta": 0.3}, data)
    run(CPOTrainer, CPOConfig, "cpo", "long", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5}, data)
data = [{"prompt": text(one["prompt"], True), "completion": text(one["completion"], False), "label": one["label"]} for one in singles]
for case, settings in KTO.items() if "kto" in methods else ():
    run(KTOTrainer, KTOConfig, "kto", case, settings, data, base=True, rows=4)
