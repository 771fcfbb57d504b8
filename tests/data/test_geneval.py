"""GenEval's lines: what they mean to the reward, and which lines are refused."""

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_guard.data.geneval import GENEVAL_RELATIONS, parse_geneval
from grpo_guard.data.prompts import PromptFile
from grpo_guard.reward import geneval
from grpo_guard.schema import ConfigError, component
from grpo_guard.types import Clause, Prompt
from grpo_guard.world.detection import Detection

DOG_BY_TV = {
    "tag": "position",
    "include": [
        {"class": "tv", "count": 1},
        {"class": "dog", "count": 1, "position": ["right of", 0]},
    ],
    "prompt": "a photo of a dog right of a tv",
}
THREE_CUPS = {
    "tag": "counting",
    "include": [{"class": "cup", "count": 3}],
    "exclude": [{"class": "cup", "count": 4}],
    "prompt": "a photo of three cups",
}
PAIR = {
    "tag": "color_attr",
    "include": [
        {"class": "wine glass", "count": 1, "color": "pink"},
        {"class": "bed", "count": 1, "color": "black"},
    ],
    "prompt": "a photo of a pink wine glass and a black bed",
}


@component
class FakeDetector:
    """Detects the same things in every picture."""

    things: list

    weight_bytes = 0

    def load(self, device):
        return lambda images: [self.things]


def fields(prompt):
    """Return what a prompt holds as a tuple: records are equal only if they are the same object."""
    return (
        prompt.text,
        prompt.tag,
        *([vars(clause) for clause in clauses] for clauses in (prompt.include, prompt.exclude)),
    )


def judge(line, *things):
    """Return the rewards, graded and strict, of a picture with things (name, colour, x, y)."""
    detections = [
        Detection(name=n, color=c, box=(x - 5.0, y - 5.0, x + 5.0, y + 5.0), score=0.9)
        for n, c, x, y in things
    ]
    reward = geneval.GenEval(detector=FakeDetector(things=detections))
    prompt = parse_geneval(json.dumps(line))
    assert reward.accepts(prompt)
    rewards = reward.load(torch.device("cpu"))(torch.zeros(1, 3, 2, 2), [prompt])
    return tuple(round(part.item(), 3) for part in rewards.parts.values())


@pytest.mark.parametrize(
    ("line", "include", "exclude"),
    [
        (DOG_BY_TV, [Clause(name="tv"), Clause(name="dog", position=("right of", 0))], []),
        (THREE_CUPS, [Clause(name="cup", count=3)], [Clause(name="cup", count=4)]),
        (PAIR, [Clause(name="wine glass", color="pink"), Clause(name="bed", color="black")], []),
        (
            PAIR | {"exclude": []},
            [Clause(name="wine glass", color="pink"), Clause(name="bed", color="black")],
            [],
        ),
    ],
)
def test_lines_are_clauses(line, include, exclude):
    expected = Prompt(
        text=line["prompt"], tag=line["tag"], include=tuple(include), exclude=tuple(exclude)
    )
    assert fields(parse_geneval(json.dumps(line))) == fields(expected)


@pytest.mark.parametrize(
    ("relation", "x", "y"), zip(GENEVAL_RELATIONS, (20, 80, 50, 50), (50, 50, 20, 80), strict=True)
)
def test_the_reward_agrees_about_places(relation, x, y):
    """A position says where the clause's own thing is; y points down."""
    line = copy.deepcopy(DOG_BY_TV)
    line["include"][1]["position"] = [relation, 0]
    assert judge(line, ("tv", "red", 50, 50), ("dog", "red", x, y)) == (1, 1)
    assert judge(line, ("tv", "red", x, y), ("dog", "red", 50, 50)) == (0.667, 0)


def test_the_reward_agrees_about_numbers_and_colours():
    cups = [("cup", "red", 10 + 12 * i, 50) for i in range(4)]
    assert judge(THREE_CUPS, *cups[:3]) == (1, 1)
    assert judge(THREE_CUPS, *cups) == (0.333, 0)
    assert judge(PAIR, ("wine glass", "pink", 20, 20), ("bed", "black", 60, 60)) == (1, 1)
    assert judge(PAIR, ("wine glass", "black", 20, 20), ("bed", "pink", 60, 60)) == (0.5, 0)


