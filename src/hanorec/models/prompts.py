"""Items and templates → token ids.

In: an `ImageEncoder`, the catalogue's titles and an `Example`. Out: a `Prompt` and its responses as token ids.
Every title and every image is tokenized once; a prompt is a concatenation of such blocks. A title has the same
ids in the history, in the candidate list and in a response.
"""

from __future__ import annotations

from collections.abc import Sequence

from hanorec.data.examples import Example
from hanorec.models.images import ImageEncoder
from hanorec.models.packing import Prompt

HISTORY = "The user chose, oldest first:"
QUESTIONS = {  # (task, are the candidates listed?)
    ("next", True): "Which of these is next?",
    ("next", False): "Which item is next?",
    ("top3", True): "Which three of these are next, in order?",
    ("top3", False): "Which three items are next, in order?",
    ("yesno", True): "Is this one next, yes or no?",
    ("yesno", False): "Is this one next, yes or no?",
}
MASKED_TITLE = "an item"


class Prompts:
    """Writes the prompts and responses of one task.

    list_candidates: whether a prompt lists the candidates' titles, as the paper's do. mask_titles: hide the
    titles of the history, so that only its images tell what the items are.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        titles: Sequence[str],
        task: str,
        *,
        list_candidates: bool = True,
        mask_titles: bool = False,
    ):
        backbone = encoder.backbone
        self.encoder, self.task, self.listed = encoder, task, list_candidates
        self.titles = [backbone.tokens(title) for title in titles]
        self.shown_titles = [backbone.tokens(MASKED_TITLE)] * len(titles) if mask_titles else self.titles
        self.newline = backbone.tokens("\n")
        self.opening = backbone.head + backbone.tokens(HISTORY)
        self.question = self.newline + backbone.tokens(QUESTIONS[task, list_candidates])
        self.middle, self.end = backbone.middle, backbone.tail
        self.answers = {answer: backbone.tokens(answer) + self.end for answer in ("Yes", "No")}

    def prompt(self, example: Example, answered: Sequence[int] = ()) -> Prompt:
        """The prompt of an example: history, question, candidates. `answered` are items the response has
        named already (top-3 is ranked one place after the other)."""
        ids, shown = list(self.opening), list(example.history)
        for item in example.history:
            ids += self.newline + self.encoder.block(item) + self.shown_titles[item]
        ids += self.question
        if self.task == "yesno":
            (asked,) = example.candidates
            shown.append(asked)
            ids += self.newline + self.encoder.block(asked) + self.titles[asked]
        elif self.listed:
            for item in example.candidates:
                ids += self.newline + self.titles[item]
        ids += self.middle
        for item in answered:
            ids += self.titles[item] + self.newline
        return Prompt(ids, [item for item in shown if self.encoder.block(item)])

    def length(self, example: Example, responses: Sequence[Sequence[int]]) -> int:
        """Tokens of the prompt and its responses, as many as a forward reads."""
        copies = max(1, len(responses)) if self.encoder.backbone.layout.plain else 1
        return copies * len(self.prompt(example).ids) + sum(map(len, responses))

    def name(self, items: Sequence[int], *, last: bool = True) -> list[int]:
        """The response that names `items`, a line each; `last` closes it."""
        ids = list(self.titles[items[0]])
        for item in items[1:]:
            ids += self.newline + self.titles[item]
        return ids + (self.end if last else self.newline)

    def chosen(self, example: Example) -> list[int]:
        if self.task == "yesno":
            return self.answers["Yes" if example.candidates[0] in example.targets else "No"]
        return self.name(example.targets)

    def rejected(self, example: Example) -> list[list[int]]:
        if self.task == "yesno":
            return [self.answers["No" if example.candidates[0] in example.targets else "Yes"]]
        return [self.name(items) for items in example.rejected]
