"""What is fast and what is not: ratios measured in one run (`measures.py`), and what a GPU is for (`accelerator.py`)."""
