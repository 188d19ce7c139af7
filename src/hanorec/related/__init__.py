"""What others do on the same inputs, for comparison; nothing of it is part of the paper.

In flow the tables of log-probabilities, the neighbours and the examples that HaNoRec takes, too. Out flow other
objectives (`objectives`, over pairs, groups or batches of responses), refined neighbourhoods (`neighbourhoods`),
negatives that the reference itself would name (`policy_negatives`), and the examples of the authors' release
(`release`).
"""
