"""What an item says of itself, as a line of a prompt: without HTML, without line ends, and not endless.

In flows a title or a description as a shop or a site wrote it. Out flows one line of at most so many words.
"""

from __future__ import annotations

import html
import re
import unicodedata

ENTITY = re.compile(r"&(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")  # R&D and AT&T; are no entities
TAGS = "a|abbr|b|big|blockquote|br|center|code|dd|div|dl|dt|em|font|h[1-6]|hr|i|img|ins|li|link|meta|ol|p|pre|q|s|small"
TAGS += "|span|strike|strong|sub|sup|table|tbody|td|th|thead|tr|tt|u|ul|wbr"
TAG = re.compile(rf"<!--.*?-->|</?(?:{TAGS})(?:\s[^<>]*)?/?>", re.IGNORECASE | re.DOTALL)
SCRIPT = re.compile(r"<(script|style)\b[^<>]*>.*?(</\1\s*>|$)", re.IGNORECASE | re.DOTALL)
# A word is what stands between spaces, at most 32 characters of it; a character of Chinese or Japanese is a word.
SIGNS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{SIGNS}]|[^\s{SIGNS}]{{1,32}}")


def without_html(text: str) -> str:
    """A text on one line, without tags and with the characters that entities stand for."""
    for _ in range(3):  # &amp;lt; is met, too
        plain = ENTITY.sub(lambda found: html.unescape(found[0]), text)
        if plain == text:
            break
        text = plain
    text = TAG.sub(" ", SCRIPT.sub(" ", text))
    if not text.isprintable():  # control characters, and halves of characters, which no file can hold
        text = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    return " ".join(text.split())


def cut(text: str, words: int) -> str:
    """A text of at most so many words, with an ellipsis where it was longer."""
    if len(text) <= words:
        return text
    found = WORD.finditer(text)
    end = max((place.end() for _, place in zip(range(words), found)), default=0)
    return f"{text[:end]}…" if next(found, None) else text
