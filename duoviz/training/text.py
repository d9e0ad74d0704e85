"""The text of stage 1: a tokenizer learned from it, rows of tokens, and their order."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .. import corpus
from ..model.loading import read_tokenizer
from .plan import Stage1

HELD_ROWS = 64
END_OF_TEXT = "<|endoftext|>"
TOKENIZER_DOCUMENTS = 200_000
"""Documents of each source, every second of which the tokenizer learns from."""


class Rows(torch.utils.data.Dataset):
    """Training rows in an order fixed by the seed: the sources take turns, each shuffled anew every epoch."""

    def __init__(self, parts: Sequence[np.ndarray], *, length: int, seed: int) -> None:
        self.parts, self.length, self.seed = parts, length, seed
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        turn, part = divmod(index, len(self.parts))
        epoch, place = divmod(turn, len(self.parts[part]))
        if (part, epoch) not in self._orders:
            draw = np.random.default_rng((self.seed, part, epoch))
            self._orders[part, epoch] = draw.permutation(len(self.parts[part]))
        ids = torch.from_numpy(self.parts[part][self._orders[part, epoch][place]].astype(np.int64))
        return {"input_ids": ids, "labels": ids, "row": index}


def new_tokenizer(sources: Sequence[str], *, vocab: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learned from the train split of the sources."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    read = (islice(corpus.stream(source, split="train"), 0, TOKENIZER_DOCUMENTS, 2) for source in sources)
    tokenizer.train_from_iterator((document.text for documents in read for document in documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, model_max_length=context
    )


def tokenizer_of(plan: Stage1) -> PreTrainedTokenizerBase:
    """The run's tokenizer: its own, that of the model it starts from, or a new one."""
    own, partial = plan.out / "tokenizer", plan.out / "tokenizer.partial"
    for folder in (own, plan.start):
        if folder is not None and folder.is_dir():
            if (found := read_tokenizer(folder)) is None:
                raise ValueError(f"{folder} has no tokenizer: put one there")
            return found
    tokenizer = new_tokenizer(plan.sources, vocab=plan.preset.vocab, context=plan.preset.context)
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save_pretrained(partial)
    partial.rename(own)  # whole or not at all: a run that was killed here goes on
    return tokenizer


def rows_of(plan: Stage1, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, np.ndarray]]:
    """Packed rows `[row, token]` by split ("train", "holdout") and source, kept in the run's folder.

    Raises:
        ValueError: a source with too little text for a row of each split.
    """
    found: dict[str, dict[str, np.ndarray]] = {"train": {}, "holdout": {}}
    for source in plan.sources:
        kind, _, rest = source.partition(":")
        name = f"{kind}-{hashlib.sha256(rest.encode()).hexdigest()[:16]}" if rest else source
        paths = {split: plan.out / f"{split}-{name}.npy" for split in found}
        if not all(path.is_file() for path in paths.values()):
            for split, rows in _packed(plan, tokenizer, source).items():
                temporary = paths[split].with_suffix(".tmp.npy")
                np.save(temporary, rows)
                temporary.replace(paths[split])
        for split, path in paths.items():
            found[split][source] = np.load(path, mmap_mode="r")
    return found


def held_out(rows: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """`HELD_ROWS` rows of each source from all over its holdout (its beginning may be of one kind), int64."""
    return {
        source: torch.from_numpy(some[:: max(1, len(some) // HELD_ROWS)][:HELD_ROWS].astype(np.int64))
        for source, some in rows.items()
    }


def _packed(
    plan: Stage1, tokenizer: PreTrainedTokenizerBase, source: str
) -> dict[str, Integer[np.ndarray, "row token"]]:
    """Rows of both splits: by the hash of each document; of your own text, read as far as needed, by `apart`."""
    length = plan.preset.context
    if source in corpus.PYTHON:
        splits = ("train", "holdout")
        return {s: corpus.packed(tokenizer, corpus.stream(source, split=s), length=length) for s in splits}
    wanted = math.ceil(plan.steps * plan.preset.rows / len(plan.sources) / (1 - corpus.HOLDOUT_SHARE)) + 1
    rows = corpus.packed(tokenizer, corpus.stream(source), length=length, rows=wanted)
    if len(rows) < 2:
        raise ValueError(f"{source!r} fills one row of {length} tokens: at least two are needed, one of them held out")
    return dict(zip(("train", "holdout"), apart(rows)))


def apart(rows: Integer[np.ndarray, "row token"]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of your own text to train on and those held out: every 25th from the first, however many are read."""
    held = np.arange(len(rows)) % round(1 / corpus.HOLDOUT_SHARE) == 0
    return rows[~held], rows[held]
