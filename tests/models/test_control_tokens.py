"""Special tokens in a prompt, or in the layout of a cached item, are plain text: they end no turn and show no image."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from prunesid_cli.errors import UsageError
from prunesid_cli.models.shared.control_tokens import MARK, ControlTokens, rename_tokens
from prunesid_cli.models.shared.prompt_pieces import MEDIA_TAG
from tests.models.harness import PROMPT, Model

NONE = re.compile("(?!)")
ORDINARY = [PROMPT, "<b>a</b> [1] < 2 |x|", "what is\n\nshown?\n", "a\tb  c"]


def user_tokens(model: Model) -> list[str]:
    """The special tokens that a prompt can contain; `<image>` and `<video>` have another meaning there."""
    return [token for token in model.language.control_tokens.ids if not MEDIA_TAG.search(token)]


def control_ids(model: Model, prompt: str, text: str | None = None) -> list[int]:
    """The ids of control tokens in a whole prompt about one image, whose layout has `text`."""
    layout = model.encoded[0].layout
    ids = model.language.tokenize(prompt, [replace(layout, text=layout.text if text is None else text)])
    unknown = model.language.tokenizer.unk_token_id  # stands for characters that the tokenizer does not know, too
    return [token for token in ids.tolist() if token in model.language.control_tokens.ids.values() and token != unknown]


def test_special_tokens_of_a_prompt_are_text(model: Model) -> None:
    expected = control_ids(model, "abc")
    for token in user_tokens(model):
        for prompt in (f"a{token}b c", token, f"{token}{token} {token}\nuser", f"what<image>is {token}?"):
            assert control_ids(model, prompt) == expected, prompt
    everything = " ".join(user_tokens(model))
    assert control_ids(model, everything) == expected


def test_the_parts_of_a_prompt_form_no_special_token(model: Model) -> None:
    """Some chat templates put the texts before and after an image side by side."""
    expected = control_ids(model, "ab<image>c")
    for token in model.language.control_tokens.ids:
        for cut in range(1, len(token)):
            assert control_ids(model, f"{token[:cut]}<image>{token[cut:]}") == expected, token[:cut]


def test_special_tokens_of_a_prompt_decode_to_its_text(model: Model) -> None:
    tokenizer, control = model.language.tokenizer, model.language.control_tokens
    plain = rename_tokens(tokenizer.backend_tokenizer, {token: f"@{number}" for token, number in control.ids.items()})
    for token in user_tokens(model):
        text = f"is a{token}b {token} here?"
        ids = control.encode(control.disguise(text, MEDIA_TAG))
        assert ids == plain.encode(text, add_special_tokens=False).ids
        decoded = tokenizer.decode(ids)  # some of the tokenizers lowercase, some add a space at the start
        assert "".join(decoded.lower().split()) == "".join(text.lower().split())


def test_a_prompt_without_special_tokens_is_that_of_the_stock_processor(model: Model) -> None:
    """Both ways to encode give the same ids, so the template's own tokens are the same around a special token, too."""
    control, layout = model.language.control_tokens, model.encoded[0].layout
    for prompt in ORDINARY:
        assert control.disguise(prompt, MEDIA_TAG) == prompt
        stock = model.language.tokenize(prompt, [layout])
        control.disguise = lambda text, kept: MARK + text  # type: ignore[method-assign]
        try:
            assert torch.equal(model.language.tokenize(prompt, [layout]), stock)
        finally:
            del control.disguise


def test_the_layouts_of_a_family_are_not_changed(model: Model) -> None:
    for media in model.media():
        text = model.vision.preprocess(media).layout.text
        assert model.language.control_tokens.disguise(text, model.language.item_pattern) == text


def test_special_tokens_of_a_layout_are_text(model: Model) -> None:
    """But for those that the processor writes for an image itself."""
    text, expected = model.encoded[0].layout.text, control_ids(model, PROMPT)
    forged = [token for token in model.language.control_tokens.ids if not model.language.item_pattern.fullmatch(token)]
    assert forged
    for token in forged:
        assert control_ids(model, PROMPT, f"{text}{token}\nuser") == expected, token
        assert control_ids(model, PROMPT, f"{token} {text}") == expected, token
    assert control_ids(model, "<image>".join(["a", "b"]), text + "".join(forged)) == expected


def test_special_tokens_keep_their_meaning_if_they_are_allowed(model: Model) -> None:
    token = next(one for one in user_tokens(model) if one not in model.language.placeholders)
    language, layouts = model.language, [model.encoded[0].layout]
    language.allow_special_tokens = True
    try:
        conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"a{token}b"}]}]
        text = language.render_chat(conversation)
        assert language.control_tokens.ids[token] in language.tokenize(f"a{token}b", layouts)
        assert torch.equal(language.tokenize(f"a{token}b", layouts), language.tokenize_text(fill(model, text)))
        for placeholder in language.placeholders - {"<image>", "<video>"}:
            with pytest.raises(UsageError, match="stands for an image"):
                language.check_prompt(f"a {placeholder}", 1)
    finally:
        language.allow_special_tokens = False


def fill(model: Model, rendered: str) -> str:
    placeholder = model.language.placeholder_texts[False]
    assert placeholder
    return rendered.replace(placeholder, model.encoded[0].layout.text, 1)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_token_of_the_vocabulary_is_not_put_together(kind: str) -> None:
    """A model may know a special token as a word of its own, which it finds without the added tokens."""
    letters = ["<unk>", "</s>", "</", "s>", "<", "/", "s", ">", "a"]
    if kind == "bpe":
        merges = [("<", "/"), ("s", ">"), ("</", "s>")]
        vocabulary = {text: number for number, text in enumerate(letters)}
        inner: models.Model = models.BPE(vocabulary, merges, unk_token="<unk>")
    else:
        inner = models.Unigram([(text, -1.0) for text in letters], unk_id=0)
    raw = Tokenizer(inner)
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>")
    control = ControlTokens(tokenizer, None, NONE)
    assert 1 in tokenizer("a</s>a", split_special_tokens=True)["input_ids"]  # the library's own way is not enough
    ids = control.encode(control.disguise("a</s>a", MEDIA_TAG) + "</s>")
    assert (ids[-1], 1 in ids[:-1], "".join(tokenizer.convert_ids_to_tokens(ids[:-1]))) == (1, False, "a</s>a")


def test_tokenizers_in_python() -> None:
    tokenizer = ByT5Tokenizer()
    control = ControlTokens(tokenizer, None, NONE)
    text = control.disguise("a</s>b<pad>", MEDIA_TAG)
    ids = control.encode(text + "</s>")
    assert ids == [*(byte + 3 for byte in b"a</s>b<pad>"), tokenizer.eos_token_id]
    assert control.encode(text, add_special_tokens=True) == [*ids[:-1], tokenizer.eos_token_id]


def test_added_tokens_of_template_and_processor_are_control_tokens() -> None:
    """Although they are not special, as in DeepSeek. Other added tokens, and newlines, are words."""
    raw = Tokenizer(models.BPE({character: number for number, character in enumerate("<>|User a\nbt")}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    tokenizer.add_tokens(["<|User|>", "<row_1>", "<table>", "\n\n"])
    control = ControlTokens(tokenizer, "{{ '<|User|>' }}\n\n", re.compile(r"<row_\d+>"))
    assert list(control.ids) == ["<row_1>", "<|User|>"]
    ids = control.encode("<|User|>" + control.disguise("a<|User|>\n\n<table>", MEDIA_TAG))
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|User|>", "a", *"<|User|>", "\n\n", "<table>"]
