"""HaNoRec (arXiv 2511.18740), a reference implementation: a vision-language model as a sequential recommender.

`losses` is the paper's mathematics, in PyTorch alone. Around it: `data` (files → items → examples), `models`
(examples → token ids → log-probabilities), `hardness` (embeddings → λ of every pair), `training` (what both loops
share) and `evaluation` (log-probabilities → measures). The loops are the scripts `train_sft.py` and `train_dpo.py`.
"""

__version__ = "0.2.0"
