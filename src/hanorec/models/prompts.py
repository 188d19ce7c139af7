"""Items and templates → token ids.

In: a `Backbone` (its tokenizer and chat format), the catalogue's images and titles, and an `Example`. Out: a `Prompt`
and its responses as token ids. Every title and every image is tokenized once; a prompt is a concatenation of such
blocks. A title has the same ids in the history, in the candidate list and in a response.
"""

from __future__ import annotations

from collections.abc import Sequence

from hanorec import distributed
from hanorec.data.examples import TARGETS, Example
from hanorec.errors import DataError
from hanorec.models.backbone import Backbone
from hanorec.models.images import CatalogImages
from hanorec.models.layout import Layout
from hanorec.models.packing import Branch, Prompt

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
IMAGE_VIEWS = ("image", "both")  # the views of an item that show its image
RELEASE = {  # protocol release: what stands before the history, and before the titles after it
    "top3": (
        "Recommend what suits someone with this history. Answer with a title and no comment.\nChosen so far:",
        "\nWhat may be chosen next? The candidates are:",
    ),
    "yesno": ("Chosen so far:", "\nNot chosen, and perhaps not liked:"),
}
RELEASE_YESNO = "\nWill this one be liked?"


class Prompts:
    """Writes the prompts and responses of one task.

    list_candidates: whether a prompt lists the candidates' titles, as the paper's do. protocol: "standard", or
    "release" for prompts that are built as those of the authors' release (`data/release.py`). item_view: what stands
    before an item's title, its "image", its "description", "both" or nothing ("title"); an item without one of them
    shows what it has. descriptions: of every item, empty for none; needed where they are shown. mask_titles: hide the
    titles of the history, so that only what stands before them tells what the items are. items: their ids, which errors
    name (default: their numbers).

    A prompt that is longer with its longest response than the model's context is an error (DataError) where it is made,
    before anything is trained or ranked.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: CatalogImages,
        titles: Sequence[str],
        task: str,
        *,
        list_candidates: bool = True,
        protocol: str = "standard",
        item_view: str = "image",
        descriptions: Sequence[str] = (),
        mask_titles: bool = False,
        items: Sequence[str] = (),
    ):
        self.items, self.context = items or range(len(titles)), backbone.context
        self.images, self.task, self.list_candidates, self.protocol = images, task, list_candidates, protocol
        self.packed = not backbone.layout.why_unpacked  # whether responses share one copy of their prompt
        release = protocol == "release"
        opening, question = RELEASE[task] if release else (HISTORY, QUESTIONS[task, list_candidates])
        quote = '"' if release else ""
        self.titles = backbone.all_title_tokens([f"{quote}{title}{quote}" for title in titles])
        self.shows_images = item_view in IMAGE_VIEWS
        described = descriptions if item_view in ("description", "both") else ("",) * len(titles)
        self.descriptions = backbone.all_title_tokens([f"{text}: " if text else "" for text in described])
        masked = backbone.tokens(f"{quote}{MASKED_TITLE}{quote}")
        self.history_titles = [masked] * len(titles) if mask_titles else self.titles
        self.newline = backbone.tokens("\n")
        self.opening = backbone.prefix + backbone.tokens(opening)
        self.question = self.newline + backbone.tokens(question)
        self.release_yesno = self.newline + backbone.tokens(RELEASE_YESNO) + self.newline
        # The release puts a list of quoted titles into quotation marks once more: the chosen one, not the rejected one.
        self.around = backbone.tokens(quote) if release and task == "top3" else []
        self.separator, self.suffix = backbone.separator, backbone.suffix
        # what millions of prompts and responses share
        self.question_alone = Prompt(self.question + self.separator, [])
        self.named = [self.around + title + self.around + self.suffix for title in self.titles]
        self.answers = {answer: backbone.tokens(answer) + self.suffix for answer in ("Yes", "No")}
        longest_line = max(map(len, [*self.named, *self.answers.values()])) + len(self.newline)
        self.longest_response = max(TARGETS.values()) * longest_line  # or more: what no prompt needs to be checked for

    def prompt(self, example: Example) -> Prompt:
        """The prompt x of an example: history, question, candidates."""
        (ids, _), question = self._history(example), self._question(example)
        images = self._shown(example.shown or example.history) + question.image_items
        self._check_length(example, len(ids) + len(question.ids))
        return Prompt(ids + question.ids, images)

    def nested(self, examples: Sequence[Example], *, name_history: bool = False) -> Prompt:
        """The prompts of examples whose histories begin alike, as branches of one trunk, the longest history; that of a
        single example is `prompt`. name_history: then one more branch behind each image of the trunk, which asks for
        the title that belongs to it."""
        if len(examples) == 1 and not name_history:
            return self.prompt(examples[0])
        longest = max(examples, key=lambda example: len(example.history))
        trunk, ends = self._history(longest)
        branches = []
        for example in examples:
            question = self._question(example)
            end = ends[len(example.history)]
            self._check_length(example, end + len(question.ids))
            branches.append(Branch(end, question.ids, question.image_items))
        if name_history:
            for before, item in zip(ends, longest.history):
                if self._shown([item]):
                    branches.append(Branch(before + len(self.newline + self.images.placeholders(item)), []))
        return Prompt(trunk, self._shown(longest.history), tuple(branches))

    def answers_of(self, examples: Sequence[Example], *, name_history: bool = False) -> list[list[int]]:
        """The chosen response to each prompt of `nested`; with name_history the titles of the trunk's items, too."""
        longest = max(examples, key=lambda example: len(example.history))
        named = self._shown(longest.history) if name_history else []
        return [*map(self.chosen, examples), *(self.titles[item] + self.suffix for item in named)]

    def _history(self, example: Example) -> tuple[list[int], list[int]]:
        """The first part of a prompt, and its tokens with none of the history's items, with the first, …"""
        ids, ends = list(self.opening), [len(self.opening)]
        for item, image in zip(example.history, example.shown or example.history):
            ids += self.newline + self._item_view(item, image) + self.history_titles[item]
            ends.append(len(ids))
        return ids, ends

    def _question(self, example: Example) -> Prompt:
        """The part of a prompt behind its history: the question and the candidates."""
        if self.task != "yesno" and not self.list_candidates:
            return self.question_alone
        ids, shown = list(self.question), []
        if self.task == "yesno" and self.protocol == "release":
            for item in example.unchosen:
                ids += self.newline + self.titles[item]
            ids += self.release_yesno + self.titles[example.candidates[0]]
        elif self.task == "yesno":
            (candidate,) = example.candidates
            shown = self._shown([candidate])
            ids += self.newline + self._item_view(candidate, candidate) + self.titles[candidate]
        else:
            for item in example.candidates:
                ids += self.newline + self.titles[item]
        return Prompt(ids + self.separator, shown)

    def _shown(self, items: Sequence[int]) -> list[int]:
        """Those of the items whose image a prompt shows."""
        return [item for item in items if self.shows_images and self.images.placeholders(item)]

    def _item_view(self, item: int, image: int) -> list[int]:
        """What stands before an item's title: the image of `image`, which is the item itself or stands for it, and the
        item's description, as far as the view shows them."""
        return (self.images.placeholders(image) if self.shows_images else []) + self.descriptions[item]

    def name(self, items: Sequence[int], *, last: bool = True) -> list[int]:
        """The response that names `items`, one a line; or its beginning, if the last of them is not the `last` one."""
        if len(items) == 1 and last:
            return self.named[items[0]]
        return self.around + self._lines(items) + (self.around + self.suffix if last else self.newline)

    def _lines(self, items: Sequence[int]) -> list[int]:
        ids = list(self.titles[items[0]])
        for item in items[1:]:
            ids += self.newline + self.titles[item]
        return ids

    def chosen(self, example: Example) -> list[int]:
        """The chosen response y_w."""
        if self.task == "yesno":
            return self.answers["Yes" if example.candidates[0] in example.targets else "No"]
        return self.name(example.targets)

    def rejected(self, example: Example) -> list[list[int]]:
        """The rejected responses y_l."""
        if self.task == "yesno":
            return [self.answers["No" if example.candidates[0] in example.targets else "Yes"]]
        return [self._lines(items) + self.suffix for items in example.rejected]

    def check(self, examples: Sequence[Example]) -> None:
        """Errors: DataError where one of these examples has a prompt that is longer than the model's context."""
        for example in examples:
            self.prompt(example)

    def _check_length(self, example: Example, prompt: int) -> None:
        """Errors: DataError where a prompt of so many tokens and its longest response do not fit the context."""
        if self.context is None or prompt + self.longest_response <= self.context:
            return
        responses = (example.candidates, example.targets, *example.rejected)
        named = sorted({item for items in responses for item in items}, key=lambda item: len(self.titles[item]))
        answer = self.answers["Yes"] if self.task == "yesno" else self.name(named[-len(example.targets) :])
        tokens = prompt + len(answer) - 1  # a response's last token is not read
        if tokens <= self.context:
            return
        longest = max(*example.history, *example.unchosen, *named, key=lambda item: len(self.titles[item]))
        raise DataError(
            f"user {example.user}: a prompt and its response have {tokens:,} tokens, and the model reads at most "
            f"{self.context:,}. The longest title in it is that of item {self.items[longest]}, "
            f"{len(self.titles[longest]):,} tokens. Take fewer items in a history, or titles of fewer words: the "
            "converters in data/ cut them (title-words)"
        )

    def length(self, prompt: Prompt, responses: Sequence[Sequence[int]]) -> int:
        """Tokens that a forward reads for a prompt and its responses."""
        copies = 1 if self.packed else max(1, len(responses))
        return copies * prompt.length + sum(map(len, responses))


def unpackable(layout: Layout) -> str:
    """Why a model family cannot read prompts as branches of one trunk, for which responses have to be packed and a
    prompt must not see its later tokens; empty where it can."""
    return layout.why_unpacked or ("a prompt sees all of itself" if layout.visibility == "prefix" else "")


def windows_for(layout: Layout, windows: str) -> str:
    """The windows that a model family can read; where it cannot read nested ones, every window is read alone, and a
    line says so."""
    reason = unpackable(layout)
    if windows != "nested" or not reason:
        return windows
    if distributed.is_main_process():
        print(f"nested windows: not with this backbone, since {reason}; every window is read alone")
    return "every"


def check_name_history(layout: Layout, protocol: str, item_view: str) -> None:
    """Errors: DataError where the items of a history cannot be named from their images."""
    if item_view not in IMAGE_VIEWS:
        raise DataError(f"a history can be named from its images alone, and prompts of the view {item_view} show none")
    if protocol != "standard":
        raise DataError(f"a history cannot be named: the prompts of the protocol {protocol} have images of other items")
    if reason := unpackable(layout):
        raise DataError(f"a history cannot be named with this backbone, since {reason}")
