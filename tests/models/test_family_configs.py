"""Configs of decoder families: presets, older spellings, and what is refused."""

import numpy as np
import pytest
from family_weights import GOLDEN, write

from mijax import models
from mijax._errors import LoadError
from mijax.models._families import FAMILIES as KNOWN
from mijax.models._family import leaf_shapes

FAMILIES = sorted(file.stem for file in GOLDEN.glob("*.npz"))
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_config_does_not_say_is_refused(name, tmp_path):
    def unknown(config, tensors):
        config["attention_sinks"] = 4

    def unused(config, tensors):
        tensors["model.layers.0.extra.weight"] = np.zeros(3, np.float32)

    def layers(config, tensors):
        sizes = config.get("text_config", config)
        sizes[next(k for k in LAYERS if k in sizes)] = 2

    for change, word in (
        (unknown, "attention_sinks"),
        (unused, "extra"),
        (layers, ""),
    ):
        with pytest.raises(LoadError) as caught:
            models.load(write(tmp_path, name, change))
        assert word in str(caught.value)
        assert "\n" not in str(caught.value)


# Numbers of parameters of the published weights, by preset.
PARAMETERS = {
    "gpt2": 124_439_808,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b-v0.1": 46_702_792_704,
    "mixtral-8x22b-v0.1": 140_620_634_112,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "olmoe-1b-7b-0924": 6_919_161_856,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b-base": 596_049_920,
    "qwen3-1.7b-base": 1_720_574_976,
    "qwen3-4b-base": 4_022_468_096,
    "qwen3-8b-base": 8_190_735_360,
    "pythia-14m": 14_067_712,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    # Without the vision tower and the projection of images.
    "gemma-3-4b": 4_300_079_472 - 416_866_032 - 1152 * 2561,
    "gemma-3-12b": 12_187_325_040 - 416_866_032 - 1152 * 3841,
    "gemma-3-27b": 27_432_406_640 - 416_866_032 - 1152 * 5377,
    "bloom-560m": 559_214_592,
    # With a second copy of the norm that attention and MLP share.
    "falcon-7b": 6_921_720_704 + 32 * 2 * 4544,
    "falcon-40b": 41_303_293_952,
    "mamba-130m": 129_135_360,
    "mamba-370m": 371_516_416,
    "mamba-790m": 793_204_224,
    "mamba-1.4b": 1_372_178_432,
    "mamba-2.8b": 2_768_345_600,
    "mamba-codestral-7b-v0.1": 7_285_403_648,
    # With the weights of the kind that a layer does not compute: of attention in 36
    # layers, of the delta network in 12.
    "qwen3-next-80b-a3b-instruct": 79_674_391_296
    + 36 * (2048 * 256 * (2 * 16 + 2 * 2 + 16) + 2 * 256)
    + 12 * (2048 * (8192 + 4096 + 64 + 4096) + 4 * 8192 + 2 * 32 + 128),
    "gpt-neo-125m": 125_198_592,
    # With a second copy of the norm that attention and MLP share.
    "gpt-j-6b": 6_050_882_784 + 28 * 2 * 4096,
    "phi-1.5": 1_418_270_720 + 24 * 2 * 2048,
    "phi-2": 2_779_683_840 + 32 * 2 * 2560,
    # Without the two rows of positions that no token reads.
    "opt-125m": 125_239_296 - 2 * 768,
    "opt-1.3b": 1_315_758_080 - 2 * 2048,
    "opt-6.7b": 6_658_473_984 - 2 * 4096,
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "olmo-3-7b": 7_298_011_136,
    "phi-3-mini-4k-instruct": 3_821_079_552,
    "smollm3-3b-base": 3_075_098_624,
    # With zeros for experts of the first layers, and for neurons of the others.
    "deepseek-v3": 671_026_419_200
    + 3 * (256 * 7168 + 256 + 256 * 3 * 7168 * 2048)
    + 58 * 3 * 7168 * (18432 - 2048),
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_have_as_many_parameters_as_published(name):
    family = next(family for family in KNOWN if name in family.presets)
    spec = family.presets[name].spec
    leaves = leaf_shapes(family.skeleton(spec))
    given = family.computed(spec)
    assert PARAMETERS[name] == sum(
        leaf.size for path, leaf in leaves.items() if path not in given
    )


# Configs as transformers 4 wrote them, for presets whose keys changed since.
OLDER = {
    "pythia-70m": {
        "model_type": "gpt_neox",
        "hidden_act": "gelu",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "num_attention_heads": 8,
        "num_hidden_layers": 6,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "vocab_size": 50304,
    },
    "mistral-7b-v0.1": {
        "model_type": "mistral",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "decoder_sparse_step": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "gemma-2-2b": {
        "model_type": "gemma2",
        "attention_bias": False,
        "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "vocab_size": 256000,
    },
    "gemma-3-270m": {
        "model_type": "gemma3_text",
        "_sliding_window_pattern": 6,
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 640,
        "intermediate_size": 2048,
        "layer_types": ([*["sliding_attention"] * 5, "full_attention"] * 3),
        "max_position_embeddings": 32768,
        "num_attention_heads": 4,
        "num_hidden_layers": 18,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "use_bidirectional_attention": False,
        "vocab_size": 262144,
    },
    "gemma-3-4b": {
        "model_type": "gemma3",
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "image_token_index": 262144,
        "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152},
    },
    "olmo-3-7b": {
        "model_type": "olmo3",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 65536,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "yarn",
        },
        "rope_theta": 500000,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 100278,
    },
    "falcon-40b": {
        "model_type": "falcon",
        "alibi": False,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "bias": False,
        "hidden_dropout": 0.0,
        "hidden_size": 8192,
        "layer_norm_epsilon": 1e-05,
        "multi_query": True,
        "new_decoder_architecture": True,
        "num_attention_heads": 128,
        "num_hidden_layers": 60,
        "num_kv_heads": 8,
        "parallel_attn": True,
        "vocab_size": 65024,
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "aux_loss_alpha": 0.001,
        "ep_size": 1,
        "first_k_dense_replace": 3,
        "hidden_act": "silu",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 2048,
        "moe_layer_freq": 1,
        "n_group": 8,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 61,
        "num_key_value_heads": 128,
        "num_nextn_predict_layers": 1,
        "pretraining_tp": 1,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "v_head_dim": 128,
        "vocab_size": 129280,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "attention_bias": True,
        "attention_dropout": 0.0,
        "experts_per_token": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2880,
        "initial_context_length": 4096,
        "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "max_position_embeddings": 131072,
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 24,
        "num_key_value_heads": 8,
        "num_local_experts": 32,
        "output_router_logits": False,
        "quantization_config": {
            "modules_to_not_convert": ["lm_head"],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "vocab_size": 201088,
    },
    "phi-2": {
        "model_type": "phi",
        "embd_pdrop": 0.0,
        "hidden_act": "gelu_new",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "partial_rotary_factor": 0.4,
        "qk_layernorm": False,
        "resid_pdrop": 0.1,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 51200,
    },
}


@pytest.mark.parametrize("name", OLDER)
def test_configs_of_transformers_4_are_those_of_presets(name):
    family = next(family for family in KNOWN if name in family.presets)
    assert family.name == OLDER[name]["model_type"]
    found = family.from_config(OLDER[name], "config.json")
    assert found == family.presets[name].spec


WRONG = {
    "kinds of layers": (
        "gemma2",
        lambda config: config.update(layer_types=["sliding_attention"] * 2),
        "layer_types",
    ),
    "an unknown kind": (
        "gemma3_text",
        lambda config: config.update(layer_types=["chunked_attention"] * 3),
        "chunked_attention",
    ),
    "a window without a size": (
        "gemma2",
        lambda config: config.update(sliding_window=None),
        "sliding_window",
    ),
    "a rotation by type": (
        "gemma3_text",
        lambda config: config.update(rope_parameters={"rope_theta": 10000.0}),
        "rope_parameters",
    ),
    "yarn without a factor": (
        "olmo3",
        lambda config: config["rope_parameters"]["full_attention"].pop("beta_fast"),
        "beta_fast",
    ),
    "yarn elsewhere": (
        "qwen2",
        lambda config: config["rope_parameters"].update(rope_type="yarn", factor=4.0),
        "yarn",
    ),
    "a part of a head": (
        "qwen3",
        lambda config: config["rope_parameters"].update(partial_rotary_factor=0.5),
        "partial_rotary_factor",
    ),
    "longrope": (
        "phi3",
        lambda config: config["rope_parameters"].update(rope_type="longrope"),
        "longrope",
    ),
    "an odd rotation": (
        "gpt_neox",
        lambda config: config["rope_parameters"].update(partial_rotary_factor=0.4),
        "rotated",
    ),
    "another activation": (
        "gemma",
        lambda config: config.update(hidden_act="silu"),
        "hidden_act",
    ),
    "both ways": (
        "gemma3_text",
        lambda config: config.update(use_bidirectional_attention=True),
        "use_bidirectional_attention",
    ),
    "layers without rotation": (
        "smollm3",
        lambda config: config.update(no_rope_layers=[1, 0]),
        "rotates",
    ),
    "norms after": (
        "opt",
        lambda config: config.update(do_layer_norm_before=False),
        "do_layer_norm_before",
    ),
    "another multiplier": (
        "granite",
        lambda config: config.update(residual_multiplier=-1.0),
        "residual_multiplier",
    ),
    "two norms of the older architecture": (
        "falcon",
        lambda config: config.update(num_ln_in_parallel_attn=2),
        "num_ln_in_parallel_attn",
    ),
    "key heads of the older architecture": (
        "falcon_alibi",
        lambda config: config.update(num_kv_heads=2),
        "num_kv_heads",
    ),
    "another quantization": (
        "gpt_oss_mxfp4",
        lambda config: config["quantization_config"].update(quant_method="awq"),
        "awq",
    ),
    "other heads": (
        "phi",
        lambda config: config.update(num_key_value_heads=2),
        "num_key_value_heads",
    ),
    "local layers": (
        "gpt_neo",
        lambda config: config.update(attention_layers=["local"]),
        "attention_layers",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_contradictions_are_refused(case, tmp_path):
    name, change, word = WRONG[case]
    with pytest.raises(LoadError) as caught:
        models.load(write(tmp_path, name, lambda config, tensors: change(config)))
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
