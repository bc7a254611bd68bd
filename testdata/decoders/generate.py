"""Tokens that transformers generates greedily past the length at which LongRoPE changes its frequencies, on a CPU, in float32.

Usage: python generate.py OUTDIR
Reads OUTDIR/phi4_mini (of make.py) and writes phi4_mini/generated.json: prompts and the tokens that follow each alone, and
uneven prompts with those that follow them in one batch, padded on the left.
"""
import json, pathlib, sys
import torch
from transformers import AutoModelForCausalLM

NEW = 12
# after these, keys rotated by the short factors give other tokens than the long factors do
SEEDS = [273, 313, 395]


def prompt(seed, count=12): return torch.randint(64, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def main():
    folder = pathlib.Path(sys.argv[1]) / "phi4_mini"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    def generate(rows):
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        with torch.no_grad():
            return model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)[:, longest:].tolist()

    prompts = [prompt(seed) for seed in SEEDS]
    # each token from the whole text: what a cache must not change
    with torch.no_grad():
        for row in prompts:
            text = list(row)
            for _ in range(NEW): text.append(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax().item())
            assert text[len(row):] == generate([row])[0], "the old cache is used"
    uneven = [prompts[0], prompts[1][:7], prompts[2][3:]]
    found = dict(prompts=prompts, alone=[generate([row])[0] for row in prompts], uneven=uneven, together=generate(uneven))
    json.dump(found, open(folder / "generated.json", "w"))
    print(found)


main()
