"""How the tokens of a model are routed while it is evaluated, and the forward pass over pieces of text that take such routes.

A way is one route for all tokens, independent random choices with given shares, or a router: what the forward of a Duo
model takes as `duo_routes`, `duo_policy` and `duo_router`.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int8, Int64
from torch.nn.functional import cross_entropy

from .. import router as routers
from .. import routes as routes_
from ..metrics import share
from ..model import LanguageModel, RandomPolicy, undisturbed
from ..records import Tokens
from ..router import Router
from ..routes import BIG, LETTERS, SKIP, SMALL

Way: TypeAlias = str | np.ndarray | RandomPolicy | Router
"""One route (`"BBSS..."` or int8 `[layer]`), random choices, or a router."""


def way_of(
    lm: LanguageModel,
    *,
    route: str | None = None,
    router: Path | str | None = None,
    big: float | None = None,
    small: float | None = None,
    skip: float | None = None,
    seed: int = 0,
) -> Way:
    """The way that some words name, as the shell and lm-evaluation-harness give them; all big if none are given.

    Args:
        lm: the model it is for.
        route: one letter per layer.
        router: folder of a router.
        big: share of big for independent random choices.
        small, skip: their shares. What is left goes to the one that is not given; if neither is, to small where the model
            has small FFNs, else to skip.
        seed: of the random choices.

    Raises:
        ValueError: several of route, router and big; small or skip without big; whatever `check` refuses.
        FileNotFoundError: no router in the folder.
    """
    given = [
        f"{name} {value}" for name, value in (("route", route), ("router", router), ("big", big)) if value is not None
    ]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)}: give one of a route, a router and a share of big")
    if big is None and not small is skip is None:
        raise ValueError(f"small {small}, skip {skip} without a share of big: give big too, for example big=0.5")
    if route is not None:
        return check(lm, route)
    if router is not None:
        return check(lm, routers.load(router))
    if big is None:
        return check(lm, LETTERS[BIG] * lm.layers)
    if small is None and (skip is not None or LETTERS[SMALL] in lm.choices):
        small = routes_.rest(big, skip or 0.0)
    small = small or 0.0
    return check(
        lm, RandomPolicy(big=big, small=small, skip=routes_.rest(big, small) if skip is None else skip, seed=seed)
    )


def ways_of(
    lm: LanguageModel,
    *,
    routes: Sequence[str] = (),
    routers: Sequence[Path | str] = (),
    bigs: Sequence[float] = (),
    small: float | None = None,
    skip: float | None = None,
    seed: int = 0,
) -> dict[str, Way]:
    """Several ways by name, in the order of the arguments; all big if none are given. Arguments and errors as in `way_of`."""
    found = {route: way_of(lm, route=route) for route in routes}
    found |= {str(folder): way_of(lm, router=folder) for folder in routers}
    random = (way_of(lm, big=big, small=small, skip=skip, seed=seed) for big in bigs)
    found |= {describe(way): way for way in random}
    if not found or (not bigs and not small is skip is None):
        way = way_of(lm, small=small, skip=skip)  # refuses shares without that of big
        found[describe(way)] = way
    return found


def check(lm: LanguageModel, way: Way) -> Way:
    """The way, if the model can take it; a route as int8 `[layer]`.

    Raises:
        ValueError: a route of another length or with unknown letters, a choice that the model does not have, a router of
            another model.
    """
    if isinstance(way, Router):
        way.check(lm)
        return way
    if isinstance(way, RandomPolicy):
        taken = {LETTERS[choice] for choice, part in ((BIG, way.big), (SMALL, way.small), (SKIP, way.skip)) if part > 0}
        if missing := sorted(taken - set(lm.choices)):
            raise ValueError(
                f"{describe(way)} chooses {missing}: this model has only {lm.choices!r} (a dense model has no small FFN)"
            )
        return way
    route = routes_.parse(way, layers=lm.layers)
    if route.ndim != 1:
        raise ValueError(f"a way of shape {route.shape}: give one route [layer], a RandomPolicy or a router")
    lm.spread(route, Tokens.of(np.zeros((1, 2), np.int64)))  # says which choices the model does not have
    return route


def describe(way: Way) -> str:
    """A short text for tables: the route, or the shares asked for."""
    if isinstance(way, str):
        return way
    if isinstance(way, np.ndarray):
        return routes_.to_text(way)
    asked, kind = (way.mixture, "router") if isinstance(way, Router) else (way, "random")
    parts = (f"{name} {part:g}" for name, part in (("big", asked.big), ("small", asked.small), ("skip", asked.skip)))
    return f"{kind} {', '.join(part for part in parts if not part.endswith(' 0'))}"


def identity(way: Way) -> str:
    """What tells a way from every other: a router by its weights and offsets."""
    if isinstance(way, Router):
        return hashlib.sha256(b"".join(one.cpu().numpy().tobytes() for one in way.state_dict().values())).hexdigest()
    return repr(way) if isinstance(way, RandomPolicy) else describe(way)


def share_asked(way: Way) -> float:
    """The share of big that a way asks for."""
    if isinstance(way, Router):
        return way.mixture.big
    if isinstance(way, RandomPolicy):
        return way.big
    return share((routes_.from_text(way) if isinstance(way, str) else way)[None])


def shares(counts: Int64[np.ndarray, " choice"]) -> dict[str, float]:
    """How often each choice was taken, as shares: share_big, share_small, share_skip; NaN if none was."""
    total = counts.sum() or np.nan
    return {f"share_{name}": float(counts[choice] / total) for name, choice in routers.linear.NAMES.items()}


def drawn(
    way: Way, key: Sequence[int] | np.ndarray, *, tokens: int, layers: int
) -> Int8[np.ndarray, "token layer"] | None:
    """The routes of a text before it is read; None for a router, which sees it first.

    Args:
        way: as `check` gives it.
        key: token ids that the text begins with. Random choices are drawn from the policy's seed and these, so texts differ
            in them and a text has the same ones in every batch and window.
        tokens: how many are read.
        layers: of the model.
    """
    if isinstance(way, Router):
        return None
    if isinstance(way, RandomPolicy):
        seed = zlib.crc32(np.asarray(key, np.int64).tobytes(), way.seed & 0xFFFFFFFF)
        return replace(way, seed=seed).routes(1, tokens, layers)[0].numpy()
    return np.broadcast_to(routes_.parse(way, layers=layers), (tokens, layers))


@dataclass(frozen=True)
class Piece:
    """Tokens that are read together.

    Attributes:
        ids: the tokens read.
        targets: the tokens that follow the last of them: as many predictions are scored.
        routes: of each token read; None where a router chooses.
    """

    ids: Int64[np.ndarray, " token"]
    targets: Int64[np.ndarray, " scored"]
    routes: Int8[np.ndarray, "token layer"] | None

    @classmethod
    def cut(
        cls,
        ids: Sequence[int] | np.ndarray,
        routes: Int8[np.ndarray, "token layer"] | None,
        *,
        begin: int,
        end: int,
        scored: int,
        first: int = 0,
    ) -> Piece:
        """Tokens `begin` to `end` (not included) of a text, of whose predictions those from token `scored` on count.

        Args:
            ids: the whole text, with the last token, which is only predicted.
            routes: of every token but the last.
            begin, end, scored: places in the text.
            first: tokens of the text's beginning (special ones) that are read before `begin` in any case.
        """
        ids = np.asarray(ids, np.int64)
        read = np.r_[: min(first, begin), begin:end]
        return cls(ids[read], ids[scored + 1 : end + 1], None if routes is None else routes[read])


@dataclass(frozen=True)
class Reading:
    """What reading a piece gave.

    Attributes:
        loss_nats: loss of every target.
        greedy: whether the target is the likeliest token.
        routes: of every token read.
    """

    loss_nats: Float32[np.ndarray, " scored"]
    greedy: Bool[np.ndarray, " scored"]
    routes: Int8[np.ndarray, "token layer"]


@torch.no_grad()
@undisturbed
def read(lm: LanguageModel, pieces: Sequence[Piece], way: Way) -> list[Reading]:
    """Read pieces in one ordinary forward pass; shorter ones are padded at the end, which no token before it sees.

    Args:
        lm: the model.
        pieces: at least one.
        way: as `check` gives it; it routes the pieces that hold no routes.

    Raises:
        ValueError: ids outside the vocabulary, a piece longer than the context, NaN among the losses.
    """
    width = max(2, *(len(piece.ids) for piece in pieces))
    tokens = lm.check(Tokens.of(np.stack([np.pad(piece.ids, (0, width - len(piece.ids))) for piece in pieces])))
    if isinstance(way, Router):
        was_training = way.training
        way.eval().to(lm.device)
        try:
            hidden, chosen = lm.hidden_and_logits(tokens, way)
        finally:
            way.train(was_training)
        routes = way.choose(chosen).to(torch.int8).cpu().numpy()
    else:  # padding takes the last token's route: where all routes are one, nothing has to be gathered
        given = [piece.routes for piece in pieces if piece.routes is not None]
        routes = np.stack([np.pad(one, ((0, width - len(one)), (0, 0)), mode="edge") for one in given])
        hidden = lm.hidden(tokens, batch_size=len(pieces), duo_routes=torch.from_numpy(routes))
    readings = []
    for row, piece in enumerate(pieces):
        size = len(piece.ids)
        logits = lm.head.logits(hidden[row, size - len(piece.targets) : size])
        targets = torch.from_numpy(piece.targets).to(logits.device)
        losses = cross_entropy(logits, targets, reduction="none").cpu().numpy()
        if np.isnan(losses).any():
            raise ValueError("losses are NaN: the weights are damaged, or the dtype overflows; try dtype=torch.float32")
        greedy = (logits.argmax(-1) == targets).cpu().numpy()
        readings.append(Reading(losses, greedy, routes[row, :size]))
    return readings
