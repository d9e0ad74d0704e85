"""The inspector on the shipped model: its numbers are those of the model, its controls call its methods."""

import html
import re
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from conftest import own_folder

from duoviz import frames, oracle, router, style
from duoviz.inspector import STATISTICS, Cancelled, Engine, Question, static
from duoviz.inspector.background import Background
from duoviz.inspector.widget import View
from duoviz.model import LanguageModel
from duoviz.routes import Space, from_text, to_text
from duoviz.study import Inspection, Study

SOURCE = "shipped-code"
SHORT = "def add(a, b):\n    return a + b\n"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(documents=2, length=10, sources=(SOURCE,), results=tmp_path_factory.mktemp("results"))


@pytest.fixture(params=["reference:big", "committed"])
def inspector(study, request):
    made = study.inspector(SOURCE, budget=3, context=request.param)
    made.select(token=6)
    return made


@pytest.fixture
def view(study):
    made = View(study.inspector(SOURCE, budget=3, context="reference:big"))
    made.inspector.select(token=6)
    return made


def yours(inspector):
    """Your routes of all documents."""
    return np.stack([inspector.routes("yours", number) for number in range(2)])


def test_the_engine_is_one(study):
    assert isinstance(Inspection(study), Engine)


def test_every_number_is_the_model_s(inspector, study):
    """Table, landscape, predictions and replay against `lm.score`, before and after an earlier token was changed."""
    tokens, lm = study.tokens(SOURCE), study.lm
    table = inspector.table().set_index(["seq", "position"])
    _, losses = study.router(inspector.router).run(lm, tokens)
    np.testing.assert_allclose(table["router_nats"], losses[tokens.scored], atol=1e-5)
    if inspector.question.context == "committed":
        for name, route in (("small", "S" * 12), ("big", "B" * 12)):
            np.testing.assert_allclose(table[f"{name}_nats"], lm.score(tokens, route)[tokens.scored], atol=1e-5)
        found = oracle.search(lm, tokens, Space(12, "SB", big=3))
        np.testing.assert_array_equal(inspector.routes("oracle"), found.routes[0])
    for forced in (None, "SB-BSSSBBSSB"):
        if forced:
            inspector.select(token=3)
            inspector.force(forced)
            inspector.select(token=6)
        position, whole = inspector.position, yours(inspector)
        replayed = lm.score(tokens, whole)[0]
        np.testing.assert_allclose(inspector.losses(), replayed, atol=1e-5)
        chosen = inspector.choices().set_index("policy")
        assert chosen.loc["yours", "loss_nats"] == pytest.approx(replayed[position], abs=1e-5)
        assert chosen.loc["yours", "text_nats"] == pytest.approx(replayed[position], abs=1e-5)
        for policy in ("small", "big", "oracle", "label-free", "router"):
            alone = whole.copy()
            alone[0, position] = inspector.routes(policy)[position]
            assert chosen.loc[policy, "route"] == to_text(alone[0, position])
            everywhere = np.stack([inspector.routes(policy, number) for number in range(2)])
            every = lm.score(tokens, everywhere)[0, position]
            assert chosen.loc[policy, "text_nats"] == pytest.approx(every, abs=1e-5)
            expected = lm.score(tokens, alone)[0, position]
            assert chosen.loc[policy, "loss_nats"] == pytest.approx(expected, abs=1e-5)
        land = inspector.landscape()
        for route, loss in zip(land.routes[::777], land.loss_nats[::777]):
            whole[0, position] = route
            assert loss == pytest.approx(lm.score(tokens, whole)[0, position], abs=1e-5)
        best = frames.best_routes(land, number=1).iloc[0]
        assert best["loss_nats"] == land.loss_nats.min()
        if not forced:  # the context's own history: the oracle at its budget is the least of the landscape
            exact = land.loss_nats[(land.routes == 2).sum(1) == 3].min()
            assert chosen.loc["oracle", "loss_nats"] == pytest.approx(exact, abs=1e-5)
            assert inspector.row()["oracle_nats"] == pytest.approx(exact, abs=1e-5)


