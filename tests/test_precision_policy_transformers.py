"""Policies on models of Hugging Face transformers: what is said of layers that are not torch's."""

from __future__ import annotations

import pytest
import torch

from accel.precision import Policy

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "vocab_size": 1000}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}


def made(name, **arguments):
    config = getattr(transformers, f"{name}Config")(**arguments)
    classes = {"GPT2": "GPT2LMHeadModel", "T5": "T5ForConditionalGeneration"}
    with torch.device("meta"):
        return getattr(transformers, classes.get(name, f"{name}ForCausalLM"))(config)


def products(explanation):
    return {row.name: row.products[0] for row in explanation.rows if row.products[0]}


def test_llama():
    explanation = Policy.parse("fp8_rowwise").explain(made("Llama", **SMALL, **HEADS), "sm_90")
    found = products(explanation)
    assert len(found) == 2 * 7 + 1
    assert found.pop("lm_head") == "bfloat16"
    assert set(found.values()) == {"e4m3:row:pow2"}
    inner = 2 * (4 * 64 * 64 + 3 * 64 * 172)
    assert explanation.share == inner / (inner + 64 * 1000)
    assert (
        "model.layers.0-1.mlp.gate_proj, model.layers.0-1.mlp.up_proj: a chip's 8-bit product pads "
        "out_features from 172 to 176" in explanation.notes
    )
    assert "model.layers.0-1.mlp.down_proj" in str(explanation)


def test_gpt2_has_no_linear_layers_but_its_head():
    model = made("GPT2", n_layer=2, n_embd=64, n_head=2)
    with pytest.raises(
        ValueError, match=r"<linear>=float8_e4m3fn:row:pow2, decides nothing"
    ) as got:
        Policy.parse("fp8_rowwise").resolve(model)
    where = "transformer.h.0-1.attn.c_attn, transformer.h.0-1.attn.c_proj, transformer.h.0-1.mlp.c_"
    assert where in str(got.value)
    assert "eight bits are for nn.Linear only, not for Conv1D" in str(got.value)
    plans = Policy.parse("compute=f32; <head>=bf16; <linear>=f16").resolve(model)
    assert plans["lm_head"].compute == torch.bfloat16  # tied to wte, and called lm_head
    assert plans["transformer.h.1.mlp.c_fc"].compute == torch.float16


def test_the_experts_of_mixtral_are_no_linear_layers():
    model = made("Mixtral", **SMALL, **HEADS, num_local_experts=4)
    explanation = Policy.parse("fp8_block").explain(model, "sm_90")
    (note,) = (note for note in explanation.notes if "holds matrices" in note)
    assert "model.layers.0-1.mlp.experts" in note
    assert "model.layers.0-1.mlp.gate" in note
    assert set(products(explanation)) == {
        "lm_head",
        *(f"model.layers.{n}.self_attn.{x}_proj" for n in (0, 1) for x in "qkvo"),
    }


def test_one_weight_of_four_modules():
    model = made("T5", d_model=64, d_ff=128, num_layers=2, num_heads=2, d_kv=32)
    explanation = Policy.parse("hif8").explain(model, "950")
    assert products(explanation)["lm_head"] == "bfloat16"
    start = (
        "shared.weight and encoder.embed_tokens.weight and decoder.embed_tokens.weight and lm_head"
    )
    assert any(note.startswith(start) for note in explanation.notes)
    text = str(explanation)
    for joined in (
        "encoder.block.0-1.layer.0-1.layer_norm",
        "decoder.block.0-1.layer.0-2.layer_norm",
    ):
        assert joined in text
