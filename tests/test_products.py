"""Linear maps by another library: the same numbers but for rounding, and only where they may be."""

import threading

import numpy as np
import pytest
import torch
from conftest import tiny_model
from torch import nn

from duoviz.model import products
from duoviz.model.products import Products, product

pytestmark = pytest.mark.skipif(not products.available(), reason="this build of torch has no oneDNN products")


@pytest.fixture
def counted(monkeypatch):
    """How often oneDNN was called."""
    calls, made = [], torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *a: calls.append(a[0].shape) or made(*a))
    return calls


@pytest.mark.parametrize("shape", [(16, 8), (3, 40, 8), (5000, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_the_linear_map(shape, bias, counted):
    x, own = torch.randn(shape), nn.Linear(8, 5, bias=bias)
    wanted, laid_out = own(x), {id(own.weight): None}
    with torch.no_grad():
        for given in (None, {}, laid_out, laid_out):
            torch.testing.assert_close(product(x, own.weight, own.bias, given), wanted)
    assert len(counted) == 4
    assert laid_out[id(own.weight)] is not None


def test_what_needs_the_own_kernels_of_torch_keeps_them(counted):
    x, own = torch.randn(32, 8), nn.Linear(8, 5)
    product(x, own.weight, own.bias).sum().backward()
    assert own.weight.grad is not None
    with torch.no_grad():
        for dtype in (torch.float64, torch.bfloat16):
            assert product(x.to(dtype), own.weight.to(dtype), own.bias.to(dtype)).dtype == dtype
        product(x[:15], own.weight, own.bias)
        product(x[:3], own.weight, own.bias, {id(own.weight): None})
        assert product(x[:0], own.weight, own.bias).shape == (0, 5)
    assert not counted


def test_modules_multiply_so_inside_and_in_this_thread_alone(counted):
    x, own = torch.randn(32, 8), nn.Linear(8, 5)
    with torch.no_grad(), Products():
        own(x)
        other = threading.Thread(target=lambda: own(x))
        other.start()
        other.join()
        nn.functional.linear(x, weight=own.weight)  # by name: nobody's forward does so
    own(x)
    assert counted == [(32, 8)]


@pytest.mark.parametrize(("most", "calls"), [(products.LARGEST, 4), (10, 0)])
def test_weights_are_laid_out_once_for_a_model_that_is_small_enough(most, calls, monkeypatch, counted):
    """Four rows pay only where the layout is there already."""
    own, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.randn(4, 8)
    wanted = own(x)
    monkeypatch.setattr(products, "LARGEST", most)
    inside = Products(own)
    with torch.no_grad():
        for _ in range(2):
            with inside:
                found = own(x)
            torch.testing.assert_close(found, wanted)
    assert len(counted) == calls
    assert sum(made is not None for made in inside._laid_out.values()) == calls // 2


def test_a_weight_that_is_computed_is_never_taken_for_another():
    own, x = nn.Sequential(*(nn.Linear(8, 8) for _ in range(6))), torch.randn(32, 8)
    for one in own:
        nn.utils.parametrizations.weight_norm(one)
    wanted = own(x)
    with torch.no_grad(), Products(own):
        for _ in range(3):
            torch.testing.assert_close(own(x), wanted)


def test_a_score_is_that_of_the_plain_model(ids, counted):
    lm = tiny_model()
    found = lm.score(ids, "BSSB")
    assert counted
    with torch.no_grad():
        logits = lm.model(torch.from_numpy(ids), duo_routes=torch.tensor([2, 1, 1, 2], dtype=torch.int8)).logits[:, :-1]
    wanted = nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(ids[:, 1:]).flatten(), reduction="none")
    np.testing.assert_allclose(found.ravel(), wanted, atol=1e-5)
