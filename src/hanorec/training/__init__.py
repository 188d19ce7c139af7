"""Training: what the two loops share, around their forward, loss, backward and optimizer step.

In flow the options (`options`), out flows a run's folder (`runs`, `model_card`). `loop` decides which batch is next and
keeps log, best state and checkpoints (`checkpoints`); `optimization` has the learning rate of a step and the optimizer;
`pairs` is what DPO trains on.
"""
