"""Data: from files to items, users' rows, windows and examples.

In flows a dataset folder (`catalog`: titles and images; `interactions`: users' rows and their windows), or nothing, and
then the embedded toy catalogue is made (`toy`). Out flow the examples of a task, with candidates and negatives
(`examples`), opened and drawn in one place (`dataset`). Everything drawn is a function of the seed and of what it is
drawn for.
"""
