"""The hand-over between the rooms: frozen records of numpy arrays that prove, when made, that their shapes agree.

Axes: `seq` texts, `token` tokens of a text, `position` scored predictions (input token t predicts token t+1, so one fewer
than tokens), `layer`, `k` entries of a curve, `route` routes of a landscape. Losses are negative log-likelihoods in nats.
A position that is not scored (padding, the first token of a document) is NaN in losses and -1 in routes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import regex
from jaxtyping import Bool, Float32, Int8, Int64


def whole(**numbers: object) -> None:
    """Check that sizes are whole numbers above 0; a `bool` is none.

    Raises:
        ValueError: with the first of them by name.
    """
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
            raise ValueError(f"{name} {number!r}: give a whole number, at least 1")


def above_zero(**numbers: float) -> None:
    """Check that numbers are finite and above 0.

    Raises:
        ValueError: with the first of them by name.
    """
    for name, number in numbers.items():
        if not 0 < number < np.inf:
            raise ValueError(f"{name} {number}: give a finite number above 0")


@dataclass(frozen=True)
class Tokens:
    """Blocks of token ids, with what is needed to show them as characters.

    Attributes:
        ids: token ids; padding repeats id 0.
        scored: whether the prediction made at each position counts.
        text: the characters of each sequence.
        offsets: first and past-the-end character of each token in `text`; padding is (0, 0).
        documents: id of the document each sequence was cut from.
        source: name of the corpus source.
        special: tokens that stand for no characters, such as the begin-of-text token that the tokenizer puts first; none if
            not given. They are read and predict what follows; that they stand there is never scored.
    """

    ids: Int64[np.ndarray, "seq token"]
    scored: Bool[np.ndarray, "seq position"]
    text: tuple[str, ...]
    offsets: Int64[np.ndarray, "seq token 2"]
    documents: tuple[str, ...]
    source: str = ""
    special: Bool[np.ndarray, "seq token"] = None  # type: ignore[assignment]  # filled in at once

    def __post_init__(self) -> None:
        seqs, tokens = self.ids.shape
        if self.special is None:
            object.__setattr__(self, "special", np.zeros((seqs, tokens), bool))
        assert self.special.shape == (seqs, tokens), "special is [seq, token]"
        assert not (self.scored & self.special[:, 1:]).any(), "special tokens are never scored"
        assert self.scored.shape == (seqs, tokens - 1), "scored is [seq, position]"
        assert self.offsets.shape == (seqs, tokens, 2), "offsets are [seq, token, 2]"
        assert len(self.text) == len(self.documents) == seqs, "one text and one document id per sequence"

    @classmethod
    def of(cls, ids: np.ndarray | Tokens) -> Tokens:
        """Plain ids `[seq, token]` as a record without text; a record as it is.

        Raises:
            ValueError: an array that is not integer `[seq, token]` with at least two tokens.
        """
        if isinstance(ids, Tokens):
            return ids
        ids = np.asarray(ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"tokens of shape {ids.shape} and dtype {ids.dtype}: give integers [seq, token]")
        if 0 in ids.shape or ids.shape[1] < 2:
            raise ValueError(
                f"tokens of shape {ids.shape}: at least one sequence of two tokens is needed (empty text?)"
            )
        seqs, tokens = ids.shape
        return cls(
            ids=ids.astype(np.int64),
            scored=np.ones((seqs, tokens - 1), bool),
            text=("",) * seqs,
            offsets=np.zeros((seqs, tokens, 2), np.int64),
            documents=tuple(f"text-{i}" for i in range(seqs)),
        )

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """Texts of the same length from several sources, one after the other.

        Raises:
            ValueError: no parts, or parts of different lengths.
        """
        lengths = {part.ids.shape[1] for part in parts}
        if len(lengths) != 1:
            raise ValueError(f"texts of {sorted(lengths)} tokens: join parts of one length; `cut` shortens them")
        return cls(
            ids=np.concatenate([part.ids for part in parts]),
            scored=np.concatenate([part.scored for part in parts]),
            text=tuple(text for part in parts for text in part.text),
            offsets=np.concatenate([part.offsets for part in parts]),
            documents=tuple(name for part in parts for name in part.documents),
            source=" + ".join(part.source for part in parts),
            special=np.concatenate([part.special for part in parts]),
        )

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with any id and with what is scored."""
        return hashlib.sha256(self.ids.tobytes() + self.scored.tobytes()).hexdigest()[:12]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> Tokens:
        """Some of the sequences."""
        return replace(
            self,
            ids=self.ids[rows],
            scored=self.scored[rows],
            text=self.text[rows],
            offsets=self.offsets[rows],
            documents=self.documents[rows],
            special=self.special[rows],
        )

    def cut(self, length: int) -> Tokens:
        """The first tokens of every sequence."""
        return replace(
            self,
            ids=self.ids[:, :length],
            scored=self.scored[:, : length - 1],
            offsets=self.offsets[:, :length],
            special=self.special[:, :length],
        )

    def pieces(self, seq: int) -> list[str]:
        """The characters of each token; joined they are the text that the tokens cover.

        A character split over several tokens belongs to the last of them. The earlier ones, and padding, are empty.
        """
        found: list[str] = []
        next_start = len(self.text[seq])
        for start, stop in self.offsets[seq][::-1].tolist():
            found.append(self.text[seq][start : min(stop, next_start)])
            if stop > start:
                next_start = start
        return found[::-1]

    def chips(self, seq: int) -> list[tuple[str, tuple[int, ...]]]:
        """The text as it is read, in pieces that cut no character: the characters of each piece, and its tokens.

        A character (a grapheme cluster: an emoji of several code points, a letter with its accents) that is cut into several
        tokens joins them. Characters without a token were dropped by the tokenizer. A special token is a piece without
        characters; padding is left out.
        """
        text = self.text[seq]
        made: list[tuple[str, tuple[int, ...]]] = []
        borders = {cluster.end() for cluster in regex.finditer(r"\X", text)}
        shown, waiting = 0, list[int]()  # characters that have their chip, and tokens whose last character goes on
        for token, (piece, start) in enumerate(zip(self.pieces(seq), self.offsets[seq, :, 0].tolist())):
            if self.special[seq, token]:
                made.append(("", (token,)))
                continue
            if not waiting and text[shown:start].strip():  # white space belongs to the word after it
                made.append((text[shown:start], ()))
                shown = start
            waiting.append(token)
            if piece and start + len(piece) in borders:
                made.append((text[shown : start + len(piece)], tuple(waiting)))
                shown, waiting = start + len(piece), []
        last = max((int(self.offsets[seq, token, 1]) for token in waiting), default=0)
        if last > shown:  # the text is cut off inside a character
            made.append((text[shown:last], tuple(token for token in waiting if self.offsets[seq, token, 1])))
        return made


