"""HaNoRec (arXiv 2511.18740), a reference implementation: a vision-language model as a sequential recommender.

`losses` is the paper's mathematics, in PyTorch alone, and `hardness` goes from item embeddings to λ of every pair.
`data` makes examples of files, `models` makes log-probabilities of examples, `training` has what both loops share, and
`evaluation` makes measures of log-probabilities. `recommenders` know items by number alone, and `related` has what
other papers do on the same inputs. The loops are the scripts `train_sft.py` and `train_dpo.py`.
"""

__version__ = "1.0.0"
