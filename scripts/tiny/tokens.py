"""Tokenizers that have the world's words whole."""

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
T5_TOKENS = 12


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose byte pairs make the world's words whole; all others are spelled."""
    blank = CLIPTokenizer(model_max_length=CONTEXT)
    alphabet = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    trainer = BpeTrainer(
        vocab_size=4096, min_frequency=1, initial_alphabet=alphabet, end_of_word_suffix="</w>"
    )
    learned = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learned.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    learned.train_from_iterator(captions.vocabulary(), trainer)
    model = json.loads(learned.to_str())["model"]
    symbols = dict.fromkeys(
        [*alphabet, *(c + "</w>" for c in alphabet), *model["vocab"], *blank.all_special_tokens]
    )
    vocab = {symbol: i for i, symbol in enumerate(symbols)}
    return CLIPTokenizer(
        vocab=vocab, merges=[tuple(pair) for pair in model["merges"]], model_max_length=CONTEXT
    )


def t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer of whole words, after a space or not; all others are spelled."""
    words = [*captions.vocabulary(), *(chr(c) for c in range(ord("!"), ord("~") + 1))]
    pieces = dict.fromkeys([*("▁" + word for word in words), *words, "▁"])
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    scored = [(piece, -1.0) for piece in pieces]  # alike, so that the fewest pieces win
    return T5Tokenizer(vocab=[*special, *scored], extra_ids=0, model_max_length=T5_TOKENS)


def ids(tokenizer: CLIPTokenizer | T5Tokenizer, texts: list[str]) -> Tensor:
    """Token ids (N, L), padded to the tokenizer's length."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return encoded.input_ids.to(DEVICE)