@dataclass(frozen=True)
class Effort:
    """What a search took; NaN where that was not kept.

    Attributes:
        routes: routes evaluated per position; for a curve, over all its budgets.
        flops: floating-point operations in all, counted node by node; every leaf's head as if it were whole.
        seconds: wall-clock time in all.
    """

    routes: float
    flops: float = np.nan
    seconds: float = np.nan


@dataclass(frozen=True)
class Found:
    """The routes that a search chose, one per position.

    Attributes:
        routes: the chosen routes.
        loss_nats: loss of each on its target, in the search's context.
        margin_nats: how much worse the second best route of the position is on what was minimised; inf if alone.
        replay_error: largest difference, in nats, between `loss_nats` and one ordinary forward pass with these routes.
        space: the space searched, as text.
        context: how earlier tokens were routed.
        objective: what was minimised.
        method: how it was searched; for `auto`, what it stood for.
        effort: what it took.
    """

    routes: Int8[np.ndarray, "seq position layer"]
    loss_nats: Float32[np.ndarray, "seq position"]
    margin_nats: Float32[np.ndarray, "seq position"]
    replay_error: float
    space: str
    context: str
    objective: str = "nll"
    method: str = "exhaustive"
    effort: Effort | None = None

    def __post_init__(self) -> None:
        assert self.routes.shape[:2] == self.loss_nats.shape == self.margin_nats.shape, "one loss and margin per route"
        assert (np.isnan(self.loss_nats) == (self.routes[..., 0] == -1)).all(), "unscored positions are NaN and -1"


