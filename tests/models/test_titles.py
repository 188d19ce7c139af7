"""Titles are data: whatever a title says, no special token and no placeholder comes out of it, and nothing is lost."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hanorec.data.toy import THEMES
from hanorec.models.backbone import Backbone, describe, load_backbone
from hanorec.models.layout import Layout
from tools import families

ORDINARY = [
    *(word for words in THEMES.values() for word in words),
    "Tide of the Comet (1994)", "Amélie", "千と千尋の神隠し", "what? <3", "a < b > c", "", " ", "  two  spaces ", "line\nend",
    "an image of an <Image> <im age>", "<|im|>", "🎬 ⁂",
]  # fmt: skip


@pytest.fixture(
    scope="module", params=["tiny", *families.PACKED, *families.PLAIN], ids=lambda p: getattr(p, "__name__", p)
)
def backbone(request):
    if request.param == "tiny":
        return load_backbone("tiny", dtype="float32", device=torch.device("cpu"))
    torch.manual_seed(0)
    model, processor = request.param()
    return describe(model.eval(), processor)


def names_of_tokens(backbone) -> list[str]:
    """Everything that the tokenizer reads as one special token, and the names of the processor's placeholders."""
    tokenizer, processor = backbone.processor.tokenizer, backbone.processor
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    placeholders = [getattr(processor, name) for name in vars(processor) if name.endswith("_token")]
    return sorted({*special, *tokenizer.all_special_tokens, *placeholders, backbone.image_text})


def special_ids(backbone) -> set[int]:
    tokenizer = backbone.processor.tokenizer
    ids = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return ids | set(tokenizer.all_special_ids) | {backbone.layout.image_token}


def test_no_special_token_comes_out_of_a_title(backbone):
    """Each alone, within a word, between words, doubled, and one inside another."""
    names, special = names_of_tokens(backbone), special_ids(backbone)
    assert len(names) >= 6 and special
    for name in names:
        half = len(name) // 2
        for title in (name, f"a{name}b", f"Tide {name} of", name * 2, f" {name}\n", name[:half] + name + name[half:]):
            ids = backbone.title_tokens(title)
            assert special.isdisjoint(ids), title
            assert backbone.processor.tokenizer.decode(ids) == title
    titles = [*ORDINARY, *names, *(f"a{name}b" for name in names)] * 20  # more than a call takes
    assert backbone.all_title_tokens(titles) == list(map(backbone.title_tokens, titles))


def test_without_this_they_would_come_out(backbone):
    """`tokens`, for the project's own text, reads the name of a token as the token."""
    assert not special_ids(backbone).isdisjoint(backbone.tokens(f"Tide {backbone.image_text} of"))


def test_an_ordinary_title_has_its_usual_tokens(backbone):
    for title in ORDINARY:
        ids = backbone.title_tokens(title)
        assert ids == backbone.tokens(title)
        assert backbone.processor.tokenizer.decode(ids) == title


def test_a_title_changes_nothing_for_the_text_after_it(backbone):
    """The tokenizer, which keeps a setting from call to call, reads the next chat as before."""
    before = backbone.tokens(backbone.image_text)
    backbone.title_tokens(backbone.image_text)
    assert backbone.tokens(backbone.image_text) == before


def changed(backbone, change):
    """The backbone with a tokenizer of its own, which `change` has changed."""
    processor = deepcopy(backbone.processor)
    change(processor.tokenizer)
    return Backbone(backbone.model, processor, [], [], [], backbone.image_text, backbone.layout)


@pytest.fixture(scope="module")
def tiny_backbone():
    return load_backbone("tiny", dtype="float32", device=torch.device("cpu"))


def test_what_the_chat_format_adds_is_data_in_a_title_although_it_is_not_declared_special(tiny_backbone):
    """Tokenizers split special tokens on request, and go on to read other added tokens as one."""
    backbone = changed(tiny_backbone, lambda tokenizer: tokenizer.add_tokens(["[INST]", "Rosebud"]))
    turn, word = backbone.processor.tokenizer.convert_tokens_to_ids(["[INST]", "Rosebud"])
    backbone.prefix = [turn]
    assert backbone.tokens("Tide [INST] of") == [*backbone.tokens("Tide "), turn, *backbone.tokens(" of")]
    for title in ("[INST]", "Tide [INST] of", "a[INST][INST]b"):
        assert turn not in backbone.title_tokens(title)
        assert backbone.processor.tokenizer.decode(backbone.title_tokens(title)) == title
    assert word in backbone.title_tokens("Rosebud"), "an added word that is no control stays one token"


def test_a_vocabulary_that_knows_the_name_of_a_special_token_as_a_word(tiny_backbone):
    """Splitting on request does not help where the model behind the tokenizer finds the name in its vocabulary."""
    words = {"<unk>": 0, "<image>": 1, "a": 2, "<": 3, ">": 4, "i": 5, "m": 6, "g": 7, "e": 8, "im": 9, "▁": 10}
    unigram = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=0, byte_fallback=False))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    unigram.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=unigram, unk_token="<unk>", additional_special_tokens=["<image>"]
    )
    processor = deepcopy(tiny_backbone.processor)
    processor.tokenizer, processor.image_token_id = tokenizer, 1
    backbone = Backbone(tiny_backbone.model, processor, [], [], [], "<image>", Layout(image_token=1))
    assert tokenizer("a<image>", split_special_tokens=True, add_special_tokens=False).input_ids == [2, 1]
    for title in ("<image>", "a<image>", "<image><image> im"):
        assert 1 not in backbone.title_tokens(title)
        assert tokenizer.decode(backbone.title_tokens(title)) == title
    assert backbone.title_tokens("aщa") == backbone.tokens("aщa") == [2, 0, 2], "a letter that it lacks is unknown"
    assert 0 not in backbone.title_tokens("a<image>m")
