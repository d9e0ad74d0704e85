"""`python -m duoviz`."""

from .cli import app

app(prog_name="python -m duoviz")
