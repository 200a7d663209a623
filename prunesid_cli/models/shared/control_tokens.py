"""Control tokens: texts such as `<|im_end|>` that a tokenizer encodes as one token with a meaning of its own.

Only the chat template and the processor may write them. In a text from outside, which is a prompt or the layout of a
cached item, they are encoded as plain text, so such a text cannot end a turn or begin another one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any
from uuid import uuid4

from tokenizers import Tokenizer

from prunesid_cli.errors import UsageError

MARK = uuid4().hex
"""Inserted into control tokens of a text from outside until it is encoded. It is random, so no text contains it."""


NOTHING = re.compile("(?!)")
"""A pattern that matches nothing."""


class ControlTokens:
    """The control tokens of a checkpoint, and how text that contains them is encoded.

    These are all special tokens, and other added tokens that the chat template contains, such as `<｜User｜>`, or that
    the processor writes for an image or clip.

    Args:
        tokenizer: The checkpoint's tokenizer.
        chat_template: The checkpoint's chat template; None if there is none.
        item_pattern: Matches the tokens that the processor writes for an image or clip.
        placeholders: Texts that stand for images and clips in a rendered prompt.
    """

    def __init__(
        self, tokenizer: Any, chat_template: Any, item_pattern: re.Pattern[str], placeholders: Iterable[str] = ()
    ) -> None:
        self.tokenizer = tokenizer
        template, texts = str(chat_template), set(tokenizer.all_special_tokens)
        for token in tokenizer.added_tokens_decoder.values():
            if token.special or token.content in template or item_pattern.fullmatch(token.content):
                texts.add(token.content)
        self.ids: dict[str, int] = {
            text: tokenizer.convert_tokens_to_ids(text) for text in sorted(texts) if not text.isspace()
        }
        self.pattern = _any_of({*self.ids, *placeholders})
        self._first_characters = _any_of({text[0] for text in (*self.ids, *placeholders)})

    def disguise(self, text: str, kept: re.Pattern[str] = NOTHING) -> str:
        """Break up control tokens in a text from outside, so that only `encode` puts them together again, as text.

        Args:
            text: The text.
            kept: What is left as it is, such as the places of images.

        Returns:
            The text, with `MARK` inside of every control token; the same text if there is none. Neither can one arise
            where a chat template joins parts of it.
        """
        if not self.pattern.search(kept.sub("", text)):
            return text
        parts = re.compile(f"(?P<kept>{kept.pattern})|{self._first_characters.pattern}")
        return parts.sub(lambda match: match[0] if match["kept"] else match[0] + MARK, text)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The token ids of a rendered prompt or a part of it. Control tokens that were disguised are plain text.

        Args:
            text: The text.
            add_special_tokens: Whether to add BOS, if the tokenizer does.

        Raises:
            UsageError: The tokenizer cannot encode a control token as text.
        """
        if MARK not in text:
            return list(self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])
        if self.tokenizer.is_fast:
            renamed_text = self.pattern.sub(lambda match: self._names.get(match[0], match[0]), text)
            ids = self._renamed_tokenizer.encode(renamed_text.replace(MARK, ""), add_special_tokens=add_special_tokens)
            return list(ids.ids)
        return self._encode_slowly(text, add_special_tokens)

    def _encode_slowly(self, text: str, add_special_tokens: bool) -> list[int]:
        """`encode` for tokenizers written in Python, which leave out all added tokens with `split_special_tokens`."""
        ids = list[int]()
        for part in re.split(f"({self.pattern.pattern})", text):
            if part in self.ids:
                ids.append(self.ids[part])
                continue
            words = self.tokenizer.tokenize(part.replace(MARK, ""), split_special_tokens=True)
            if found := self.ids.keys() & {*words} - {self.tokenizer.unk_token}:  # unk stands for unknown words, too
                raise UsageError(f"the tokenizer cannot read {min(found)} as text", "leave it out of the prompt")
            ids += self.tokenizer.convert_tokens_to_ids(words)
        return list(self.tokenizer.build_inputs_with_special_tokens(ids)) if add_special_tokens else ids

    @cached_property
    def _names(self) -> dict[str, str]:
        """Control token -> its name in `_renamed_tokenizer`, which no text from outside contains."""
        return {text: f"<{MARK[::-1]}:{token_id}>" for text, token_id in self.ids.items()}

    @cached_property
    def _renamed_tokenizer(self) -> Tokenizer:
        return rename_tokens(self.tokenizer.backend_tokenizer, self._names)


def rename_tokens(tokenizer: Tokenizer, names: Mapping[str, str]) -> Tokenizer:
    """A tokenizer with other names for some tokens, which keep their ids. Their old names are ordinary text.

    `encode_special_tokens` of the library is not enough: added tokens that are not special are still recognised, and
    so are special tokens that are also in the vocabulary of the model.

    Args:
        tokenizer: The tokenizer, which is not changed.
        names: Old name -> new name.
    """
    settings = json.loads(tokenizer.to_str())
    model = settings["model"]
    for token in settings["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(text, text): token_id for text, token_id in model["vocab"].items()}
    else:  # Unigram: texts with scores
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not names.keys() & {*pair, "".join(pair)}]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    settings |= {"truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(settings))


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern for any of some texts, the longest one first; it matches nothing if there are none."""
    return re.compile("|".join(map(re.escape, sorted(filter(None, texts), key=len, reverse=True))) or NOTHING.pattern)
