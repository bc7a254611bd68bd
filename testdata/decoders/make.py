"""Reference values for decoders that are more than a Llama, from Hugging Face transformers and PEFT on a CPU, in float32.

Usage: python make.py OUTDIR [NAME ...]
Needs: torch, transformers, peft, safetensors, gguf (see VERSIONS.txt in the output for those used).

Each folder OUTDIR/<name>/ holds
  config.json, model.safetensors    the model, as transformers 5 writes it
  config_old.json                   the same settings in the keys of transformers 4
  io.safetensors                    input_ids, labels (-100 = not a target), attention_mask [B,S], logits, loss
  io_short.safetensors, io_padded.safetensors    longrope: a short batch, and one that is short without its padding
  grads.safetensors                 gradient of that loss by each tensor of model.safetensors, under its name there
  lora/, lora_experts/              PEFT adapters: their files, io.safetensors and grads.safetensors
  lora_experts_old/                 the same, as PEFT wrote them over transformers 4, where each expert had linear layers of its own
  model.gguf                        the same weights, as llama.cpp's converter writes them
gpt_oss_mxfp4/ is stored as openai/gpt-oss-20b is: experts in MXFP4, the rest in bfloat16; its values are computed in float32
from the decoded weights, and its gradients are by all tensors but the experts' matrices. Of gemma3_gguf/ and qwen3_moe_gguf/
there is the GGUF file only: llama.cpp's format cannot say all that the other folders' settings do.
"""
import importlib.metadata, json, pathlib, sys, tempfile
import as_gguf, torch, transformers, peft
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

SEED, VOCAB = 0, 64
BASE = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=VOCAB,
            max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=None)
def rope(kind="default", theta=10000.0, **more): return dict(rope_type=kind, rope_theta=theta, **more)
YARN = rope("yarn", 150000.0, factor=4.0, beta_fast=32.0, beta_slow=1.0, truncate=False, original_max_position_embeddings=16)
GPT_OSS = dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=6, rope_parameters=YARN, router_aux_loss_coef=0.9)
QWEN3_MOE = dict(head_dim=12, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=12, rope_parameters=rope(theta=1e6))
MODELS = {
    "gemma3": ("Gemma3Text", dict(num_hidden_layers=4, intermediate_size=32, head_dim=12, sliding_window=6, query_pre_attn_scalar=20, tie_word_embeddings=True,
                                  layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"], pad_token_id=0,
                                  rope_parameters=dict(full_attention=rope("linear", 1e6, factor=8.0), sliding_attention=rope()))),
    "gemma2": ("Gemma2", dict(intermediate_size=32, head_dim=12, sliding_window=6, query_pre_attn_scalar=20, tie_word_embeddings=True, pad_token_id=0,
                              attn_logit_softcapping=2.0, final_logit_softcapping=3.0)),
    "phi3": ("Phi3", dict(sliding_window=6)),
    "phi4_mini": ("Phi3", dict(num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, original_max_position_embeddings=16,
                               rope_parameters=rope("longrope", partial_rotary_factor=0.75, original_max_position_embeddings=16,
                                                    short_factor=[1.0, 1.1, 1.25, 1.5, 1.75, 2.0], long_factor=[1.2, 2.0, 3.5, 6.0, 9.0, 14.0]))),
    "mixtral": ("Mixtral", dict(intermediate_size=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=None, rope_parameters=rope(theta=1e6))),
    "qwen3_moe": ("Qwen3Moe", dict(QWEN3_MOE, num_hidden_layers=3, norm_topk_prob=True, mlp_only_layers=[1])),
    "qwen3_moe_plain": ("Qwen3Moe", dict(QWEN3_MOE, decoder_sparse_step=2, norm_topk_prob=False, attention_bias=True)),
    "gpt_oss": ("GptOss", dict(GPT_OSS, intermediate_size=16, head_dim=12)),
    # a Llama with four factors
    "granite": ("Granite", dict(embedding_multiplier=3.0, attention_multiplier=0.4, residual_multiplier=0.6, logits_scaling=2.0)),
    # blocks of 32 values: two per row of the one expert's matrix, three of the other's
    "gpt_oss_mxfp4": ("GptOss", dict(GPT_OSS, hidden_size=64, intermediate_size=96, head_dim=16)),
}
# what GGUF can say of these families: a scale of head_dim, each sixth layer full, all layers sparse and normalised
IN_GGUF = {
    "gemma3_gguf": ("Gemma3Text", dict(MODELS["gemma3"][1], num_hidden_layers=7, layer_types=None, intermediate_size=16, num_attention_heads=2, num_key_value_heads=1,
                                       head_dim=8, query_pre_attn_scalar=8)),
    "qwen3_moe_gguf": ("Qwen3Moe", dict(QWEN3_MOE, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True)),
}
ALL_LINEAR = ["gemma3", "phi3"]
WITH_GGUF = ["phi4_mini", "mixtral"]
EXPERTS = {"mixtral": "mlp.experts", "qwen3_moe": "mlp.experts", "gpt_oss": "mlp.experts", "gpt_oss_mxfp4": "mlp.experts"}
QUANTIZATION = dict(modules_to_not_convert=["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"], quant_method="mxfp4")


