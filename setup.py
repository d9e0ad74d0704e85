"""A wheel brings the notebooks and the data along, in `duoviz/shipped` (see `duoviz/places.py`)."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithData(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            for name in ("notebooks", "data"):
                target = Path(self.build_lib, "duoviz", "shipped", name)
                shutil.copytree(name, target, ignore=shutil.ignore_patterns("*.png", ".*"), dirs_exist_ok=True)


setup(cmdclass={"build_py": WithData})
