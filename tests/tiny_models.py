"""Random causal language models of many architectures, small enough to be made in a moment."""

from __future__ import annotations

from typing import Any

VOCABULARY_SIZE = 97

_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    # Inside the vocabulary, as several configs ask.
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_LLAMA_LIKE: dict[str, Any] = {"num_key_value_heads": 2, "intermediate_size": 64, "initializer_range": 0.3}
_GEMMA_LIKE = _LLAMA_LIKE | {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 5.0}
_FALCON_H1 = _LLAMA_LIKE | {
    "lm_head_multiplier": 0.5, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}  # fmt: skip

# Of each the classes of config and model, and what differs from the usual.
_KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _LLAMA_LIKE),
    "mistral": ("MistralConfig", "MistralForCausalLM", _LLAMA_LIKE | {"sliding_window": 4}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _LLAMA_LIKE),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _LLAMA_LIKE | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _GEMMA_LIKE),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _GEMMA_LIKE),
    "cohere": ("CohereConfig", "CohereForCausalLM", _LLAMA_LIKE | {"logit_scale": 0.25}),
    "cohere2": ("Cohere2Config", "Cohere2ForCausalLM", _LLAMA_LIKE | {"logit_scale": 0.25, "sliding_window": 4}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", _LLAMA_LIKE | {"logits_scaling": 3.0}),
    "hyperclovax": ("HyperCLOVAXConfig", "HyperCLOVAXForCausalLM", _LLAMA_LIKE | {"logits_scaling": 2.0}),
    "falcon_h1": ("FalconH1Config", "FalconH1ForCausalLM", _FALCON_H1),
    "minicpm3": (
        "MiniCPM3Config",
        "MiniCPM3ForCausalLM",
        {"intermediate_size": 64, "initializer_range": 0.3, "dim_model_base": 16},
    ),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"initializer_range": 0.3}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {"intermediate_size": 64, "initializer_range": 0.3}),
    "opt": ("OPTConfig", "OPTForCausalLM", {"ffn_dim": 64, "word_embed_proj_dim": 16, "init_std": 0.3}),
    "phi": ("PhiConfig", "PhiForCausalLM", _LLAMA_LIKE),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", _LLAMA_LIKE | {"num_local_experts": 4}),
    "mamba": ("MambaConfig", "MambaForCausalLM", {"state_size": 8, "initializer_range": 0.3}),
}

ARCHITECTURES = tuple(_KINDS)


def tiny_model(architecture: str, *, tied: bool = True, **config: Any) -> Any:
    """Return a random model in eval mode, the same one each time; a bias of its head is not zero.

    Args:
        architecture: one of `ARCHITECTURES`.
        tied: whether the head's weights are the embedding's.
        config: what differs from the small model of that architecture.
    """
    import torch
    import transformers

    config_name, model_name, usual = _KINDS[architecture]
    settings = getattr(transformers, config_name)(**_SMALL | usual | {"tie_word_embeddings": tied} | config)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = getattr(transformers, model_name)(settings).eval()
        bias = model.get_output_embeddings().bias
        if bias is not None:
            torch.nn.init.normal_(bias)
    return model