def classes(family):
    stem = family.removesuffix("Text")
    return getattr(transformers, family + "Config"), getattr(transformers, stem + "ForCausalLM")


def fresh(family, cfg):
    config, kind = classes(family)
    config = config(**{**BASE, **json.loads(json.dumps(cfg))})
    config._attn_implementation, config._experts_implementation = "eager", "eager"
    return kind(config).float().eval()


def model(family, cfg):
    torch.manual_seed(SEED)
    m = fresh(family, cfg)
    centre = 0.0 if family.startswith("Gemma") else 1.0   # Gemma's norms add 1 to their weights
    wide = 0.7 if family == "GptOss" else 0.15            # some of the values are beyond swiglu_limit
    with torch.no_grad():                                 # wider than the default init, so that no part is numerically invisible
        for n, p in m.named_parameters():
            if "norm" in n: p.copy_(centre + 0.2 * torch.randn_like(p))
            elif "embed" in n: p.copy_(torch.randn_like(p) * 0.3)
            elif n.endswith("bias"): p.copy_(torch.randn_like(p) * 0.2)
            elif n.endswith("sinks"): p.copy_(torch.randn_like(p))
            elif n.endswith("gate_up_proj"): p.copy_(torch.randn_like(p) * wide)
            elif n.endswith(("mlp.gate.weight", "router.weight")): p.copy_(torch.randn_like(p) * 0.4)
            else: p.copy_(torch.randn_like(p) * 0.15)
    return m


def batch(length, padding=(0, 5, 3)):
    g = torch.Generator().manual_seed(SEED + 1)
    ids = torch.randint(3, VOCAB, (3, length), generator=g)
    mask = torch.ones_like(ids)
    for row, n in enumerate(padding[:2]): mask[row, length - n:] = 0          # on the right
    mask[2, :padding[2]] = 0                                                   # on the left
    labels = ids.clone(); labels[:, :2] = -100; labels[2, :padding[2] + 2] = -100; labels[mask == 0] = -100
    return torch.where(mask == 1, ids, torch.zeros_like(ids)), labels, mask


def run(m, inputs):
    ids, labels, mask = inputs
    positions = (mask.cumsum(-1) - 1).clamp(min=0)                            # only `generate` takes them from the mask by itself
    logits = m(input_ids=ids, attention_mask=mask, position_ids=positions).logits.float()
    s, t = logits[:, :-1].reshape(-1, VOCAB), labels[:, 1:].reshape(-1)
    loss = torch.nn.functional.cross_entropy(s, t, ignore_index=-100)
    return loss, dict(input_ids=ids, labels=labels, attention_mask=mask, logits=logits.detach().contiguous(), loss=loss.detach().reshape(1))


def gradients(m, inputs):
    m.zero_grad()
    loss, io = run(m, inputs); loss.backward()
    return io, {n: p.grad.clone() for n, p in m.named_parameters() if p.requires_grad}


def as_stored(family, tensors):
    """The names and shapes of the file: Mixtral's and Qwen's experts are apart there, and one tensor in memory."""
    stored = {}
    for name, t in tensors.items():
        layer, found, kind = name.partition(".mlp.experts.")
        mixtral = family == "Mixtral"
        if mixtral and ".mlp.gate." in name: stored[name.replace(".mlp.gate.", ".block_sparse_moe.gate.")] = t
        elif not found or family == "GptOss": stored[name] = t
        else:
            prefix = f"{layer}.block_sparse_moe.experts" if mixtral else f"{layer}.mlp.experts"
            names = ["w1", "w3", "w2"] if mixtral else ["gate_proj", "up_proj", "down_proj"]
            for e, matrix in enumerate(t):
                parts = dict(zip(names, matrix.chunk(2))) if kind == "gate_up_proj" else {names[2]: matrix}
                for part, value in parts.items(): stored[f"{prefix}.{e}.{part}.weight"] = value
    return {n: t.contiguous().clone() for n, t in stored.items()}


