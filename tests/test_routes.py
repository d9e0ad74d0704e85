import math
from itertools import product

import numpy as np
import pytest
import torch

from duoviz import routes
from duoviz.routes import BIG, SKIP, SMALL, Space


def all_routes(layers):
    return np.array(list(product((SKIP, SMALL, BIG), repeat=layers)), np.int8)


def test_text_and_arrays_are_inverse():
    every = all_routes(4)
    texts = routes.to_texts(every)
    assert texts[5] == "--SB"
    for route, text in zip(every, texts):
        assert routes.to_text(route) == text
        np.testing.assert_array_equal(routes.from_text(text, layers=4), route)
    assert routes.to_texts(np.full((2, 4), -1, np.int8)).tolist() == ["", ""]


@pytest.mark.parametrize("choices", ["SB", "-B", "-SB", "B", "-S"])
@pytest.mark.parametrize("big", [None, 0, 2, "<=2"])
@pytest.mark.parametrize("skip", [None, 0, 1, "<=1"])
def test_a_space_holds_exactly_the_routes_that_meet_its_budgets(choices, big, skip):
    def meets(asked, count):
        return asked is None or (count <= 2 if asked == "<=2" else count <= 1 if asked == "<=1" else count == asked)

    wanted = [
        r
        for r in all_routes(5)
        if set(routes.to_text(r)) <= set(choices) and meets(big, (r == BIG).sum()) and meets(skip, (r == SKIP).sum())
    ]
    if not wanted:
        with pytest.raises(ValueError, match="no route of 5 layers"):
            Space(5, choices, big=big, skip=skip)
        return
    space = Space(5, choices, big=big, skip=skip)
    found = space.enumerate()
    assert space.count() == len(found)
    np.testing.assert_array_equal(found, np.stack(wanted))  # also the lexicographic order
    assert space.contains(found).all()
    assert space.contains(all_routes(5)).sum() == len(found)
    assert space.prefixes() == [len(np.unique(found[:, :n], axis=0)) for n in range(1, 6)]
    assert space.prefixes(ending_in=BIG) == [
        int((np.unique(found[:, :n], axis=0)[:, -1] == BIG).sum()) for n in range(1, 6)
    ]


def test_counts_are_exact_without_enumeration():
    assert Space(12).count() == 4096
    assert Space(12, "-SB").count() == 531_441
    assert Space(40, "-SB", big=20, skip="<=3").count() > 10**9
    with pytest.raises(ValueError, match=r"at most 20,000,000 are listed"):
        Space(30).enumerate()


def test_samples_are_different_sorted_and_set_by_the_seed():
    space = Space(6, "-SB", big=3)
    sample = space.sample(50, seed=1)
    ids = sample.tolist()
    assert len(set(map(tuple, ids))) == 50
    assert ids == sorted(ids)
    assert space.contains(sample).all()
    np.testing.assert_array_equal(sample, space.sample(50, seed=1))
    assert (sample != space.sample(50, seed=2)).any()
    np.testing.assert_array_equal(space.sample(space.count(), seed=0), space.enumerate())
    assert len(Space(60, "-SB").sample(5, seed=0)) == 5


def test_samples_are_uniform():
    space, counts = Space(4, "SB", big=2), np.zeros(6)
    for seed in range(600):
        counts += [(space.sample(2, seed=seed) == r).all(1).any() for r in space.enumerate()]
    assert np.abs(counts / 600 - 1 / 3).max() < 0.06


def test_a_ramp_has_the_mean_of_its_ends():
    ramp = routes.ramp(6, 2, positions=127)
    assert (ramp[0], ramp[-1]) == (6, 2)
    assert ramp.mean() == pytest.approx(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: routes.from_text("SBX"), r"holds \['X'\]"),
        (lambda: routes.from_text("SB", layers=3), "has 2 letters: the model has 3 layers"),
        (lambda: routes.parse(np.full((2, 3), 3), layers=3), r"values 3\.\.3: allowed are 0 \(skip\)"),
        (lambda: routes.parse(np.ones(3), layers=3), "routes of dtype float64: give integers"),
        (lambda: routes.parse(np.ones((3, 2), int), layers=3), "the last axis must hold 3 layers"),
        (lambda: routes.to_text([2, -1]), r"route \[2, -1\]: give one of"),
        (lambda: Space(3, "SX"), "name each allowed letter of '-SB' once"),
        (lambda: Space(3, "SB", big=4), "the model has 3 layers, ask for 0..3"),
        (lambda: Space(3, "SB", big="many"), "give a number"),
        (lambda: Space(3, "SB", big=-1), "give a number"),
        (lambda: Space(3, "SSB"), "name each allowed letter of '-SB' once"),
        (lambda: Space(3, "SB", big=2, skip=1), "no route of 3 layers over 'SB' has big=2 and skip=1"),
        (lambda: Space(3).sample(0, seed=0), "a sample of 0 routes"),
        (lambda: Space(3, "S", big=1), "no route of 3 layers over 'S' has big=1"),
        (lambda: Space(3).sample(9, seed=0), "holds 8, ask for 1..8"),
        (lambda: Space(0), "at least 1 is needed"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor])
def test_routes_are_read_in_any_form(form):
    one = [0, 2, 1]
    np.testing.assert_array_equal(routes.parse(form(one), layers=3), one)
    np.testing.assert_array_equal(routes.parse(form([one, one]), layers=3), [one, one])
    assert routes.parse(form(one), layers=3).dtype == np.int8


def test_routes_are_read_as_text_and_by_name():
    np.testing.assert_array_equal(routes.parse("-BS", layers=3), [0, 2, 1])
    np.testing.assert_array_equal(routes.parse(["-BS", "all-big"], layers=3), [[0, 2, 1], [2, 2, 2]])
    for name, choice in (("skip", 0), ("small", 1), ("big", 2)):
        for form in (name, f"all-{name}"):
            assert routes.parse(form, layers=5).tolist() == [choice] * 5
    for wrong, message in (("bigg", "holds"), ([[0, 1], [2]], "differ in length"), ([], "dtype"), (["SB", "SBB"], "3")):
        with pytest.raises(ValueError, match=message):
            routes.parse(wrong, layers=2)


def test_spaces_of_many_layers_are_counted():
    assert Space(400, "-SB").count() == 3**400
    assert Space(2000, "SB", big=5).count() == math.comb(2000, 5)
    assert Space(2000, "-SB", big=5).count() == math.comb(2000, 5) * 2**1995
    assert Space(300, "-SB", big="<=1", skip=2).count() == math.comb(300, 2) * (1 + 298)
    assert Space(900, "-B", skip=450).sample(2, seed=0).shape == (2, 900)