def test_routes_are_changed_and_changed_back(inspector):
    before, table = inspector.routes("yours").copy(), inspector.table()
    route = before[inspector.position].copy()
    inspector.cycle(4)
    assert inspector.layer == 4
    assert inspector.routes("yours")[inspector.position][4] == (route[4] + 1) % 3
    assert (inspector.routes("yours") != before).sum() == 1
    effect = inspector.table()["effect_nats"].to_numpy()
    assert effect[: inspector.position] == pytest.approx(0)
    assert effect[inspector.position] != 0
    np.testing.assert_allclose(inspector.effect(), effect[:9])
    assert (inspector.table()["small_nats"] == table["small_nats"]).all()
    inspector.use("small", everywhere=True)
    assert (inspector.routes("yours") == 1).all()
    inspector.undo()
    inspector.undo()
    np.testing.assert_array_equal(inspector.routes("yours"), before)
    assert inspector.effect() == pytest.approx(0)
    inspector.undo()
    assert inspector.status == "nothing to undo"


@pytest.mark.parametrize("context", ["reference:big", "committed"])
def test_the_view_as_python_makes_it_again(context, tmp_path):
    own = own_folder(tmp_path / "own", layers=5)
    study = Study(model=str(own), documents=2, length=10, sources=(SOURCE,), results=tmp_path / "results")
    inspector = study.inspector(SOURCE, budget=3, context=context)
    inspector.statistic, inspector.budget = "loss oracle", 4
    inspector.select(document=1, token=9, layer=2)
    inspector.cycle(3)
    made = {}
    exec(inspector.python(), made)
    again = made["inspector"]
    for name in ("document", "token", "layer", "budget", "router", "statistic", "question"):
        assert getattr(again, name) == getattr(inspector, name), name
    assert again.choices().drop(columns="text_nats").equals(inspector.choices().drop(columns="text_nats"))
    inspector.analyse(inspector.ask(text="one two three", choices="-B"))
    exec(inspector.python(), made)
    assert made["inspector"].question == inspector.question


def test_probabilities_have_two_significant_digits():
    shown = [static.percent(share) for share in (0.000312, 0.0123, 0.254, 0.9961, 1.0, 0.0)]
    assert shown == ["0.031 %", "1.2 %", "25 %", "99.6 %", "100 %", "0 %"]


def test_the_best_single_change_is_the_best(inspector, study):
    tokens, position = study.tokens(SOURCE), inspector.position
    inspector.force("S" * 12)
    now, tried = inspector.losses()[position], []
    for layer in range(12):
        for choice in (0, 2):
            changed = yours(inspector)
            changed[0, position, layer] = choice
            tried.append(study.lm.score(tokens, changed)[0, position])
    inspector.best_change()
    assert min(tried) < now
    assert inspector.losses()[position] == pytest.approx(min(tried), abs=1e-5)
    for _ in range(40):
        inspector.best_change()
    assert inspector.status.startswith("no change of one layer lowers")


