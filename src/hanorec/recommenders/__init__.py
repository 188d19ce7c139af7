"""Recommenders that know items by their number alone: popularity, item co-occurrence, SASRec and GRU4Rec.

In flow users' rows; out flow scores of candidates. They are baselines of an evaluation.
"""
