"""The chat format of a checkpoint, found by writing a chat and looking at what stands around its parts.

In: a processor. Out: the token ids around a question and its answer, and what a text says where an image stands.
"""

from __future__ import annotations

from typing import Any

QUESTION, ANSWER = "⁂Q⁂", "⁂A⁂"  # what no template writes


def chat_format(processor: Any) -> tuple[list[int], list[int], list[int]]:
    """Prefix, separator and suffix of a chat as token ids: what the template writes before a question, between it and
    its answer, and after the answer.

    The prefix starts with the token that begins a text, if there is one. Without a template a line's end separates
    question and answer, and the answer ends with the token that ends a text, if there is one.
    """
    tokenizer = processor.tokenizer
    prefix, separator, suffix = "", "\n", ""
    if processor.chat_template is not None:
        chat = _write(processor, ("user", [_text(QUESTION)]), ("assistant", [_text(ANSWER)]))
        prefix, rest = chat.split(QUESTION)
        separator, suffix = rest.split(ANSWER)
    before, between, after = (
        tokenizer(part, add_special_tokens=False).input_ids for part in (prefix, separator, suffix.strip())
    )
    begin = tokenizer.bos_token_id
    if begin is not None and begin in tokenizer("a").input_ids and before[:1] != [begin]:
        before = [begin, *before]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return before, between, after or end


def image_text(processor: Any) -> str:
    """What the chat template writes for an image."""
    if processor.chat_template is None:
        return processor.tokenizer.convert_ids_to_tokens(processor.image_token_id)
    chat = _write(processor, ("user", [_text(QUESTION), {"type": "image"}, _text(ANSWER)]))
    return chat.split(QUESTION)[1].split(ANSWER)[0]


def _write(processor: Any, *messages: tuple[str, list[dict]]) -> str:
    return processor.apply_chat_template([{"role": role, "content": content} for role, content in messages])


def _text(text: str) -> dict:
    return {"type": "text", "text": text}
