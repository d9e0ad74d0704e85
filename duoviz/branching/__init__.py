"""Many routes of one token over one shared prefix: the trie of routes and its attention.

Routes that begin alike share their beginning, so a token's routes are expanded as a trie, layer by layer. A node runs its
family's own decoder layer once, with the FFN left out; its children add the big FFN, the small one or nothing. All branches
attend to one copy of the earlier tokens' keys and values and to their own key and value, merged by log-sum-exp: branches
are query rows, never an expanded batch. The attention is registered with transformers, so the attention modules stay as
they are.

Paper: arXiv 2410.10846, section 2, stage 2 (which enumerates routes one by one).
"""

from .attention import Lockstep, Scattered, attend, over_prefix, portable_over_prefix
from .texts import Branches, uniform_leaves
from .trie import Trie, Work

__all__ = [
    "Branches",
    "Lockstep",
    "Scattered",
    "Trie",
    "Work",
    "attend",
    "over_prefix",
    "portable_over_prefix",
    "uniform_leaves",
]