@dataclass(frozen=True)
class Curve:
    """One policy at several budgets: the same texts, a loss and a route for every position and budget.

    Attributes:
        name: the policy: oracle, label-free, null, fixed, random-100, router.
        context: how earlier tokens were routed.
        budgets: big layers asked for.
        loss_nats: losses on the target the policy is scored on.
        routes: the chosen routes.
        margin_nats: as in `Found`, where the policy was searched.
        minimised: the value of what was minimised, where the policy was searched and that was kept.
        replay_error: as in `Found`, per budget; NaN where nothing was replayed.
        effort: as in `Found`, where the policy was searched.
    """

    name: str
    context: str
    budgets: Int64[np.ndarray, " k"]
    loss_nats: Float32[np.ndarray, "k seq position"]
    routes: Int8[np.ndarray, "k seq position layer"]
    margin_nats: Float32[np.ndarray, "k seq position"] | None = None
    minimised: Float32[np.ndarray, "k seq position"] | None = None
    replay_error: np.ndarray = field(default_factory=lambda: np.zeros(0))
    effort: Effort | None = None

    def __post_init__(self) -> None:
        assert self.loss_nats.shape == self.routes.shape[:3], "one loss per route"
        assert len(self.budgets) == len(self.loss_nats), "one entry per budget"

    def at(self, budget: int) -> tuple[np.ndarray, np.ndarray]:
        """Losses `[seq, position]` and routes `[seq, position, layer]` at one budget.

        Raises:
            ValueError: a budget the curve does not hold.
        """
        k = self.place(budget)
        return self.loss_nats[k], self.routes[k]

    def place(self, budget: int) -> int:
        """Which entry is of a budget.

        Raises:
            ValueError: a budget the curve does not hold.
        """
        if budget not in self.budgets:
            raise ValueError(f"budget {budget}: the curve {self.name!r} holds {self.budgets.tolist()}")
        return int(np.flatnonzero(self.budgets == budget)[0])


@dataclass(frozen=True)
class Landscape:
    """Routes of one position and what each is worth.

    Attributes:
        routes: in lexicographic order.
        loss_nats: of each.
        count: routes of the space; more than are listed where they were drawn from it.
    """

    routes: Int8[np.ndarray, "route layer"]
    loss_nats: Float32[np.ndarray, " route"]
    count: int

    def __post_init__(self) -> None:
        assert len(self.routes) == len(self.loss_nats) <= self.count, "one loss per route"


@dataclass(frozen=True)
class Luck:
    """Losses in nats for every number of big layers: of the mean route, and of the best one, for true and made-up targets.

    Attributes:
        budgets: numbers of big layers.
        true_mean, true_best: on the true next token.
        free: on the true one, of the route whose expected loss under q is least.
        null_mean, null_best: averaged over next tokens under q, all big's own distribution.
        matched_mean, matched_best: the same under q at the matched temperature.
        temperature: at which q's mean entropy is all big's mean loss, over these positions.
    """

    budgets: Int64[np.ndarray, " k"]
    true_mean: Float32[np.ndarray, "k seq position"]
    true_best: Float32[np.ndarray, "k seq position"]
    free: Float32[np.ndarray, "k seq position"]
    null_mean: Float32[np.ndarray, "k seq position"]
    null_best: Float32[np.ndarray, "k seq position"]
    matched_mean: Float32[np.ndarray, "k seq position"]
    matched_best: Float32[np.ndarray, "k seq position"]
    temperature: float


@dataclass(frozen=True)
class Predictions:
    """What a model predicts after one token when that token takes each of some routes.

    Attributes:
        routes: as they were asked for.
        loss_nats: of the true next token.
        rank: of the true next token, 1 is the likeliest.
        top_ids: the likeliest next tokens, likeliest first.
        top_shares: their probabilities.
    """

    routes: Int8[np.ndarray, "route layer"]
    loss_nats: Float32[np.ndarray, " route"]
    rank: Int64[np.ndarray, " route"]
    top_ids: Int64[np.ndarray, "route top"]
    top_shares: Float32[np.ndarray, "route top"]

    def __post_init__(self) -> None:
        assert len(self.routes) == len(self.loss_nats) == len(self.rank) == len(self.top_ids), "one entry per route"
        assert self.top_ids.shape == self.top_shares.shape, "a probability for each"
