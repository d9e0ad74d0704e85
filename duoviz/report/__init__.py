"""The notebooks, run headlessly by papermill, and made into one folder that opens offline.

`runs/report/index.html` shows a card for each; `runs/report/<notebook>.html` is the notebook as a page and
`<notebook>.ipynb` the executed notebook. plotly.js is written once, from the installed package.
"""

from .kept import keep
from .page import PLOTLY, Page, html, keep_twins, without_widgets
from .run import USED, build, notebooks

__all__ = ["PLOTLY", "USED", "Page", "build", "html", "keep", "keep_twins", "notebooks", "without_widgets"]
