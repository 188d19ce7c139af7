#!/usr/bin/env python3
"""Makes a tiny backbone whose vocabulary has a dataset's words, in half a minute.

The shipped vocabulary was learnt from the toy catalogue's words and from English prose. A real title falls into a dozen
of its pieces. This script learns a vocabulary from the same texts and the dataset's titles, so that most words of a
title are one token. Prompts get shorter, and fewer tokens tell one item from another. With --whole-titles each title is
one token, and so is each question of the prompts. A whole title starts at the mean of its words. What it means beyond
them is learnt from the rows that it occurs in, so it suits no catalogue with items that training never sees.
Only titles are read, no user's row.

    python tools/fit_vocabulary.py --data DIR --output runs/tiny-for-my-data
    python train_sft.py --data DIR --backbone runs/tiny-for-my-data
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from pretrain_tiny import vocabulary_texts
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, SmolVLMForConditionalGeneration

from hanorec.data.catalog import read_catalog
from hanorec.errors import DataError, exit_on_user_error
from hanorec.files import check_new_folder
from hanorec.models.prompts import HISTORY, QUESTIONS
from hanorec.models.tiny import PRETRAINED, SPECIAL_TOKENS, build_model, build_processor, build_tokenizer
from hanorec.training.bounds import BoundedOption

PHRASES = [HISTORY, *QUESTIONS.values(), "\nAssistant:"]  # of every prompt
COPIES = 400  # of the titles beside the prose, so that their words become tokens first
MOST_TITLES = 600_000  # with their copies; those of a large catalogue outweigh the prose with fewer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="dataset folder, see docs/data.md")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the new checkpoint")
    parser.add_argument(
        "--size", type=int, default=6144, help="most tokens of the vocabulary (default 6144)",
        action=BoundedOption, least=256 + len(SPECIAL_TOKENS),
    )  # fmt: skip
    parser.add_argument("--whole-titles", action="store_true", help="make each title and question one token, too")
    args = parser.parse_args()
    if args.output.exists():
        raise DataError(f"{args.output}: exists already")
    check_new_folder(args.output)
    titles = list(read_catalog(args.data).titles)
    before = AutoTokenizer.from_pretrained(PRETRAINED)
    whole = [*titles, *PHRASES] if args.whole_titles else ()
    copies = max(1, min(COPIES, MOST_TITLES // len(titles)))
    now = save_with_vocabulary(args.output, vocabulary_texts() + titles * copies, args.size, whole)
    old, new = (sum(map(len, tokenizer(titles).input_ids)) / len(titles) for tokenizer in (before, now))
    print(f"made {args.output}: {len(now)} tokens; a title has {old:.1f} tokens before and {new:.1f} now")


def save_with_vocabulary(
    folder: str | Path, texts: Iterable[str], vocabulary_size: int, whole: Iterable[str] = ()
) -> PreTrainedTokenizerFast:
    """Save the pretrained model in `folder` with a vocabulary that is learnt from `texts`; returns its tokenizer.

    whole: texts that become one token each, beside the `vocabulary_size` others; items' titles, for example, which are
    then items' numbers in effect ("independent indexing", Hua et al., arXiv 2305.06569). A token that is new starts at
    the mean of the embeddings of its pieces in the old vocabulary (fast vocabulary transfer, Gee et al., arXiv
    2402.09977). Everything else stays as it was pretrained.
    """
    old, new = AutoTokenizer.from_pretrained(PRETRAINED), build_tokenizer(texts, vocabulary_size)
    add_whole(new, whole)
    known = old.get_vocab()
    before = SmolVLMForConditionalGeneration.from_pretrained(PRETRAINED)
    table = before.get_input_embeddings().weight.detach()
    model = build_model(new)
    layers = {name: weight for name, weight in before.state_dict().items() if weight.shape != table.shape}
    model.load_state_dict(layers, strict=False)  # all but the embeddings, which the output head shares
    for token, number in new.get_vocab().items():
        pieces = [known[token]] if token in known else old(new.decode([number])).input_ids
        model.get_input_embeddings().weight.data[number] = table[pieces].mean(dim=0)
    build_processor(new).save_pretrained(folder)
    model.save_pretrained(folder)
    return new


def add_whole(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> None:
    """Give each of the texts a token of its own, where it has none.

    The pieces of one word are merged, as if the vocabulary had learnt it; other texts are added. A word cannot be
    added: a vocabulary of bytes writes the byte 0xE9 as "é", so a token "Amélie" would be read as such bytes, and a
    word of the chat format that is added counts as a part of it. A text of these letters that is no one word to the
    tokenizer, such as "Ã©", stays in pieces.
    """
    core, letters = tokenizer.backend_tokenizer, frozenset(pre_tokenizers.ByteLevel.alphabet())
    texts = list(dict.fromkeys(texts))
    words = [text for text in texts if len(core.pre_tokenizer.pre_tokenize_str(text)) == 1]
    while in_pieces := [pieces for pieces in map(tokenizer.tokenize, words) if len(pieces) > 1]:
        state = json.loads(core.to_str())
        for piece, *others in in_pieces:  # another word's merges may come first: the next round mends that
            for other in others:
                if [piece, other] not in state["model"]["merges"]:
                    state["model"]["merges"].append([piece, other])
                piece += other
                state["model"]["vocab"].setdefault(piece, len(state["model"]["vocab"]))
        core.model = Tokenizer.from_str(json.dumps(state)).model
    others = [text for text in texts if text not in words]
    tokenizer.add_tokens([text for text in others if text.isascii() or not letters.issuperset(text)])


if __name__ == "__main__":
    with exit_on_user_error():
        main()