def check_routes(m, inputs):
    """No choice of experts hangs on rounding, and each expert is chosen."""
    for name, module in m.named_modules():
        if not type(module).__name__.endswith("TopKRouter"): continue
        seen = []
        hook = module.register_forward_hook(lambda _, __, out: seen.append(out))
        with torch.no_grad(): run(m, inputs)
        hook.remove()
        real = inputs[2].reshape(-1) == 1
        top = seen[0][0][real].sort(-1, descending=True).values
        assert (top[:, module.top_k - 1] - top[:, module.top_k]).min() > 2e-4, f"{name}: a tie"
        assert seen[0][2][real].unique().numel() == module.num_experts, f"{name}: an expert that nothing is routed to"


def check_clamp(m, inputs):
    for module in m.modules():
        if type(module).__name__ != "GptOssExperts": continue
        seen, apply = [], module._apply_gate
        module._apply_gate = lambda x: (seen.append(x.detach()), apply(x))[1]
        with torch.no_grad(): run(m, inputs)
        del module._apply_gate
        x = torch.cat(seen); gate, up = x[..., ::2], x[..., 1::2]
        for part, low in [(gate, False), (up, True)]:
            assert (part > module.limit).any() and (not low or (part < -module.limit).any()) and ((part.abs() - module.limit).abs() > 1e-5).all()


def check_gradients(kind, d, grads, inputs):
    """Tensors of the file are moved along their gradients, and the loss follows. One of each shape of name, since a file is read each time."""
    stored = load_file(d / "model.safetensors")
    assert stored.keys() == grads.keys(), stored.keys() ^ grads.keys()
    assert all(stored[n].shape == g.shape for n, g in grads.items())
    chosen = {"".join(c for c in n if not c.isdigit()): n for n in grads}
    for name in chosen.values():
        g = grads[name]; assert g.norm() > 1e-5, f"{name}: invisible"
        # small where a longer step may choose another expert
        step, losses = min(5e-4 / g.norm().item(), 5e-4 if ".gate." in name or "router" in name else 2e-3), []
        for sign in (1, -1):
            with tempfile.TemporaryDirectory() as t:
                t = pathlib.Path(t); (t / "config.json").write_text((d / "config.json").read_text())
                save_file({**stored, name: stored[name] + sign * step * g / g.norm()}, t / "model.safetensors", metadata=dict(format="pt"))
                moved = load(kind, t)
                with torch.no_grad(): losses.append(run(moved, inputs)[0].item())
        slope = (losses[0] - losses[1]) / (2 * step)
        assert abs(slope / g.norm().item() - 1) < 0.03, f"{name}: {slope} against {g.norm()}"


def old_keys(name, config):
    c = dict(config); parameters = c.pop("rope_parameters")
    if name == "gemma3":
        full, sliding = parameters["full_attention"], parameters["sliding_attention"]
        c["rope_theta"], c["rope_local_base_freq"] = full["rope_theta"], sliding["rope_theta"]
        c["rope_scaling"] = dict(rope_type="linear", factor=full["factor"])
        c.pop("layer_types"); c.pop("_sliding_window_pattern", None); c["sliding_window_pattern"] = 3
    else:
        parameters = dict(parameters)
        c["rope_theta"], kind = parameters.pop("rope_theta"), parameters.pop("rope_type")
        if "partial_rotary_factor" in parameters: c["partial_rotary_factor"] = parameters.pop("partial_rotary_factor")
        if kind == "longrope": parameters.pop("original_max_position_embeddings")    # beside it, in Phi's configs
        c["rope_scaling"] = None if kind == "default" else {("type" if kind == "longrope" else "rope_type"): kind, **parameters}
        if name == "gemma2": c.pop("layer_types")
    if name.startswith("qwen3_moe"): c["num_experts"] = c.pop("num_local_experts")
    c.pop("swiglu_alpha", None)
    if c.get("head_dim", 0) is None: c.pop("head_dim")
    c["torch_dtype"] = c.pop("dtype"); c["transformers_version"] = "4.53.0"
    return c


