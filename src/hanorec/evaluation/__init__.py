"""Evaluation: from log-probabilities to measures, for models and for what they are compared with.

In flow examples and a model; out flow its answers (`ranking`, and `catalog_ranking` for the whole catalogue), one
number a user and metric (`measures`) with ties counted exactly (`metrics`), and tables (`report`). `baselines` answer
the same examples, and `oracles` know what is possible on the toy catalogue.
"""
