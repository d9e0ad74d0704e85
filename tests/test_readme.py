"""The README's example runs, and its tree names what there is."""

import re
import subprocess
import sys
from pathlib import Path

from duoviz import frames
from duoviz.bench import table as bench
from duoviz.metrics import enough, mean_interval
from duoviz.oracle import CARRIED, WITHOUT_LABEL
from duoviz.study import Study, specimen

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"all small \d\.\d\d, all big \d\.\d\d, oracle with 4 big \d\.\d\d nats", done.stdout)


def test_the_tree_names_every_module_once():
    tree = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"^    (duoviz/\w+(?:\.py|/))", tree, re.MULTILINE)
    found = [
        f"duoviz/{path.name}{'/' if path.is_dir() else ''}"
        for path in (ROOT / "duoviz").iterdir()
        if not path.name.startswith("__")
    ]
    assert sorted(named) == sorted(found)


def test_what_the_picture_is_said_to_show_is_in_the_shipped_results():
    study = Study(documents=88)
    for source, true, null in (("shipped-prose", 0.76, 0.74), ("shipped-code", 0.60, 0.61)):
        gains = frames.luck_gains(study.luck(source, positions=8), study.tokens(source)).set_index(["over", "budget"])
        four = gains.loc[("mean", 4)]
        assert (round(four["true"], 2), round(four["null"], 2), four["positions"]) == (true, null, 704)
        assert four["true_less_null_low"] < 0 < four["true_less_null_high"]
        assert gains.loc["mean", "true_less_null"].max() < 0.03
        assert (gains.loc["mean", "true_less_matched"].loc[1:10] < 0).all()
        assert gains.loc["mean", "free"].max() < 0.12
        assert gains.loc["big", "null"].iloc[0] < gains.loc["big", "true"].iloc[0] < 0


def test_what_is_said_of_the_real_model_is_in_its_tables():
    gains = specimen.read()["luck"].set_index(["source", "over", "budget"])
    for source, luck in (("shipped-prose", 0.97), ("shipped-code", 0.90)):
        nine = gains.loc[(source, "mean", 9)]
        assert round(nine["null"] / nine["true"], 2) == luck
        assert 0.3 < nine["free"] / nine["true"] < 0.35
        assert (nine["positions"], nine["documents"]) == (704, 88)
        three, six = (gains.loc[(source, "big", budget)] for budget in (3, 6))
        assert three["true"] < 0
        assert three["true_low"] < 0
        assert 0.2 <= round(six["true"], 1) <= 0.3
        assert six["true_low"] > 0


def test_what_is_said_of_notebook_7_is_in_the_shipped_results():
    study = Study(documents=8)
    for source in study.sources:
        tokens, tables = study.tokens(source), study.landscapes(source)
        free = study.survey(source, CARRIED, context="reference:big")["expected"]
        again = study.lm.score(tokens, free.routes[1])
        assert mean_interval(study.fixed(source).loss_nats[1] - again, tokens.documents).low > 0
        kept = study.survey(source, WITHOUT_LABEL, context="reference:big")["agree_big"]
        assert mean_interval(enough(kept.minimised, kept.budgets, epsilon=0.0), tokens.documents).high < 1.1
        assert round(tables["additivity"]["pairwise"].mean(), 2) == 0.99
        regrets = frames.regrets(tables["methods"], tables["candidates"], tokens).set_index(["space", "method"])
        descent = regrets.loc[("free", "descent-0")]
        assert descent["regret_nats"] < 0.001
        assert round(descent["routes"]) in (132, 133, 134)


def test_the_benchmarks_are_those_of_the_stored_run():
    assert README.split(bench.MARK)[1].strip() == bench.table(ROOT / "data" / "bench.json")
    shown = (ROOT / "notebooks" / "guides" / "many-machines.md").read_text().split(bench.MARK)[1].strip()
    gpu = ROOT / "data" / "bench-gpu.json"
    assert shown == (bench.table(gpu) if gpu.is_file() else "No GPU has been measured yet.")


def test_pictures_and_notebooks_exist():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "notebooks" / "guides").glob("*.md"))):
        for path in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            assert path.startswith("https://") or (page.parent / path).exists(), (page.name, path)
    listed = re.findall(r"^\| \d \|", (ROOT / "notebooks" / "guides" / "notebooks.md").read_text(), re.MULTILINE)
    assert len(list((ROOT / "notebooks").glob("[0-9]*.ipynb"))) == len(listed)


def test_it_can_be_read_in_one_go():
    assert len(README.splitlines()) <= 150
