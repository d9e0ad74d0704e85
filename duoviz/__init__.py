"""duoviz: adaptive computation in language models, after Duo-LLM (arXiv 2410.10846).

Every layer of a Duo model has a big FFN, a small one, and may skip its FFN. Which it takes, token by token, is a *route*. The
package loads such models (and dense ones), finds each token's best route, trains routers that do not see the answer, and shows
the difference. Ten names to begin with:

| name | what it does |
|---|---|
| `model.load(path)` | a model: a Duo folder, an adapter, any Hugging Face decoder |
| `corpus.blocks(tokenizer, source)` | texts as tokens; `corpus.encode` for one text of yours |
| `lm.score(text, route)` | the loss of every token in one forward pass |
| `oracle.search(lm, tokens, space)` | the best route of every token |
| `oracle.by_budget(lm, tokens)` | the same for every number of big layers |
| `router.load(folder).run(lm, tokens)` | what a trained router chooses, and what it costs |
| `evaluation.routers(...)` | routers compared on one text, with controls |
| `metrics.mean_interval(losses, documents)` | a mean with its interval over documents |
| `figures.<question>(table)` | a plotly figure of a table of `frames` |
| `study.Study(model, sources)` | the whole study, with stored results and the token inspector |

What the words mean:

| word | meaning |
|---|---|
| choice | `-` skip, `S` small, `B` big |
| route | one choice a layer for one token: `"SSB-BSSS"`, layer 0 first |
| position | a prediction that is scored: the token at position t predicts the one at t + 1 |
| space | the routes that are allowed: `routes.Space(12, "SB", big=4)`; its layers may be tied into groups |
| budget | how many layers of a token are big |
| context | routes of earlier tokens: `committed` (those chosen for them), `reference:big` (all big), `uniform` (this token's) |
| objective | what a search minimises: `nll` (loss on the true next token), `expected` (under all big's prediction), `null` |
| oracle | the best route by `nll`: it has seen the answer |
| label-free | the best route by `expected`: it has not |
| null control | the oracle on next tokens that the model made up: what luck alone gains |
| regret | how much more a route loses than the best one |
| replay | one ordinary forward pass with the routes that a search chose; its losses must be those of the search |
| landscape | the losses of all routes at one position |
| reference | a route whose keys and values all candidates of a token share |

Each room explains itself: `help(duoviz.oracle)`, `help(duoviz.model)`, ... In the shell: `python -m duoviz --help`.
"""

from . import auto

auto.register()
