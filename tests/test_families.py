from dataclasses import replace
from operator import attrgetter

import pytest
import torch
from conftest import tiny_model

from duoviz import model
from duoviz.families import FAMILIES, family


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_an_entry_says_where_the_parts_of_its_dense_model_are(name):
    entry = family(name)
    assert family(f"duo_{name}") is entry
    assert entry.config.model_type == entry.name == name
    config = entry.config(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    setattr(config, entry.width, 48)
    with torch.device("meta"):
        dense = entry.causal_lm(config)
        ffn = entry.build_ffn(config)
    layers = attrgetter(entry.layers)(dense)
    assert len(layers) == 2
    assert isinstance(attrgetter(entry.final_norm)(dense), torch.nn.Module)
    own = attrgetter(entry.ffn)(layers[0])
    assert {n: p.shape for n, p in own.named_parameters()} == {n: p.shape for n, p in ffn.named_parameters()}
    matrices = [p for p in ffn.parameters() if p.ndim == 2]
    assert [sorted(p.shape) for p in matrices] == [[32, 48]] * entry.ffn_matrices


def test_a_duo_model_names_its_family():
    lm = tiny_model()
    assert family(lm.model.config.model_type) is lm.model.family is FAMILIES["llama"]
    assert lm.model.final_norm is lm.model.model.norm
    assert list(lm.model.decoder_layers) == list(lm.model.model.layers)
    assert lm.model.decoder_layers[0].mlp.small.up_proj.weight.shape == (8, 32)


@pytest.mark.parametrize("unknown", ["gpt2", "bert", "duo_bert", ""])
def test_an_unsupported_family_is_an_error_that_names_the_supported_ones(unknown):
    with pytest.raises(ValueError, match=f"model family '{unknown}' is not supported: supported are .*llama"):
        family(unknown)


def test_a_configuration_of_another_family_is_refused():
    other = replace(FAMILIES["llama"], name="other")
    dense = type("OtherConfig", (other.config,), {"model_type": other.name})()
    with pytest.raises(ValueError, match="model family 'other' is not supported"):
        model.config_for(dense, small_width=4)
    with pytest.raises(ValueError, match="small_intermediate_size 0: at least 1"):
        model.config_for(FAMILIES["llama"].config(), small_width=0)
