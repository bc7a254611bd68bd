"""Loads the adapters that our tests wrote in Python's PEFT and compares logits.

    PEFT_CHECK=/tmp/adapters cargo test -p burn-lora-adapter --features cpu --test it peft
    pip install -r crates/adapter/tests/peft_requirements.txt
    python crates/adapter/tests/peft_check.py /tmp/adapters

For each adapter three models have to give the same logits: PEFT with the adapter, PEFT after its own
merge, and transformers with the weights that *we* merged. Adapters that came from PEFT's goldens have
to give the golden's logits too. A key that PEFT misses or does not know is an error.
"""

import pathlib
import sys
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file

TESTDATA = pathlib.Path(__file__).resolve().parents[3] / "testdata"


def base(variant):
    config = transformers.AutoConfig.from_pretrained(TESTDATA / variant)
    config.tie_word_embeddings = False  # ours merges into the embedding and not into the head
    model = transformers.LlamaForCausalLM(config)
    state = load_file(TESTDATA / variant / "model.safetensors")
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"].clone())
    model.load_state_dict(state)
    return model.float().eval()


def logits(model, batch):
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def check(variant, folder):
    batch = load_file(TESTDATA / variant / "io.safetensors")
    plain = logits(base(variant), batch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(base(variant), folder).eval()
    said = [str(w.message) for w in caught if "missing" in str(w.message) or "unexpected" in str(w.message)]
    assert not said, said
    known = set(peft.utils.get_peft_model_state_dict(model))
    written = set(load_file(folder / "adapter_model.safetensors"))
    # PEFT lists the base weight of an embedding that is adapted; it does not need it.
    extra = {key for key in known if key.endswith("base_layer.weight")}
    assert written == known - extra, written ^ (known - extra)
    found = logits(model, batch)
    parts = [f"changes {(found - plain).abs().max():.1e}"]
    worst = 0.0

    golden = TESTDATA / variant / folder.name / "io.safetensors"
    if golden.exists():
        error = (found - load_file(golden)["logits"]).abs().max().item()
        parts.append(f"golden {error:.1e}")
        worst = max(worst, error)
    merged = folder / "merged_model.safetensors"
    if merged.exists():
        ours = base(variant)
        _, unexpected = ours.load_state_dict(load_file(merged), strict=False)
        assert not unexpected, unexpected
        error = (found - logits(ours, batch)).abs().max().item()
        parts.append(f"our merge {error:.1e}")
        worst = max(worst, error)
    error = (found - logits(model.merge_and_unload(), batch)).abs().max().item()
    parts.append(f"PEFT's merge {error:.1e}")
    assert (found - plain).abs().max() > 1e-3, "the adapter does nothing"
    ok = worst <= 1e-4
    print(f"{'ok  ' if ok else 'FAIL'} {variant}/{folder.name}: {', '.join(parts)}")
    return ok


def main():
    print("peft", peft.__version__, "transformers", transformers.__version__, "torch", torch.__version__)
    root = pathlib.Path(sys.argv[1])
    folders = sorted(root.glob("*/*/adapter_config.json"))
    assert folders, f"no adapters in {root}"
    results = [check(path.parent.parent.name, path.parent) for path in folders]
    print(f"{sum(results)} of {len(results)} adapters agree")
    sys.exit(0 if all(results) else 1)


main()
