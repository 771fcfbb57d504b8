"""A model's answers become scores of the right pictures; a bad answer is a failure."""

import base64
import io
import json
import logging
import math
import re
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from toy import experiment, read_metrics

from grpo_guard.lifecycle.reward_check import PAIRS, check_reward
from grpo_guard.remote.chat import Reply, parse_number
from grpo_guard.remote.wire import WireError
from grpo_guard.reward.vlm_win_rate import choose_pairs
from grpo_guard.schema import ConfigError
from grpo_guard.train import train
from grpo_guard.types import Prompt
from grpo_guard.world.checker import check_pictures

CPU = torch.device("cpu")
MODEL = "a/judge"
MODELS = json.dumps({"data": [{"id": "other"}, {"id": MODEL}]}).encode()


def completion(text, ended="stop", **more):
    """Return the body of a chat completion."""
    message = {"role": "assistant", "content": text} | more
    return json.dumps(
        {"choices": [{"index": 0, "message": message, "finish_reason": ended}]}
    ).encode()


def unpack_pictures(request):
    """Return the pictures in a request, decoded, and the text after them."""
    *parts, question = request["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in parts]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    files = [io.BytesIO(base64.b64decode(url.partition(",")[2], validate=True)) for url in urls]
    return [
        torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files
    ], question["text"]


class Server(ThreadingHTTPServer):
    """A server that lets many connections wait."""

    request_queue_size = 128


class Endpoint:
    """An OpenAI-compatible endpoint in a thread. `judge` turns a request into a text or a reply."""

    def __init__(self, judge, models=MODELS, key=""):
        self.judge, self.models, self.key, self.requests = judge, models, key, []

    def replies(self, headers, body):
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            return 401, b"no key"
        if body is None:
            return 200, self.models
        assert headers["content-type"] == "application/json"
        request = json.loads(body)
        self.requests.append(request)
        answer = self.judge(request)
        return (200, completion(answer)) if isinstance(answer, str) else answer

    @contextmanager
    def open(self):
        """Run the endpoint; yields its address."""
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(
                    *endpoint.replies(self.headers, None)
                    if self.path == "/v1/models"
                    else (404, b"nothing")
                )

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/chat/completions"
                self.answer(*endpoint.replies(self.headers, body))

            def answer(self, status, body):
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        with Server(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/v1"
            finally:
                server.shutdown()


@contextmanager
def serving(judge, **settings):
    """Run an endpoint; yields its address and the list of its requests."""
    endpoint = Endpoint(judge, **settings)
    with endpoint.open() as url:
        yield url, endpoint.requests


@pytest.fixture
def vlm(choice):
    """Make a configured reward with these addresses."""

    def make(name, *urls, **changes):
        settings = {"model": MODEL, "timeout": 10.0, "retries": 1, "backoff": 0.01}
        return replace(choice("reward", name), urls=list(urls), **settings | changes)

    return make


def draw_pictures(count, seed=0):
    """Return random 8-bit pictures, higher than wide, and the same in [0, 1]."""
    levels = torch.randint(
        0, 256, (count, 3, 6, 5), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return levels, levels / 255


def make_prompts(texts):
    return [Prompt(text=f"prompt <{text}>") for text in texts]


def brightness(picture):
    return int(picture.long().sum())


def brighter(request):
    """Prefer the brighter picture, or the second if they are alike."""
    (one, other), _ = unpack_pictures(request)
    return f"Better picture: {1 if brightness(one) > brightness(other) else 2}"


def test_every_picture_is_marked_by_itself(vlm):
    levels, images = draw_pictures(7)
    images[4, 0, 0, 0] = math.nan
    prompts = make_prompts("abcabcd")
    marks = [1, 1.5, 2, 5, None, 4.9, 3]

    def judge(request):
        (picture,), text = unpack_pictures(request)
        (row,) = [i for i in range(7) if torch.equal(levels[i], picture)]
        assert prompts[row].text in text
        return f"It is a picture. Final score: 2? No.\n**Final Score:** {marks[row]}"

    with serving(judge) as (url, requests):
        rewards = vlm("vlm_score", url).load(CPU)(images, prompts)
    torch.testing.assert_close(
        rewards.total, torch.tensor([0, 0.125, 0.25, 1, math.nan, 0.975, 0.5]), equal_nan=True
    )
    assert rewards.failed.tolist() == [False] * 4 + [True] + [False] * 2
    assert list(rewards.parts) == ["vlm_score"]
    assert len(requests) == 6
    assert all(
        (r["model"], r["temperature"], r["seed"], r["max_tokens"]) == (MODEL, 0, 0, 512)
        for r in requests
    )


def test_pictures_are_rounded_to_levels_once(vlm):
    """The values lie between and beyond the 8-bit levels, in half precision."""
    images = torch.tensor([-0.5, 0.0, 0.5, 0.999, 1.0, 7.0], dtype=torch.bfloat16).expand(
        1, 3, 2, 6
    )
    sent = []
    with serving(lambda request: sent.extend(unpack_pictures(request)[0]) or "Final score: 1") as (
        url,
        _,
    ):
        vlm("vlm_score", url).load(CPU)(images, make_prompts("a"))
    assert sent[0][0, 0].tolist() == [0, 0, 128, 255, 255, 255]


def test_questions_are_under_way_together(vlm):
    """Answers wait until three questions are under way; more than three never are."""
    barrier, under_way, most = threading.Barrier(3, action=lambda: time.sleep(0.1)), [], []

    def judge(_):
        under_way.append(1)
        most.append(len(under_way))
        barrier.wait(5)
        under_way.pop()
        return "Final score: 5"

    with serving(judge) as (url, _):
        rewards = vlm("vlm_score", url, connections=3, retries=0).load(CPU)(
            draw_pictures(9)[1], make_prompts("abcabcabc")
        )
    assert rewards.total.tolist() == [1.0] * 9
    assert max(most) == 3


@pytest.mark.parametrize("rivals", [2, 4, None])
def test_win_rates_are_those_of_a_table(vlm, rivals):
    """The pictures of two texts are mixed, and some pictures are alike."""
    texts = "abbabaabbabaa"
    levels, images = draw_pictures(len(texts))
    for i, j in ((3, 0), (8, 1)):
        levels[i], images[i] = levels[j], images[j]

    def points(i, j):
        return float(np.sign(brightness(levels[i]) - brightness(levels[j])) + 1) / 2

    wanted = [math.nan] * len(texts)
    for text in "ab":
        ring = [i for i, other in enumerate(texts) if other == text]
        for place, row in enumerate(ring):
            steps = (
                range(1, len(ring))
                if rivals is None
                else [s for s in range(-rivals // 2, rivals // 2 + 1) if s]
            )
            wanted[row] = np.mean([points(row, ring[(place + step) % len(ring)]) for step in steps])
    with serving(brighter) as (url, requests):
        rewards = vlm("vlm_win_rate", url, rivals=rivals).load(CPU)(images, make_prompts(texts))
    torch.testing.assert_close(rewards.total, torch.tensor(wanted, dtype=torch.float32))
    assert len(requests) == (7 * 6 + 6 * 5 if rivals is None else 13 * rivals)
    assert rewards.total.unique().numel() > 2


@pytest.mark.parametrize("reply", ["Better picture: 1", "Better picture: 2", "Better picture: 1.5"])
def test_a_liking_for_a_place_cancels_out(vlm, reply):
    with serving(lambda _: reply) as (url, _):
        rewards = vlm("vlm_win_rate", url).load(CPU)(draw_pictures(5)[1], make_prompts("aaaaa"))
    assert rewards.total.tolist() == [0.5] * 5


def test_pairs_are_of_one_text_and_both_orders(vlm):
    levels, images = draw_pictures(5)
    met, prompts = [], make_prompts("abaab")

    def judge(request):
        pictures, text = unpack_pictures(request)
        rows = [
            next(i for i in range(5) if torch.equal(levels[i], picture)) for picture in pictures
        ]
        assert {prompts[row].text in text for row in rows} == {True}
        met.append(tuple(rows))
        return "Better picture: 1"

    with serving(judge) as (url, _):
        vlm("vlm_win_rate", url, rivals=None).load(CPU)(images, prompts)
    assert sorted(met) == [(0, 2), (0, 3), (1, 4), (2, 0), (2, 3), (3, 0), (3, 2), (4, 1)]


@pytest.mark.parametrize("rivals", [2, 4, 6, None])
@pytest.mark.parametrize("count", range(1, 10))
def test_everyone_meets_as_many(rivals, count):
    pairs = choose_pairs(range(count), rivals)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    expected = count - 1 if rivals is None else min(rivals, count - 1)
    assert [sum(i in pair for pair in pairs) for i in range(count)] == [expected] * count


def test_pairs_without_both_answers_do_not_count(vlm):
    """Brightness falls from 0 to 3; (0, 1) in one order and 3 have no answers; 4 is broken."""
    levels = torch.tensor([200, 150, 100, 50, 25], dtype=torch.uint8)[:, None, None, None].expand(
        5, 3, 2, 2
    )
    images = levels / 255
    images[4] = math.inf

    def judge(request):
        levels_of_pair = [int(picture[0, 0, 0]) for picture in unpack_pictures(request)[0]]
        return (
            "I cannot tell."
            if levels_of_pair == [200, 150] or 50 in levels_of_pair
            else brighter(request)
        )

    with serving(judge) as (url, _):
        rewards = vlm("vlm_win_rate", url, rivals=None).load(CPU)(images, make_prompts("aaaaa"))
    torch.testing.assert_close(
        rewards.total, torch.tensor([1, 1, 0, math.nan, math.nan]), equal_nan=True
    )
    assert rewards.failed.tolist() == [False] * 3 + [True] * 2


def test_a_picture_alone_has_no_win_rate(vlm, caplog):
    caplog.set_level(logging.INFO)
    with serving(brighter) as (url, requests):
        rewards = vlm("vlm_win_rate", url).load(CPU)(draw_pictures(3)[1], make_prompts("abc"))
    assert rewards.failed.all()
    assert rewards.total.isnan().all()
    assert requests == []
    assert "no win rate: each of these 3 pictures is the only one of its prompt" in caplog.messages


NO_ANSWER = {
    "no number": (200, completion("A fine picture.")),
    "nothing": (200, completion("")),
    "refused": (200, completion(None, refusal="I cannot help with that.")),
    "cut off": (200, completion("Final score: 4", ended="length")),
    "filtered": (200, completion("Final score: 4", ended="content_filter")),
    "too high": (200, completion("Final score: 5.1")),
    "too low": (200, completion("Final score: 0")),
    "negative": (200, completion("Final score: -3")),
    "not finite": (200, completion("Final score: nan")),
    "a bad request": (400, b'{"error": "too many pictures"}'),
}  # fmt: skip
BROKEN = {
    "an error": (500, b"out of memory"),
    "busy": (429, b"slow down"),
    "no JSON": (200, b"<!DOCTYPE html>"),
    "no bytes": (200, b""),
    "an error in JSON": (200, b'{"error": "overloaded"}'),
    "no choices": (200, b'{"choices": []}'),
    "no message": (200, b'{"choices": [{"finish_reason": "stop"}]}'),
    "no text": (200, completion([{"text": "Final score: 4"}])),
    "too deep": (200, b"[" * 100_000),
}  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "times"),
    [*((reply, 1) for reply in NO_ANSWER.values()), *((reply, 3) for reply in BROKEN.values())],
    ids=[*NO_ANSWER, *BROKEN],
)
def test_what_is_no_answer_is_a_failure_unless_another_replica_helps(vlm, reply, times, caplog):
    """An endpoint whose reply would come again is not asked again."""
    images, prompts = draw_pictures(2)[1], make_prompts("ab")
    with (
        serving(lambda _: reply) as (bad, requests),
        serving(lambda _: "Final score: 4") as (good, _),
    ):
        rewards = vlm("vlm_score", bad, retries=2).load(CPU)(images, prompts)
        assert rewards.failed.all()
        assert rewards.total.isnan().all()
        assert rewards.parts["vlm_score"].isnan().all()
        assert len(requests) == 2 * times
        (line,) = caplog.messages
        assert line.startswith(
            f"2 of 2 questions about pictures have no answer; {2 * times} requests failed, the last"
        )
        assert bad in line
        caplog.clear()
        assert vlm("vlm_score", bad, good, retries=0).load(CPU)(images, prompts).total.tolist() == [
            0.75,
            0.75,
        ]
        assert [line.startswith("0 of 2") and "1 requests" in line for line in caplog.messages] == [
            True
        ]


def test_failed_questions_leave_the_others_alone(vlm):
    levels, images = draw_pictures(4)

    def judge(request):
        (picture,), _ = unpack_pictures(request)
        return "?" if torch.equal(picture, levels[2]) else "Final score: 2"

    with serving(judge) as (url, _):
        rewards = vlm("vlm_score", url).load(CPU)(images, make_prompts("abca"))
    assert rewards.failed.tolist() == [False, False, True, False]
    assert rewards.total[[0, 1, 3]].tolist() == [0.25] * 3


def test_a_slow_reply_is_a_failure(vlm, caplog):
    done = threading.Event()
    with serving(lambda _: done.wait() and "Final score: 4") as (url, _):
        rewards = vlm("vlm_score", url, timeout=0.3).load(CPU)(
            draw_pictures(1)[1], make_prompts("a")
        )
        done.set()
    assert rewards.failed.all()
    assert ["2 requests" in line and "no answer in 0.3 s" in line for line in caplog.messages] == [
        True
    ]


def test_questions_are_spread_over_replicas(vlm):
    with (
        serving(lambda _: "Final score: 4") as (one, first),
        serving(lambda _: "Final score: 4") as (other, second),
    ):
        vlm("vlm_score", one, other).load(CPU)(draw_pictures(6)[1], make_prompts("abcabc"))
    assert (len(first), len(second)) == (3, 3)


REPLIES = {
    "Final score: 4": 4,
    "final score 4": 4,
    '"Final Score: 4.25."': 4.25,
    "**Final score**: **3**/5": 3,
    "Final score: [2]": 2,
    "Final score: 1, no, I take that back. Final score: 2": 2,
    "Final score:\n3\n": 3,
    "Final score: 4,5": None,
    "Final score: 4-5": None,
    "Final score: .5": None,
    "Final score: 42": None,
    "Final score: 4.2.1": None,
    "Final score: \u22123": None,
    "Final score: five": None,
    "4": None,
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), REPLIES.items())
def test_replies_are_read(choice, text, value):
    reward, reply = choice("reward", "vlm_score"), Reply(text=text, finish_reason="stop")
    if value is not None:
        assert parse_number(reply, reward.answer, reward.low, reward.high) == value
    else:
        with pytest.raises(WireError):
            parse_number(reply, reward.answer, reward.low, reward.high)


def test_only_the_key_opens(vlm, monkeypatch):
    monkeypatch.setenv("RIGHT", "s3cret")
    monkeypatch.setenv("WRONG", "secret")
    monkeypatch.delenv("UNSET", raising=False)
    with serving(lambda _: "Final score: 4", key="s3cret") as (url, _):
        assert vlm("vlm_score", url, token="RIGHT").load(CPU)(
            draw_pictures(1)[1], make_prompts("a")
        ).total.tolist() == [0.75]
        for token, words in {
            None: "answers 401 no key; give",
            "WRONG": "answers 401",
            "UNSET": "token is the name of an environment variable, and there is none",
        }.items():
            with pytest.raises(ConfigError, match=words):
                vlm("vlm_score", url, token=token).load(CPU)


@pytest.mark.parametrize("name", ["vlm_score", "vlm_win_rate"])
def test_endpoints_that_cannot_be_used_are_refused_at_once(vlm, name):
    with socket.create_server(("127.0.0.1", 0)) as door:
        nobody = f"http://127.0.0.1:{door.getsockname()[1]}/v1"
    with (
        serving(None) as (good, requests),
        serving(None, models=b'{"data": []}') as (empty, _),
        serving(None, models=b"<html>") as (page, _),
    ):
        for urls, changes, words in (
            (
                (good,),
                {"model": "a/jugde"},
                f"model=a/jugde is not at {good}, which has other, a/judge; give one",
            ),
            ((good, empty), {}, f"model=a/judge is not at {empty}, which has none; give"),
            ((page,), {}, f"urls={page} answers what is no list of models; give"),
            (
                (good.removesuffix("/v1"),),
                {},
                "answers 404 nothing; give an OpenAI-compatible endpoint up to /v1",
            ),
            ((nobody,), {}, "; start it there (vllm serve a/judge), or leave it out"),
        ):
            with pytest.raises(ConfigError, match=re.escape(words)) as caught:
                vlm(name, *urls, **changes).load(CPU)
            assert "\n" not in str(caught.value)
    assert requests == []


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("vlm_score", {"urls": []}, "urls=[] is empty; give at least one"),
        ("vlm_score", {"question": "Good?"}, "question='Good?' has no {prompt}; write"),
        ("vlm_score", {"answer": r"score: \d"}, r"answer=score: \d has 0 groups, not one; put"),
        ("vlm_score", {"answer": r"(\d)(\d)"}, r"answer=(\d)(\d) has 2 groups, not one; put"),
        ("vlm_score", {"answer": "("}, "answer=( is not a regular expression ("),
        ("vlm_score", {"low": 5}, "low=5 is not below high=5.0; give"),
        ("vlm_score", {"high": math.inf}, "high=inf is not finite; give"),
        ("vlm_score", {"max_tokens": 0}, "max_tokens=0 is not positive; give"),
        ("vlm_score", {"temperature": -1.0}, "temperature=-1.0 is negative"),
        ("vlm_score", {"connections": 0}, "connections=0 is not positive"),
        ("vlm_win_rate", {"rivals": 3}, "rivals=3 is not 2, 4, 6"),
        ("vlm_win_rate", {"rivals": 0}, "rivals=0 is not 2, 4, 6"),
    ],
)
def test_settings_are_checked(choice, name, changes, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        replace(choice("reward", name), **changes)


def fits(picture, text):
    """Return the exact checker's score of a picture for the known prompt in a text."""
    (prompt,) = [prompt for pair in PAIRS for prompt in pair if prompt.text in text]
    return check_pictures(picture[None] / 255, [prompt]).facts.item()


def mark(request):
    (picture,), text = unpack_pictures(request)
    return f"Final score: {1 + 4 * fits(picture, text)}"


def choose(request):
    (one, other), text = unpack_pictures(request)
    return f"Better picture: {1 if fits(one, text) > fits(other, text) else 2}"


@pytest.mark.parametrize(("name", "judge"), [("vlm_score", mark), ("vlm_win_rate", choose)])
def test_the_self_test_passes_a_model_that_sees(vlm, name, judge):
    with serving(judge) as (url, _):
        reward = vlm(name, url)
        check_reward(reward, reward.load(CPU))


@pytest.mark.parametrize(
    ("name", "judge", "words"),
    [
        (
            "vlm_score",
            lambda _: "Final score: 3",
            "reward gives 0.5 to known pictures, right or wrong",
        ),
        ("vlm_score", lambda _: "Nice.", "nan"),
        (
            "vlm_win_rate",
            lambda _: "Better picture: 1",
            "reward gives 0.5 to known pictures, right or wrong",
        ),
        (
            "vlm_win_rate",
            lambda request: f"Better picture: {3 - int(choose(request)[-1])}",
            "reward gives 0 to a picture of 'a red circle' but 1 to another",
        ),
    ],
)
def test_the_self_test_stops_a_model_that_does_not(vlm, name, judge, words):
    with serving(judge) as (url, _):
        reward = vlm(name, url)
        score = reward.load(CPU)
        with pytest.raises(ConfigError, match=words):
            check_reward(reward, score)


def test_training_on_win_rates(vlm, tmp_path):
    """The mean win rate is always 0.5; an evaluation with one picture per prompt has none."""
    with serving(brighter) as (url, _):
        train(experiment(tmp_path, reward=vlm("vlm_win_rate", url, rivals=2), iterations=1), {})
    first, *_ = read_metrics(tmp_path)
    assert first["reward/vlm_win_rate"] == pytest.approx(0.5)
    assert first["reward/failed"] == 0
    assert first["advantage/zero_std_groups"] < 1
    assert "eval/gold/grey" in first
    assert "eval/proxy/vlm_win_rate" not in first
    assert "eval/failed/proxy" not in first


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.WARNING)