def test_relations_are_the_rewards():
    assert set(GENEVAL_RELATIONS) == set(geneval.DIRECTIONS)


CLAUSES = "class, count, color, position"
ABOVE = 'give, for example, ["left of", 0]'
REFUSED = {
    "not JSON": (
        "a photo of a dog",
        "the line is not JSON (Expecting value); give one object per line, like GenEval's metadata",
    ),
    "cut off": ('{"tag": "colors"', "the line is not JSON (Expecting ',' delimiter); give one"),
    "too deep": ("[" * 200_000, "the line is not JSON (maximum recursion depth exceeded"),
    "too long": (
        "1" * 5000,
        "the line is not JSON (Exceeds the limit (4300 digits) for integer string conversion)",
    ),
    "a list": ("[]", "the line is a list; give an object with tag, include, exclude, prompt"),
    "no tag": ({"tag": ...}, "tag is missing; add it"),
    "no prompt": ({"prompt": ...}, "prompt is missing; add it"),
    "no include": ({"include": ...}, "include is missing; add it"),
    "a misspelt key": (
        {"exlude": []},
        "exlude is unknown; the known keys are tag, include, exclude, prompt",
    ),
    "a key of two lines": ({"a\nb": 1}, "a b is unknown; the known keys are tag"),
    "half a character": ({"prompt": "\ud800"}, "'\\ud800' holds half of a surrogate pair"),
    "a number for a prompt": ({"prompt": 7}, "prompt=7 is not a text; give a string"),
    "a blank prompt": ({"prompt": "  "}, "prompt='  ' is not a text; give a string"),
    "an empty tag": ({"tag": ""}, "tag='' is not a text; give a string"),
    "nothing included": ({"include": []}, "include=[] names no object; give at least one"),
    "a clause for a list": (
        {"include": {"class": "dog", "count": 1}},
        "include is a dict; give a list of clauses",
    ),
    "null for a list": ({"exclude": None}, "exclude is a NoneType; give a list of clauses"),
    "a word for a clause": (
        {"include": ["dog"]},
        f"include[0] is a str; give an object with {CLAUSES}",
    ),
    "no class": (("class", ...), "include[1].class is missing; add it"),
    "no count": (("count", ...), "include[1].count is missing; add it"),
    "British": (("colour", "red"), f"include[1].colour is unknown; the known keys are {CLAUSES}"),
    "a number for a class": (("class", 3), "include[1].class=3 is not a text; give a string"),
    "a number for a colour": (("color", 3), "include[1].color=3 is not a text; give a string"),
    "none": (("count", 0), "include[1].count=0 is not a number of objects; give 1 or more"),
    "fewer": (("count", -1), "include[1].count=-1 is not a number of objects; give 1 or more"),
    "a share": (("count", 1.0), "include[1].count=1.0 is not a number of objects; give 1 or more"),
    "true": (("count", True), "include[1].count=True is not a number of objects; give 1 or more"),
    "a word for a number": (
        ("count", "2"),
        "include[1].count='2' is not a number of objects; give 1 or more",
    ),
    "no index": (("position", ["above"]), f"include[1].position=['above'] is not a pair; {ABOVE}"),
    "no pair": (("position", "above"), f"include[1].position='above' is not a pair; {ABOVE}"),
    "a number": (("position", 0), f"include[1].position=0 is not a pair; {ABOVE}"),
    "null": (("position", None), f"include[1].position=None is not a pair; {ABOVE}"),
    "an unknown relation": (
        ("position", ["over", 0]),
        "include[1].position has the relation 'over'; choose from left of, right of, above, below",
    ),
    "an unhashable relation": (
        ("position", [["above"], 0]),
        "include[1].position has the relation ['above']; choose",
    ),
    "an index beyond": (
        ("position", ["above", 2]),
        "include[1].position refers to clause 2; give the number of an",
    ),
    "an index below": (
        ("position", ["above", -1]),
        "include[1].position refers to clause -1; give the number of an",
    ),
    "itself": (
        ("position", ["above", 1]),
        "include[1].position refers to clause 1; give the number of another clause",
    ),
    "false": (
        ("position", ["above", False]),
        "include[1].position refers to clause False; give the number of another",
    ),
    "a colour excluded": (
        {"exclude": [{"class": "cup", "count": 1, "color": "red"}]},
        "exclude[0].color is unknown; the known keys are class, count",
    ),
    "none excluded": (
        {"exclude": [{"class": "cup", "count": 0}]},
        "exclude[0].count=0 is not a number of objects; give",
    ),
}