def adapter(m, d, config, inputs):
    torch.manual_seed(SEED + 2)
    p = get_peft_model(m, config).eval()
    with torch.no_grad():
        for n, w in p.named_parameters():
            if "lora_" in n: w.copy_(torch.randn_like(w) * 0.2)
    check_routes(p, inputs)
    io, grads = gradients(p, inputs)
    grads = {n: g for n, g in grads.items() if "lora_" in n}
    p.save_pretrained(d); (d / "README.md").unlink(missing_ok=True)
    settings = json.load(open(d / "adapter_config.json"))
    for key in ("target_modules", "target_parameters"): settings[key] = settings[key] and sorted(settings[key])    # sets: another order each time
    json.dump(settings, open(d / "adapter_config.json", "w"), indent=1, sort_keys=True)
    grads = {n: g.contiguous() for n, g in get_peft_model_state_dict(p, state_dict=grads).items()}
    stored = load_file(d / "adapter_model.safetensors")
    assert stored.keys() == grads.keys() and all(stored[n].shape == g.shape and g.norm() > 1e-6 for n, g in grads.items())
    save_file(io, d / "io.safetensors"); save_file(grads, d / "grads.safetensors")
    p.unload()


def load(kind, d):
    return kind.from_pretrained(d, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32).eval()


def adapter_of_linears(family, m, d, inputs):
    """An adapter with a pair per expert. Gradients: dA = s B^T dW and dB = s dW A^T, dW from the model with the adapter merged."""
    kind, base, r, alpha = type(m), d.parent, 2, 6
    experts = ["w1", "w2", "w3"] if family == "Mixtral" else ["gate_proj", "up_proj", "down_proj"]
    targets = ["q_proj", *experts]
    weights, g = load_file(base / "model.safetensors"), torch.Generator().manual_seed(SEED + 3)
    pairs = {n: (torch.randn(r, w.shape[1], generator=g) * 0.2, torch.randn(w.shape[0], r, generator=g) * 0.2)
             for n, w in weights.items() if n.split(".")[-2] in targets}
    tensors = {f"base_model.model.{n.removesuffix('.weight')}.lora_{side}.weight": t for n, pair in pairs.items() for side, t in zip("AB", pair)}
    d.mkdir(parents=True, exist_ok=True); save_file(tensors, d / "adapter_model.safetensors", metadata=dict(format="pt"))
    json.dump(dict(peft_type="LORA", task_type="CAUSAL_LM", r=r, lora_alpha=alpha, lora_dropout=0.0, bias="none", fan_in_fan_out=False, inference_mode=True,
                   target_modules=sorted(targets), base_model_name_or_path=None, use_rslora=False, use_dora=False, peft_version="0.17.1"),
              open(d / "adapter_config.json", "w"), indent=1, sort_keys=True)
    with tempfile.TemporaryDirectory() as t:
        t = pathlib.Path(t); (t / "config.json").write_text((base / "config.json").read_text())
        merged = {n: w + alpha / r * pairs[n][1] @ pairs[n][0] if n in pairs else w for n, w in weights.items()}
        save_file(merged, t / "model.safetensors", metadata=dict(format="pt")); merged = load(kind, t)
    check_routes(merged, inputs)
    io, by_weight = gradients(merged, inputs); by_weight = as_stored(family, by_weight)
    grads = {}
    for n, (a, b) in pairs.items():
        stem = f"base_model.model.{n.removesuffix('.weight')}.lora_"
        grads[stem + "A.weight"], grads[stem + "B.weight"] = alpha / r * b.T @ by_weight[n], alpha / r * by_weight[n] @ a.T
    if family == "Mixtral":     # what PEFT makes of such a file; it has no place for the pairs of Qwen's dense layers
        with torch.no_grad(): theirs = run(peft.PeftModel.from_pretrained(load(kind, base), d).eval(), inputs)[1]
        assert (theirs["logits"] - io["logits"]).abs().max() < 1e-4
    save_file(io, d / "io.safetensors"); save_file(grads, d / "grads.safetensors")


