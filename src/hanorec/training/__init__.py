"""Training: what the two loops share, around their forward, loss, backward and optimizer step.

In flow the options of a script (`options`, `dpo_options`, `evaluation_options`, read by `command_line`). `inputs` makes
examples and prompts of them, `pairs` what stage 2 trains on, `schedule` the batches, `optimization` the optimizer and
its learning rate. Out flows a run's folder (`runs`, `model_card`): `loop` keeps its log (`metrics`), its best state and
its checkpoints (`checkpoints`), and stops between two steps (`signals`).
"""
