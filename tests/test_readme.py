"""The README's example runs, and its tree names what there is."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from duoviz.metrics import mean_interval
from duoviz.study import Study

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"all small \d\.\d\d, all big \d\.\d\d, oracle with 4 big \d\.\d\d nats", done.stdout)


def test_the_tree_names_every_module_once():
    named = re.findall(r"^    (duoviz/\w+(?:\.py|/))", README, re.MULTILINE)
    found = [
        f"duoviz/{path.name}{'/' if path.is_dir() else ''}"
        for path in (ROOT / "duoviz").iterdir()
        if not path.name.startswith("__")
    ]
    assert sorted(named) == sorted(found)


def test_what_the_picture_is_said_to_show_is_in_the_shipped_results():
    study = Study(documents=8)
    for source in study.sources:
        found = study.survey(source)
        gain = {n: np.nanmean(c.loss_nats[-1] - c.loss_nats, axis=(1, 2)) for n, c in found.items()}
        assert gain["nll"][1] > 0
        assert gain["null"][1] < 0 < gain["null"][2:-1].min()
        assert gain["expected"].max() < 0.1 * gain["nll"].max()
        true = study.fixed(source).loss_nats[1] - found["nll"].loss_nats[1]
        null = study.fixed(source, null=True).loss_nats[1] - found["null"].loss_nats[1]
        more = mean_interval(true - null, study.tokens(source).documents)
        assert more.low < 0 < more.high


def test_pictures_and_notebooks_exist():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file()
    assert len(list((ROOT / "notebooks").glob("[0-9]*.ipynb"))) == len(re.findall(r"^\| \d \|", README, re.MULTILINE))