def as_mxfp4(m):
    """Random MXFP4 in place of the experts' matrices, decoded into `m`: all 16 codes, and a scale per block."""
    g, packed = torch.Generator().manual_seed(SEED + 4), {}
    for name, p in list(m.named_parameters()):
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, rows, columns = p.shape                                  # [E, in, out] in memory, [E, out, in / 32, 16] in the file
            low, high = (121, 126) if name.endswith("gate_up_proj") else (120, 124)
            blocks = torch.randint(0, 256, (experts, columns, rows // 32, 16), generator=g, dtype=torch.uint8)
            scales = torch.randint(low, high, blocks.shape[:-1], generator=g, dtype=torch.uint8)
            p.data = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            assert p.shape == (experts, rows, columns)
            packed[f"{name}_blocks"], packed[f"{name}_scales"] = blocks, scales
        else:
            p.data = p.data.bfloat16().float(); packed[name] = p.data.bfloat16()
    return packed


def main():
    root = pathlib.Path(sys.argv[1]); root.mkdir(parents=True, exist_ok=True)
    open(root / "VERSIONS.txt", "w").write("".join(f"{m.__name__} {m.__version__}\n" for m in (torch, transformers, peft)) + f"gguf {importlib.metadata.version('gguf')}\n")
    inputs = batch(21)
    chosen = sys.argv[2:] or [*MODELS, *IN_GGUF]
    for name in [n for n in IN_GGUF if n in chosen]:
        family, cfg = IN_GGUF[name]; kind = classes(family)[1]; d = root / name; d.mkdir(exist_ok=True)
        m = model(family, cfg); check_routes(m, inputs)
        config = m.config.to_dict(); json.dump(config, open(d / "config.json", "w"), indent=2, sort_keys=True)
        as_gguf.write(d / "model.gguf", config, as_stored(family, {n: p.detach() for n, p in m.named_parameters()}))
        io = run(m, inputs)[1]; save_file(io, d / "io.safetensors")
        again = kind.from_pretrained(d, config=m.config, gguf_file="model.gguf", dtype=torch.float32).eval()    # transformers reads them too
        with torch.no_grad(): assert torch.equal(run(again, inputs)[1]["logits"], io["logits"])
    for name in [n for n in MODELS if n in chosen]:
        family, cfg = MODELS[name]; kind = classes(family)[1]; d = root / name
        m = model(family, cfg)
        packed = as_mxfp4(m) if name.endswith("mxfp4") else None
        check_routes(m, inputs)
        if family == "GptOss": check_clamp(m, inputs)
        m.save_pretrained(d); (d / "generation_config.json").unlink(missing_ok=True)
        io, grads = gradients(m, inputs)
        grads = as_stored(family, grads)
        if packed:
            save_file(packed, d / "model.safetensors", metadata=dict(format="pt"))
            config = json.load(open(d / "config.json")); config.update(dtype="bfloat16", quantization_config=QUANTIZATION)
            json.dump(config, open(d / "config.json", "w"), indent=2, sort_keys=True)
            grads = {n: g for n, g in grads.items() if n in packed}
            with torch.no_grad(): assert torch.equal(run(load(kind, d), inputs)[1]["logits"], io["logits"]), f"{name}: transformers reads another model"
        else:
            stored = load_file(d / "model.safetensors")
            for n, t in as_stored(family, dict(m.named_parameters())).items(): assert torch.equal(stored[n], t), n
            check_gradients(kind, d, grads, inputs)
        save_file(io, d / "io.safetensors"); save_file(grads, d / "grads.safetensors")
        old = old_keys(name, json.load(open(d / "config.json")))
        json.dump(old, open(d / "config_old.json", "w"), indent=1, sort_keys=True)
        again = fresh(family, old); again.load_state_dict(m.state_dict())
        with torch.no_grad(): assert torch.equal(run(again, inputs)[1]["logits"], io["logits"]), f"{name}: the old keys are another model"
        if name == "phi4_mini":
            with torch.no_grad():
                for file, more in [("io_short", batch(12)), ("io_padded", batch(21, (5, 5, 5)))]:
                    save_file(run(m, more)[1], d / f"{file}.safetensors")
        if name in WITH_GGUF: as_gguf.write(d / "model.gguf", json.load(open(d / "config.json")), load_file(d / "model.safetensors"))
        if name in ALL_LINEAR: adapter(m, d / "lora", LoraConfig(r=2, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM"), inputs)
        if name in EXPERTS:
            at = EXPERTS[name]
            adapter(m, d / "lora_experts", LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
                                                      target_parameters=[f"{at}.gate_up_proj", f"{at}.down_proj"]), inputs)
        if family in ("Mixtral", "Qwen3Moe") and name in EXPERTS: adapter_of_linears(family, m, d / "lora_experts_old", inputs)
        print(name, sum(p.numel() for p in m.parameters()), "loss", io["loss"].item())


if __name__ == "__main__":
    main()
