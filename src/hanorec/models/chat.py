"""The chat format of a checkpoint, found by writing a chat and looking at what stands around its parts.

In: a processor. Out: the token ids around a question and its answer, and what a text says where an image stands.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hanorec.errors import DataError, what_the_machine_lacks

QUESTION, ANSWER = "⁂Q⁂", "⁂A⁂"  # what no template writes
MOST_SECONDS = 5.0  # for a template to be rendered, which takes milliseconds


def chat_format(processor: Any) -> tuple[list[int], list[int], list[int]]:
    """Prefix, separator and suffix of a chat as token ids: what the template writes before a question, between it and
    its answer, and after the answer.

    The prefix starts with the token that begins a text, if there is one. Without a template a line's end separates
    question and answer, and the answer ends with the token that ends a text, if there is one.
    """
    tokenizer = processor.tokenizer
    prefix, separator, suffix = "", "\n", ""
    if processor.chat_template is not None:
        prefix, separator, suffix = _around(processor, ("user", [_text(QUESTION)]), ("assistant", [_text(ANSWER)]))
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
    return _around(processor, ("user", [_text(QUESTION), {"type": "image"}, _text(ANSWER)]))[1]


def _around(processor: Any, *messages: tuple[str, list[dict]]) -> tuple[str, str, str]:
    """What the template writes before the question, between it and the answer, and after the answer.

    Errors: DataError where it cannot be rendered in some seconds, or does not write both once.
    """
    try:
        with _some_seconds():
            chat = processor.apply_chat_template([{"role": role, "content": content} for role, content in messages])
    except Exception as error:  # a template is a program, and a stranger's
        if what_the_machine_lacks(error):
            raise
        raise DataError(f"its chat template cannot be rendered: {' '.join(str(error).split())[:300]}") from error
    if chat.count(QUESTION) != 1 or chat.count(ANSWER) != 1:
        raise DataError("its chat template does not write a question and its answer once each")
    prefix, rest = chat.split(QUESTION)
    return prefix, *rest.split(ANSWER)


@contextmanager
def _some_seconds() -> Iterator[None]:
    """Ends a loop in a template. Not in another thread than the main one, not on Windows, and nothing that the
    interpreter does in one operation, such as a power."""

    def stop(*_) -> None:
        raise TimeoutError(f"not done in {MOST_SECONDS:g} s")

    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _text(text: str) -> dict:
    return {"type": "text", "text": text}
