"""Writes a small model as llama.cpp's convert_hf_to_gguf.py does: its names, metadata and changes to the weights, in float32, without a tokenizer."""
import math
import gguf, numpy as np

ARCHITECTURES = {"gemma3_text": gguf.MODEL_ARCH.GEMMA3, "phi3": gguf.MODEL_ARCH.PHI3, "mixtral": gguf.MODEL_ARCH.LLAMA, "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE}


def metadata(w, c, full, sliding):
    heads, kind = c["num_attention_heads"], c["model_type"]
    w.add_context_length(c["max_position_embeddings"]); w.add_embedding_length(c["hidden_size"]); w.add_block_count(c["num_hidden_layers"])
    w.add_feed_forward_length(c["intermediate_size"]); w.add_head_count(heads); w.add_head_count_kv(c["num_key_value_heads"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"]); w.add_rope_freq_base(full["rope_theta"]); w.add_file_type(gguf.LlamaFileType.ALL_F32)
    if c.get("head_dim"): w.add_key_length(c["head_dim"]); w.add_value_length(c["head_dim"])
    if c.get("num_local_experts"): w.add_expert_count(c["num_local_experts"]); w.add_expert_used_count(c["num_experts_per_tok"])
    if kind == "gemma3_text":
        # neither query_pre_attn_scalar nor the kinds of the layers are stored: llama.cpp takes head_dim, and each sixth layer as full
        assert c["query_pre_attn_scalar"] == c["head_dim"] and [i for i, t in enumerate(c["layer_types"]) if t == "full_attention"] == list(range(5, len(c["layer_types"]), 6))
        w.add_rope_freq_base_swa(sliding["rope_theta"]); w.add_sliding_window(c["sliding_window"])
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR); w.add_rope_scaling_factor(full["factor"])
    if kind == "phi3":
        original = c["original_max_position_embeddings"]
        w.add_rope_scaling_orig_ctx_len(original); w.add_rope_dimension_count(int(full["partial_rotary_factor"] * c["hidden_size"]) // heads)
        w.add_sliding_window(c["sliding_window"] or 0)
        if "long_factor" in full:
            w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(c["max_position_embeddings"] / original) / math.log(original)))
    if kind == "mixtral": w.add_vocab_size(c["vocab_size"]); w.add_rope_dimension_count(c["hidden_size"] // heads)
    if kind == "qwen3_moe":
        assert c["norm_topk_prob"] and not c["mlp_only_layers"] and c["decoder_sparse_step"] == 1, "llama.cpp knows no other"
        w.add_expert_feed_forward_length(c["moe_intermediate_size"])


def permute(rows, heads):
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def write(path, config, tensors):
    kind, rope = config["model_type"], config["rope_parameters"]
    full = rope.get("full_attention", rope)
    arch = ARCHITECTURES[kind]
    w = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    metadata(w, config, full, rope.get("sliding_attention"))
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    merged = {}
    for name, t in tensors.items():
        t, parts = t.numpy(), name.split(".")
        if kind == "gemma3_text" and name.endswith("norm.weight"): t = t + np.float32(1)
        if kind == "mixtral" and name.endswith("q_proj.weight"): t = permute(t, config["num_attention_heads"])
        if kind == "mixtral" and name.endswith("k_proj.weight"): t = permute(t, config["num_key_value_heads"])
        if "experts" in parts:
            stem = "layers.{}.feed_forward.experts.{}" if kind == "mixtral" else "model.layers.{}.mlp.experts.{}"
            merged.setdefault(stem.format(parts[2], parts[-2]) + ".weight", {})[int(parts[5])] = t
        else: merged[name] = t
    for name, t in merged.items():
        if isinstance(t, dict): t = np.stack([t[e] for e in range(len(t))])
        w.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(t))
    for length in ("long", "short"):
        if f"{length}_factor" in full: w.add_tensor(f"rope_factors_{length}.weight", np.array(full[f"{length}_factor"], np.float32))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
