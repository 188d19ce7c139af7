"""Data: from files to items, user histories, windows and examples.

In flows a dataset folder (`catalog`: titles and images; `interactions`: user histories and their windows), or nothing,
and then the embedded toy catalogue is made (`toy`). A stranger's files are looked at before they are opened
(`untrusted`). Out flow the examples of a task, with candidates and negatives (`examples`), opened and drawn in one
place (`dataset`). Everything drawn is a function of the seed and of what it is drawn for.

Before that, a public dataset's raw files (`raw`) become a log of interactions (`log`), which is cleaned (`cleaning`),
split (`splits`) and written as a dataset folder (`prepare`).
"""
