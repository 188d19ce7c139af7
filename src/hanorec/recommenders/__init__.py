"""Recommenders that know an item by its number alone: popularity, item co-occurrence, SASRec and GRU4Rec.

In flow user histories; out flows a scorer, which takes an `Example` and returns a score for each of its candidates,
[candidates], higher is better. `counts` scores by what users chose, `networks` by a network that `training` trains.
Titles and images are never looked at. So an item that occurs in no training history has no count, and in a network the
embedding of its random start, pushed away from every training history.
"""
