"""The README's example runs, and its tree names what there is."""

import re
import subprocess
import sys
from pathlib import Path

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


def test_pictures_and_notebooks_exist():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file()
    assert len(list((ROOT / "notebooks").glob("[0-9]*.ipynb"))) == len(re.findall(r"^\| \d \|", README, re.MULTILINE))