def test_selection(inspector):
    inspector.step(1)
    assert (inspector.token, inspector.position) == (7, 6)
    inspector.step(100)
    assert inspector.token == 9
    inspector.step(-100)
    assert inspector.token == 1
    inspector.select(document=1)
    assert inspector.token is None
    inspector.step(1)
    assert inspector.token == 1
    inspector.most()
    assert inspector.values()[inspector.token] == np.nanmax(inspector.values())
    inspector.release()
    for call, message in (
        (lambda: inspector.select(token=10), "token 10: there are 1..9"),
        (lambda: inspector.select(document=2), "document 2: there are 0..1"),
        (lambda: inspector.select(layer=12), "layer 12: there are 0..11"),
        (inspector.cycle, "no layer is selected"),
        (lambda: inspector.force("S" * 12), "no token is selected"),
        (lambda: inspector.force("S" * 11), "has 11 letters"),
        (lambda: inspector.routes("best"), "routes 'best': there are small, big"),
        (lambda: setattr(inspector, "router", "x"), "router 'x': the model has budget-2"),
        (lambda: setattr(inspector, "budget", 13), "budget 13"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert (inspector.router, inspector.budget) == ("budget-2", 3)


def test_a_pinned_view_is_compared_with(inspector, study):
    before, labels = inspector.values(), inspector.panels
    inspector.pin()
    inspector.budget = 6
    inspector.against_pin = True
    np.testing.assert_allclose(inspector.values(), _difficulty(inspector, 6) - before)
    assert inspector.panels == (*labels, *(f"A: {name}" for name in labels))
    inspector.left, inspector.right = "A: oracle", "oracle"
    assert (inspector.routes("A: oracle") == 2).sum() == 9 * 3
    assert 0 < inspector.agreement() < 1
    assert set(inspector.usage()["policy"]) == {"A: oracle", "oracle"}
    inspector.analyse(inspector.ask(text=SHORT, context="reference:big"))
    assert (inspector.left, inspector.against_pin) == ("oracle", False)
    inspector.against_pin, inspector.left = True, "A: oracle"
    for call in (inspector.values, inspector.agreement):
        with pytest.raises(ValueError, match="compare texts of one length"):
            call()
    inspector.unpin()
    assert (inspector.left, inspector.against_pin) == ("oracle", False)


def _difficulty(inspector, budget):
    found = inspector.analysis
    table = frames.difficulty(found.tokens, found.oracle, found.label_free, found.null, budget=budget)
    return np.append(np.nan, table.loc[table["seq"] == 0, "difficulty_nats"])


def test_own_text_in_every_way(study):
    """A typed text under other choices and skip scopes: searches and replays agree, and the model is left as it was."""
    made = study.inspector(SOURCE, budget=3, context="reference:big")
    scope = study.lm.model.config.skip_scope
    losses = {}
    for choices, skip in (("-B", "ffn"), ("-B", "block"), ("SB", "block")):
        made.analyse(made.ask(text=SHORT, choices=choices, skip_scope=skip))
        made.select(token=5)
        made.use("oracle")
        row = made.choices().set_index("policy").loc["yours"]
        assert row["loss_nats"] == pytest.approx(made.row()["oracle_nats"], abs=1e-4)
        assert row["loss_nats"] == pytest.approx(made.losses()[4], abs=1e-5)
        losses[choices, skip] = row["loss_nats"]
        cheapest = "skip" if choices == "-B" else "small"
        assert cheapest in made.policies
        assert (made.routes(cheapest) == (0 if choices == "-B" else 1)).all()
        assert f"all {cheapest}" in made.static().html
        assert f"all {cheapest}" in {trace.name for trace in made.landscape_figure().data}
        assert study.lm.model.config.skip_scope == scope
    assert losses["-B", "ffn"] != losses["-B", "block"]
    assert "".join(made.pieces()) == SHORT
    for wrong, message in (
        ({"text": "x"}, "1 tokens has nothing to predict"),
        ({"part": 1}, r"part 1 of this text: there are 0\.\.0"),
        ({"context": "uniform"}, "no landscape of one token"),
        ({"choices": "-SB"}, "give SB or -B"),
    ):
        with pytest.raises(ValueError, match=message):
            made.analyse(made.ask(**wrong))
    assert "".join(made.pieces()) == SHORT


def test_a_text_longer_than_the_context_is_looked_at_part_by_part(study, monkeypatch):
    text = "one 今 two 👩\u200d👧 three, four and five; six or seven"
    view = View(study.inspector(SOURCE, budget=3, context="reference:big"))
    monkeypatch.setattr(LanguageModel, "context", 12)
    inspector, parts = view.inspector, -(-len(study.lm.tokenizer(text)["input_ids"]) // 12)
    assert parts > 2
    assert view.controls["next"].disabled
    view.controls["text"].value = text
    seen = []
    for part in [*range(parts), 0]:
        view.controls["next" if seen else "analyse"].click()
        view.work.wait()
        assert f"part {part + 1} of {parts}, as the text is longer" in inspector.status
        assert not view.controls["next"].disabled
        seen.append("".join(inspector.pieces()))
    assert "".join(seen[:-1]) == text
    assert seen[-1] == seen[0]


def test_what_went_wrong_is_red(view):
    view.controls["text"].value = "x"
    view.controls["analyse"].click()
    view.work.wait()
    assert "nothing to predict" in view.status.value
    assert style.WRONG in view.status.value
    view.controls["undo"].click()
    assert "nothing to undo" in view.status.value
    assert style.WRONG not in view.status.value


def test_a_source_under_another_skip_scope_is_not_what_was_stored(study):
    made = study.inspector(SOURCE, budget=0, context="reference:big")
    for scope in ("ffn", "block", "ffn"):
        made.analyse(made.ask(choices="-B", skip_scope=scope))
        made.select(token=4)
        assert made.choices().set_index("policy").loc["oracle", "loss_nats"] == pytest.approx(
            made.row()["oracle_nats"], abs=1e-5
        )


def test_every_statistic_at_every_budget_is_shown(view):
    for budget in (0, 12):
        view.controls["budget"].value = budget
        for statistic in STATISTICS:
            view.controls["statistic"].value = statistic
            assert view.inspector.status.startswith("ready") or statistic == "margin", view.inspector.status
            assert "<pre" in view.inspector.static().html


def test_the_controls_follow_the_state(view):
    inspector, control = view.inspector, view.controls
    inspector.budget, inspector.statistic, inspector.by, inspector.left = 7, "regret", "loss", "yours"
    inspector.router = "budget-6"
    for name in ("budget", "statistic", "by", "left", "router"):
        assert control[name].value == getattr(inspector, name)
    inspector.analyse(inspector.ask(text=SHORT))
    assert control["text"].value == SHORT
    inspector.right, inspector.router = "router", ""
    assert inspector.right == control["right"].value == "oracle"
    for _ in range(2):
        control["undo"].click()
        assert inspector.status == "nothing to undo"
    inspector.select(token=4)
    with pytest.raises(ValueError, match="give one choice 0, 1 or 2 a layer"):
        inspector.force(np.full(12, -1))


def test_another_threads_analysis_changes_nothing_here(study):
    """Not what a skip leaves out, nor any number: the background's work is beside the cells'."""
    made = study.inspector(SOURCE, budget=3, context="reference:big")
    made.select(token=4)
    tokens, own = study.tokens(SOURCE), study.lm.skip_scope
    other = {"ffn": "block", "block": "ffn"}[own]
    wanted = study.lm.score(tokens, "BB--BBBB-BBB"), made.landscape().loss_nats
    work, said = Background(), []
    asked = made.ask(text=SHORT, choices="-B", skip_scope=other)
    work.start(partial(made.engine.analyse, asked), lambda found, why: said.append((found, why)), lambda share: None)
    while work._thread.is_alive():
        assert study.lm.skip_scope == own
        np.testing.assert_array_equal(study.lm.score(tokens, "BB--BBBB-BBB"), wanted[0])
    work.wait()
    ((found, why),) = said
    assert not why
    again = made.engine.analyse(asked, lambda share: None)
    np.testing.assert_allclose(found.oracle.loss_nats, again.oracle.loss_nats, atol=1e-5)
    np.testing.assert_array_equal(made.landscape().loss_nats, wanted[1])


def test_a_landscape_too_large_to_enumerate_is_drawn(study):
    made = study.inspector(SOURCE, budget=3, context="reference:big")
    engine, found = made.engine, replace(made.analysis, question=replace(made.question, choices="-SB"))
    taken = made.routes("yours")
    land = engine.landscape(found, 0, 4, taken)
    assert (len(land.routes), land.count) == (4096, 3**12)
    whole = np.stack([taken, taken])
    whole[0, 4] = land.routes[100]
    assert land.loss_nats[100] == pytest.approx(study.lm.score(study.tokens(SOURCE), whole)[0, 4], abs=1e-5)


def test_every_control_moves_the_state_and_what_is_shown(view):
    inspector, control = view.inspector, view.controls
    for name, value in (
        ("statistic", "regret"),
        ("budget", 5),
        ("router", "budget-6"),
        ("left", "yours"),
        ("right", "small"),
        ("by", "loss"),
        ("document", 1),
    ):
        shown = {n: plot.figure for n, plot in view.plots.items()} | {"chips": view.chips.styles}
        control[name].value = value
        assert getattr(inspector, name) == value
        assert inspector.status.startswith("ready"), inspector.status
        assert shown != {n: plot.figure for n, plot in view.plots.items()} | {"chips": view.chips.styles}
    control["most"].click()
    assert view.chips.selected == inspector.token == 1 + np.nanargmax(inspector.values()[1:])
    before = inspector.routes("yours")[inspector.position].copy()
    view.layers[7].click()
    after = inspector.routes("yours")[inspector.position]
    assert np.flatnonzero(before != after).tolist() == [7]
    assert [button.description for button in view.layers] == list(to_text(after))
    assert f"{inspector.losses()[inspector.position]:.3f}" in view.token.value
    control["undo"].click()
    for policy in ("oracle", "router", "small", "big"):
        control[f"use {policy}"].click()
        route = inspector.routes("yours")[inspector.position]
        np.testing.assert_array_equal(route, inspector.routes(policy)[inspector.position])
    control["everywhere"].value = True
    control["use small"].click()
    assert (inspector.routes("yours") == 1).all()
    control["best"].click()
    assert "nats" in inspector.status
    control["pin"].click()
    control["budget"].value = 7
    control["against_pin"].value = True
    assert "difference to A" in view.chips.meaning
    control["unpin"].click()
    assert not control["against_pin"].value
    for context in ("committed", "reference:big"):
        control["context"].value = context
        view.work.wait()
        assert inspector.question.context == context
    control["searched"].value = "-B"
    view.work.wait()
    assert inspector.question.choices == "-B"
    control["scope"].value = "block"
    view.work.wait()
    assert inspector.question.skip_scope == "block"


def test_a_click_in_another_thread_waits_for_its_turn(view):
    at_work, go_on = threading.Event(), threading.Event()

    def long(*_):
        at_work.set()
        go_on.wait(30)

    threads = [threading.Thread(target=view._guarded(long))]
    threads.append(threading.Thread(target=view.chips._handle_custom_msg, args=({"token": 2}, [])))
    threads[0].start()
    at_work.wait(30)
    threads[1].start()
    threads[1].join(0.5)
    assert threads[1].is_alive()
    assert view.inspector.token == 6
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert view.inspector.token == view.chips.selected == 2


def test_keys_and_clicks_of_the_browser(view):
    inspector, send = view.inspector, view.chips._handle_custom_msg
    send({"token": 3}, [])
    assert inspector.token == view.chips.selected == 3
    send({"step": 1}, [])
    send({"layer": 1}, [])
    assert (inspector.token, inspector.layer) == (4, 0)
    send({"layer": -1}, [])
    send({"cycle": True}, [])
    assert to_text(inspector.routes("yours")[3])[:2] == "-B"
    send({"release": True}, [])
    assert inspector.token is None
    assert view.chips.selected == -1
    assert view.token.value == ""
    view.plots["routes"]._handle_custom_msg({"x": 8, "y": 11}, [])
    assert (inspector.token, inspector.layer) == (9, 11)
    send({"token": 0}, [])
    assert inspector.status == "ValueError: token 0: there are 1..9"


def test_an_analysis_can_be_watched_and_cancelled(view):
    control, inspector = view.controls, view.inspector
    begun, go_on = threading.Event(), threading.Event()
    analyse = inspector.engine.analyse

    def slow(question, watch):
        begun.set()
        assert go_on.wait(60)
        return analyse(question, watch)

    inspector.engine.analyse = slow
    control["text"].value = SHORT
    control["analyse"].click()
    assert begun.wait(60)
    assert control["pin"].disabled
    assert not control["cancel"].disabled
    control["cancel"].click()
    go_on.set()
    view.work.wait()
    assert inspector.status == "cancelled; nothing has changed"
    assert inspector.question.text == ""
    assert not control["pin"].disabled
    shares = []
    analyse(inspector.ask(text=SHORT, context="reference:big"), shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    control["analyse"].click()
    view.work.wait()
    assert inspector.question.text == SHORT
    control["text"].value = "x"
    control["analyse"].click()
    view.work.wait()
    assert inspector.status.startswith("ValueError: text 'x' of 1 tokens has nothing to predict")


def test_one_analysis_at_a_time():
    work, go_on = Background(), threading.Event()

    def analyse(watch):
        assert go_on.wait(60)
        raise Cancelled

    said = []
    work.start(analyse, lambda found, why: said.append(why), lambda share: None)
    with pytest.raises(RuntimeError, match="cancel it first"):
        work.start(analyse, print, print)
    go_on.set()
    work.wait()
    assert said == ["cancelled; nothing has changed"]


def test_whatever_a_callback_raises_is_shown(view, monkeypatch):
    monkeypatch.setattr(view.inspector, "best_change", lambda: 1 / 0)
    broken = View(view.inspector)
    broken.controls["best"].click()
    assert broken.inspector.status == "ZeroDivisionError: division by zero"
    assert "ZeroDivisionError" in broken.status.value
    monkeypatch.setattr(broken, "_refreshers", [({"token"}, lambda: 1 / 0), *broken._refreshers])
    broken.inspector.select(token=9)
    assert broken.inspector.status == "ZeroDivisionError: division by zero"
    assert broken.chips.selected == 9, "the other views follow all the same"


def test_text_is_never_markup(view):
    text = "<script>alert('1')</script> $x$ é😀 <b>"
    view.controls["text"].value = text
    view.controls["analyse"].click()
    view.work.wait()
    inspector = view.inspector
    inspector.select(token=5)
    assert "".join(inspector.pieces()) == text
    assert "".join(view.chips.pieces) == text.replace(" ", "·")  # written as text nodes
    assert [n for within in view.chips.tokens for n in within] == list(range(len(inspector.pieces())))
    (split,) = [within for within, shown in zip(view.chips.tokens, view.chips.pieces) if shown == "😀"]
    assert len(split) > 1
    assert f"{split[0]} 😀·(1·of·{len(split)})" in view.chips.labels[split[0]]
    bundle = view.box._repr_mimebundle_()
    for page in (view.token.value, view.best.value, view.effect.value, view.status.value, bundle["text/html"]):
        assert "<script" not in page
    assert "&lt;" in view.token.value, "the heading shows what stands before"
    shown = re.sub(r"<[^>]*>", "", bundle["text/html"].partition("<pre")[2].partition("</pre>")[0])
    assert html.unescape(shown).endswith(text)
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == view.box.model_id


def test_the_whole_vocabulary_is_shown_whole(study):
    """Every token of the vocabulary as a chip: something is seen, and nothing of it is markup once escaped."""
    tokenizer = study.lm.tokenizer
    for token in range(len(tokenizer)):
        shown = style.visible(tokenizer.decode([token]))
        assert shown
        assert not re.search(r"[\n\t\r ]", shown)
        assert html.unescape(style.token_text(tokenizer.decode([token]))) == shown


def test_slices_usage_and_statistics_are_the_tables(inspector):
    column = "difficulty_nats"
    assert inspector.slices()["positions"].sum() == len(inspector.table())
    mean = np.average(inspector.slices()[column], weights=inspector.slices()["positions"])
    assert mean == pytest.approx(inspector.table()[column].mean(), rel=1e-5)
    usage = inspector.usage().set_index(["policy", "layer"])
    both = np.concatenate([inspector.routes("oracle", number) for number in range(2)])
    np.testing.assert_allclose(usage.loc["oracle", "share"], (both == 2).mean(0))
    assert (usage["n"] == 2 * 9).all()
    spread = frames.spread(inspector.landscape())
    assert spread["routes"].tolist() == [1, 12, 66, 220, 495, 792, 924, 792, 495, 220, 66, 12, 1]
    drawn = inspector.landscape_figure()
    np.testing.assert_allclose(drawn.data[0].median, spread["median"])
    np.testing.assert_allclose([trace.y[0] for trace in drawn.data[1:]], inspector.choices()["loss_nats"])
    figure = inspector.routes_figure()
    np.testing.assert_array_equal(figure.data[0].z, inspector.routes("oracle").T)
    np.testing.assert_array_equal(figure.data[2].z, (inspector.routes("router") - inspector.routes("oracle")).T)
    assert f"agree in {inspector.agreement():.0%}" in figure.layout.title.text


def test_a_model_without_routers(study, monkeypatch):
    monkeypatch.setattr(router, "trained", lambda folder, layers: {})
    made = study.inspector(SOURCE, budget=3, context="reference:big")
    assert made.router == ""
    assert "router" not in made.policies
    made.select(token=4)
    assert set(made.choices()["policy"]) == {"small", "big", "oracle", "label-free", "yours"}
    assert View(made).controls["use router"].disabled
    with pytest.raises(ValueError, match="router 'budget-4': the model has none"):
        study.inspector(SOURCE, router="budget-4")


def test_questions_are_answered_by_what_is_stored(study, monkeypatch):
    asked = Question(source=SOURCE, context="reference:big")
    first = Inspection(study).analyse(asked, lambda share: None)
    monkeypatch.setattr(oracle, "survey", lambda *given, **ways: pytest.fail("computed again"))
    again = Inspection(replace(study)).analyse(asked, lambda share: None)
    np.testing.assert_array_equal(first.oracle.loss_nats, again.oracle.loss_nats)
    assert list(study.results.glob("survey-*"))
    np.testing.assert_array_equal(first.taken(3)[0, 0], from_text("B" * 12))
