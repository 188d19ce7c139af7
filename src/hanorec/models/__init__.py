"""Models: from examples to token ids to log-probabilities.

In flow a checkpoint (`backbone`), the catalogue's images and titles, and examples; out flow prompts as token ids
(`prompts`, `images`) and the log-probability of every response (`packing`, `scoring`), differentiable, for whatever
trains on top (`lora`). `discovery` finds out how a family places its tokens, its `layout`; `tiny` is the default
backbone. Models are arguments of the calls that use them: nothing in this package holds one but `Backbone` itself.
"""
