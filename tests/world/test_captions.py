"""The grammar of captions: combinations are held out, and training still teaches every word."""

from collections import Counter

import numpy as np

from grpo_guard.world.captions import all_prompts, draw_captions, tokens, vocabulary
from grpo_guard.world.scene import LEXICON

TRAIN, HELD_OUT = all_prompts(heldout=False), all_prompts(heldout=True)


def texts(prompts):
    return {prompt.text for prompt in prompts}


def test_splits_are_disjoint_and_name_each_caption_once():
    assert not texts(TRAIN) & texts(HELD_OUT)
    assert len(texts(TRAIN)) == len(TRAIN)


def test_between_12_and_20_percent_of_bound_pairs_are_held_out():
    held, kept = (
        sum(prompt.tag == "color_attr" for prompt in prompts) for prompts in (HELD_OUT, TRAIN)
    )
    assert 0.12 < held / (held + kept) < 0.20


def test_a_combination_is_held_out_whatever_its_order_and_relation():
    heldout = {
        frozenset(prompt.text.split(" and ")) for prompt in HELD_OUT if prompt.tag == "color_attr"
    }
    trained = {
        frozenset(prompt.text.split(f" {relation} "))
        for prompt in TRAIN
        for relation in ("above", "below", "left of")
    }
    assert not heldout & trained


def test_training_teaches_every_word_and_holds_all_single_attributes():
    assert {token for prompt in TRAIN for token in tokens(prompt.text)} == set(vocabulary())
    assert not {"single_object", "colors"} & {prompt.tag for prompt in HELD_OUT}
    assert {f'the word "{word}"' for word in LEXICON} <= texts(TRAIN)


def test_captions_are_short():
    assert max(len(tokens(prompt.text)) for prompt in TRAIN + HELD_OUT) <= 14


def test_tags_are_drawn_evenly_and_words_twice_as_often():
    counts = Counter(prompt.tag for prompt in draw_captions(np.random.default_rng(0), 9000, TRAIN))
    assert len(counts) == 8
    assert abs(counts["word"] - 2000) < 200
    assert abs(counts["single_object"] - counts["position"]) < 200
