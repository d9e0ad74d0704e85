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


TIES = {
    "3 groups": ({"groups": 3}, "0-1 2-3 4", "....."),
    "a list": ({"groups": [[4, 1], [0], [2, 3]]}, "0 1+4 2-3", "....."),
    "interleaved": ({"groups": [[0, 2, 4], [1, 3]]}, "0+2+4 1+3", "....."),
    "free": ({"free": (1, 3, 4)}, "1 3 4", "B.B.."),
    "free, held": ({"free": [3, 0], "held": "SSB-S"}, "0 3", ".SB.S"),
    "free, groups": ({"free": (0, 2, 3, 4), "groups": 2, "held": "-"}, "0+2 3-4", ".-..."),
}


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("choices", ["SB", "-SB", "-B"])
@pytest.mark.parametrize("budgets", [{}, {"big": 3}, {"big": "<=4", "skip": 1}, {"skip": "<=2"}])
def test_tied_and_held_layers(tie, choices, budgets):
    given, groups, held = TIES[tie]

    def inside(route):
        together = [[route[int(layer)] for layer in _layers(group)] for group in groups.split()]
        alike = all(len(set(made)) == 1 and made[0] in choices for made in together)
        kept = all(letter in (".", own) for letter, own in zip(held, route))
        bigs, skips = route.count("B"), route.count("-")
        meets = {None: True, 3: bigs == 3, "<=4": bigs <= 4}[budgets.get("big")]
        return alike and kept and meets and {None: True, 1: skips == 1, "<=2": skips <= 2}[budgets.get("skip")]

    every = all_routes(5)
    wanted = every[[inside(routes.to_text(route)) for route in every]]
    if not len(wanted):
        with pytest.raises(ValueError, match="no route of 5 layers"):
            Space(5, choices, **given, **budgets)
        return
    space = Space(5, choices, **given, **budgets)
    np.testing.assert_array_equal(space.enumerate(), wanted)
    np.testing.assert_array_equal(every[space.contains(every)], wanted)
    np.testing.assert_array_equal(space.sample(len(wanted), seed=0), wanted)
    assert space.count() == len(wanted)
    levels = [np.unique(wanted[:, :n], axis=0) for n in range(1, 6)]
    assert space.prefixes() == [len(level) for level in levels]
    for choice in (SKIP, SMALL, BIG):
        assert space.prefixes(ending_in=choice) == [int((level[:, -1] == choice).sum()) for level in levels]
    chosen = space.chosen(wanted)
    np.testing.assert_array_equal(space.spread(chosen), wanted)
    assert len(np.unique(chosen, axis=0)) == len(wanted)
    beginnings, count = np.unique(chosen[:, :1], axis=0, return_counts=True)
    if chosen.shape[1] > 1:
        np.testing.assert_array_equal(space.ways(beginnings).sum(1), count)
    drawn = space.completed(beginnings.repeat(50, 0), np.random.default_rng(0))
    assert space.contains(space.spread(drawn)).all()
    assert eval(repr(space)) == space  # in the form in which it is kept
    assert hash(space) == hash(Space(5, choices, **given, **budgets))


def _layers(group):
    first, dash, last = group.partition("-")
    return range(int(first), int(last) + 1) if dash else map(int, group.split("+"))


def test_spaces_say_how_they_are_tied():
    assert str(Space(30, "SB", groups=10, big=12)) == "30 layers of SB, 10 groups, big 12"
    assert str(Space(5, "-B", free=(0, 2, 3, 4), groups=2)) == "5 layers of -B, 2 groups, held .B..."
    assert str(Space(5, groups=[[0, 4], [1, 2, 3]])) == "5 layers of SB, groups 0+4 1-3"
    assert str(Space(5, free=[4])) == "5 layers of SB, held BBBB."
    assert Space(5, groups=5) == Space(5, free=range(5), held="S") == Space(5)


def test_a_curve_has_the_numbers_of_big_layers_that_there_are():
    assert [space.big for space in routes.by_big(4, "SB")] == [0, 1, 2, 3, 4]
    tied = routes.by_big(5, Space(5, groups=2, big="<=1"))
    assert [space.big for space in tied] == [0, 2, 3, 5]
    assert [space.count() for space in tied] == [1, 1, 1, 1]
    near = {asked: routes.nearest_big(Space(5, groups=2), asked) for asked in (0, 1, 2, 4, 5, 9)}
    assert near == {0: 0, 1: 0, 2: 2, 4: 3, 5: 3, 9: 3}  # never all
    assert [routes.nearest_big(Space(4), asked) for asked in (1, 3, 4)] == [1, 3, 3]


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
        (lambda: Space(3, groups=4), "4 groups of 3 layers: ask for 1..3"),
        (lambda: Space(3, groups=2, free=[1]), "2 groups of 1 layers"),
        (lambda: Space(3, groups=[[0, 1]]), r"each of the layers \[0, 1, 2\] must be in one of them"),
        (lambda: Space(3, groups=[[0, 1], [1, 2]]), "and in no other"),
        (lambda: Space(3, groups=[[0, 1, 2], []]), "and in no other"),
        (lambda: Space(3, free=[3]), r"free layers \[3\]: name some of 0..2, each once"),
        (lambda: Space(3, free=[]), "name some of 0..2"),
        (lambda: Space(3, free=[1, 1]), "each once"),
        (lambda: Space(3, free=[1], held="SB"), "has 2 letters"),
        (lambda: Space(3, free=[1], held="x"), "holds"),
        (lambda: Space(4, groups=2, big=1), "no route of 4 layers over 'SB' has big=1"),
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
    assert Space(400, "-SB", groups=100, big=200).count() == math.comb(100, 50) * 2**50
    assert Space(101, groups=10, big=51).count() == math.comb(9, 4)  # a group of 11 and nine of 10
    assert Space(900, "-B", skip=450).sample(2, seed=0).shape == (2, 900)
