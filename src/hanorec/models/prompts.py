"""Items and templates → token ids.

In: a `Backbone` (its tokenizer and chat format), the catalogue's images and titles, and an `Example`. Out: a `Prompt`
and its responses as token ids. Every title and every image is tokenized once; a prompt is a concatenation of such
blocks. A title has the same ids in the history, in the candidate list and in a response.
"""

from __future__ import annotations

from collections.abc import Sequence

from hanorec import distributed
from hanorec.data.examples import Example
from hanorec.models.backbone import Backbone
from hanorec.models.images import CatalogImages
from hanorec.models.packing import Branch, Layout, Prompt

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

    list_candidates: whether a prompt lists the candidates' titles, as the paper's do. mask_titles: hide the titles of
    the history, so that only its images tell what the items are.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: CatalogImages,
        titles: Sequence[str],
        task: str,
        *,
        list_candidates: bool = True,
        mask_titles: bool = False,
    ):
        self.images, self.task, self.list_candidates = images, task, list_candidates
        self.packed = not backbone.layout.plain  # whether responses share one copy of their prompt
        self.titles = [backbone.title_tokens(title) for title in titles]
        self.history_titles = [backbone.tokens(MASKED_TITLE)] * len(titles) if mask_titles else self.titles
        self.newline = backbone.tokens("\n")
        self.opening = backbone.prefix + backbone.tokens(HISTORY)
        self.question = self.newline + backbone.tokens(QUESTIONS[task, list_candidates])
        self.separator, self.suffix = backbone.separator, backbone.suffix
        self.answers = {answer: backbone.tokens(answer) + self.suffix for answer in ("Yes", "No")}

    def prompt(self, example: Example, answered: Sequence[int] = ()) -> Prompt:
        """The prompt x of an example: history, question, candidates. `answered` are items that the response has named
        already (a top-3 list is ranked one place after the other)."""
        ids, question = self._history(example.history)[-1], self._question(example)
        answers = [id for item in answered for id in self.titles[item] + self.newline]
        return Prompt(ids + question.ids + answers, self._shown(example.history) + question.images)

    def nested(self, examples: Sequence[Example]) -> Prompt:
        """The prompts of examples whose histories begin alike, as branches of one trunk, the longest history; that of a
        single example is `prompt`."""
        if len(examples) == 1:
            return self.prompt(examples[0])
        longest = max((example.history for example in examples), key=len)
        trunk = self._history(longest)
        branches = []
        for example in examples:
            question = self._question(example)
            branches.append(Branch(len(trunk[len(example.history)]), question.ids, question.images))
        return Prompt(trunk[-1], self._shown(longest), tuple(branches))

    def _history(self, items: Sequence[int]) -> list[list[int]]:
        """The first part of a prompt with none of the items, with the first, with the first two, …"""
        parts = [self.opening]
        for item in items:
            parts.append(parts[-1] + self.newline + self.images.placeholders(item) + self.history_titles[item])
        return parts

    def _question(self, example: Example) -> Prompt:
        """The part of a prompt behind its history: the question and the candidates."""
        ids, shown = list(self.question), []
        if self.task == "yesno":
            (candidate,) = example.candidates
            shown = self._shown([candidate])
            ids += self.newline + self.images.placeholders(candidate) + self.titles[candidate]
        elif self.list_candidates:
            for item in example.candidates:
                ids += self.newline + self.titles[item]
        return Prompt(ids + self.separator, shown)

    def _shown(self, items: Sequence[int]) -> list[int]:
        """Those of the items that have an image."""
        return [item for item in items if self.images.placeholders(item)]

    def name(self, items: Sequence[int], *, last: bool = True) -> list[int]:
        """The response that names `items`, one a line; `last` closes it."""
        ids = list(self.titles[items[0]])
        for item in items[1:]:
            ids += self.newline + self.titles[item]
        return ids + (self.suffix if last else self.newline)

    def chosen(self, example: Example) -> list[int]:
        """The chosen response y_w."""
        if self.task == "yesno":
            return self.answers["Yes" if example.candidates[0] in example.targets else "No"]
        return self.name(example.targets)

    def rejected(self, example: Example) -> list[list[int]]:
        """The rejected responses y_l."""
        if self.task == "yesno":
            return [self.answers["No" if example.candidates[0] in example.targets else "Yes"]]
        return [self.name(items) for items in example.rejected]

    def length(self, prompt: Prompt, responses: Sequence[Sequence[int]]) -> int:
        """Tokens that a forward reads for a prompt and its responses."""
        copies = 1 if self.packed else max(1, len(responses))
        return copies * prompt.length + sum(map(len, responses))


def windows_for(layout: Layout, windows: str) -> str:
    """The windows that a model family can read: nested ones are branches of one trunk, for which responses have to be
    packed and a prompt must not see its later tokens. Else every window is read alone, and a line says so."""
    reason = layout.plain or ("a prompt sees all of itself" if layout.visibility == "prefix" else "")
    if windows != "nested" or not reason:
        return windows
    if distributed.is_main_process():
        print(f"--windows nested: not with this backbone, since {reason}; every window is read alone")
    return "every"