def spoil(change):
    """Change keys of a good line: a dict changes its own keys, a pair one of its second clause.

    The value `...` removes a key. A string is not a change but a whole line.
    """
    if isinstance(change, str):
        return change
    line = copy.deepcopy(DOG_BY_TV)
    target = line if isinstance(change, dict) else line["include"][1]
    target.update(change if isinstance(change, dict) else [change])
    for key in [key for key, value in target.items() if value is ...]:
        del target[key]
    return json.dumps(line)


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED)
def test_malformed_lines(change, reason, tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text(f"{json.dumps(PAIR)}\n\n{spoil(change)}\n", encoding="utf-8")
    file = PromptFile(
        path=str(path), heldout=None, heldout_share=0.5, parse=parse_geneval, prompts=1, repeats=2
    )
    with pytest.raises(ConfigError) as refusal:
        file.load()
    assert str(refusal.value).startswith(f"data.path={path} line 3: {reason}")
    assert "\n" not in str(refusal.value)


WORLD = {
    "circle": True,
    "circles": False,
    "Circle": False,
    "red square": True,
    "Red square": False,
    "turquoise square": False,
}


@pytest.mark.parametrize("thing", WORLD)
def test_the_world_refuses_what_its_pictures_cannot_show(thing, choice):
    """Names and colours that the world's detector never reports could not be met."""
    *color, name = thing.split()
    prompt = Prompt(text=thing, include=(Clause(name=name, color="".join(color) or None),))
    assert choice("reward", "geneval").accepts(prompt) == WORLD[thing]


words = (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
    .map(str.strip)
    .filter(bool)
)


@st.composite
def prompts(draw):
    """Draw prompts as GenEval may have them: positions refer to any other clause."""
    count = draw(st.integers(1, 3))
    others = [[j for j in range(count) if j != i] for i in range(count)]
    relations = st.sampled_from(GENEVAL_RELATIONS)
    include = [
        Clause(
            name=draw(words),
            count=draw(st.integers(1, 9)),
            color=draw(st.none() | words),
            position=draw(st.none() | st.tuples(relations, st.sampled_from(own))) if own else None,
        )
        for own in others
    ]
    exclude = draw(st.lists(st.builds(Clause, name=words, count=st.integers(1, 9)), max_size=2))
    return Prompt(text=draw(words), tag=draw(words), include=tuple(include), exclude=tuple(exclude))


def to_entry(prompt):
    """Return the object that a line of JSON holds for a prompt."""
    return {
        "tag": prompt.tag,
        "include": list(map(clause_entry, prompt.include)),
        "exclude": list(map(clause_entry, prompt.exclude)),
        "prompt": prompt.text,
    }


def clause_entry(clause):
    values = {"class": clause.name} | {k: v for k, v in vars(clause).items() if k != "name"}
    return {key: value for key, value in values.items() if value is not None}


@given(prompt=prompts(), ascii=st.booleans())
def test_every_prompt_is_read_back(prompt, ascii):
    assert fields(parse_geneval(json.dumps(to_entry(prompt), ensure_ascii=ascii))) == fields(prompt)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats()
    | st.sampled_from(["above", "", "dog"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["class", "count"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(line=st.sampled_from([DOG_BY_TV, THREE_CUPS, PAIR]), value=anything, data=st.data())
def test_what_is_not_refused_can_be_scored(line, value, data):
    line = copy.deepcopy(line)
    keys = st.sampled_from(
        ["class", "count", "color", "position", "prompt", "tag", "include", "exclude"]
    )
    data.draw(st.sampled_from([line, *line["include"]]))[data.draw(keys)] = value
    try:
        prompt = parse_geneval(json.dumps(line))
    except ConfigError:
        return
    assert geneval.GenEval(detector=FakeDetector(things=[])).accepts(prompt)
    assert 0 <= geneval.graded_score(prompt, []) <= 1
