"""tools/fit_vocabulary.py: what the tiny backbone with another vocabulary keeps, and where new tokens start."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, SmolVLMForConditionalGeneration

from hanorec.models import tiny
from hanorec.models.backbone import load_backbone
from tools.fit_vocabulary import save_with_vocabulary

WORD = "Zanzibar"
TITLE = f"The {WORD}, part two (1984)"
# Letters that a vocabulary of bytes writes other bytes with; letters that are tokens already, also of the chat format.
SHORT = ["é", "Amélie", "Åland", "¡", "ðł", "Ġthe", "天", "e", "User", "☃ 2", "lié", "Wall-E"]
TEXTS = [f"{WORD} {WORD} (1984)", "Which item is next?"] * 50


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "fitted"
    save_with_vocabulary(folder, TEXTS, 400, whole=[TITLE, *SHORT, TITLE])
    return load_backbone(str(folder))


@pytest.mark.parametrize("text", [WORD, TITLE])
def test_a_word_of_the_texts_and_a_whole_title_are_one_token_that_starts_at_the_mean_of_its_old_pieces(fitted, text):
    old = AutoTokenizer.from_pretrained(tiny.PRETRAINED)
    (token,) = fitted.tokens(text)
    assert fitted.title_tokens(text) == [token]
    pieces = old(text).input_ids
    assert len(pieces) > 1
    table = SmolVLMForConditionalGeneration.from_pretrained(tiny.PRETRAINED).get_input_embeddings().weight
    assert torch.equal(fitted.model.get_input_embeddings().weight[token], table[pieces].mean(dim=0).float())


@pytest.mark.parametrize("text", SHORT)
def test_a_short_title_is_a_token_of_its_own_that_reads_as_it_was_written(fitted, text):
    (token,) = fitted.title_tokens(text)
    assert fitted.processor.tokenizer.decode([token]) == text
    assert len({fitted.title_tokens(title)[0] for title in SHORT}) == len(SHORT)


def test_a_token_that_was_known_and_all_layers_stay_as_they_were(fitted):
    before = load_backbone("tiny")
    shared = set(fitted.processor.tokenizer.get_vocab()) & set(before.processor.tokenizer.get_vocab())
    assert set(tiny.SPECIAL_TOKENS) < shared
    tables = [backbone.model.get_input_embeddings().weight for backbone in (fitted, before)]
    for token in shared:
        new, old = (b.processor.tokenizer.convert_tokens_to_ids(token) for b in (fitted, before))
        assert torch.equal(tables[0][new], tables[1][old]), token
    weights, as_before = fitted.model.state_dict(), before.model.state_dict()
    assert weights.keys() == as_before.keys()
    layers = [name for name in weights if "embed_tokens" not in name and "lm_head" not in name]
    assert len(layers) > 50 and all(torch.equal(weights[name], as_before[name]) for name in layers)
