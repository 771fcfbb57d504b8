"""Tokenizers that keep the words of the world whole."""

from __future__ import annotations

import json

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPTokenizer, T5Tokenizer

from grpo_guard.world import captions
from tiny.pictures import DEVICE

CONTEXT = 16
"""Tokens of a text for the CLIP encoders; a caption has at most 14."""
T5_TOKENS = 12
"""Tokens of a text for the T5 encoder."""

_CHARACTERS = [chr(code) for code in range(ord("!"), ord("~") + 1)]


def clip_tokenizer() -> CLIPTokenizer:
    """Make a CLIP tokenizer whose byte pairs keep the world's words whole and spell all others."""
    blank = CLIPTokenizer(model_max_length=CONTEXT)
    trainer = BpeTrainer(
        vocab_size=4096, min_frequency=1, initial_alphabet=_CHARACTERS, end_of_word_suffix="</w>"
    )
    learned = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learned.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    learned.train_from_iterator(captions.vocabulary(), trainer)
    model = json.loads(learned.to_str())["model"]
    symbols = [
        *_CHARACTERS,
        *(character + "</w>" for character in _CHARACTERS),
        *model["vocab"],
        *blank.all_special_tokens,
    ]
    vocab = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


def t5_tokenizer() -> T5Tokenizer:
    """Make a T5 tokenizer that keeps the world's words whole and spells all others.

    Each word has a piece with a space before it and one without.
    """
    words = [*captions.vocabulary(), *_CHARACTERS]
    pieces = dict.fromkeys([*("▁" + word for word in words), *words, "▁"])
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    # All pieces have the same score, so the segmentation with the fewest pieces wins.
    regular = [(piece, -1.0) for piece in pieces]
    return T5Tokenizer(vocab=[*special, *regular], extra_ids=0, model_max_length=T5_TOKENS)


def token_ids(tokenizer: CLIPTokenizer | T5Tokenizer, texts: list[str]) -> Tensor:
    """Return token ids (N, L), padded to the tokenizer's length."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return encoded.input_ids.to(DEVICE)
