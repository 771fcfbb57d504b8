"""Remote scores equal local ones bit by bit; what cannot be scored is a failure, never a score."""

import asyncio
import json
import logging
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from unittest.mock import Mock

import httpx2
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from toy import Grey, experiment, read_metrics

from grpo_guard.command import serve as script
from grpo_guard.console import cli
from grpo_guard.remote.wire import (
    Offer,
    WireError,
    pack_offer,
    pack_request,
    pack_rewards,
    unpack_request,
    unpack_rewards,
)
from grpo_guard.reward import make_rewards, rewards_from_parts
from grpo_guard.reward.remote import Remote, split_prompts
from grpo_guard.schema import ConfigError, RunError, component
from grpo_guard.serve import ReadyService, Service
from grpo_guard.serve.batching import Job, group_jobs
from grpo_guard.train import train
from grpo_guard.types import Clause, Prompt, Rewards

CPU = torch.device("cpu")


@component
class Toy:
    """Brightness plus a point per letter and clause of the prompt; `seen` keeps the batch sizes."""

    seen: list
    bomb: str = "bomb"

    compares = False

    def accepts(self, prompt):
        return prompt.text != "refused"

    weight_bytes = 0

    def load(self, device):
        def score(images, prompts):
            self.seen.append(len(images))
            assert all(prompt.text != self.bomb for prompt in prompts)
            points = torch.tensor(
                [float(len(prompt.text) + len(prompt.include)) for prompt in prompts]
            )
            return make_rewards(images, toy=images.mean((1, 2, 3)) + points, points=points.double())

        return score


def draw_images(count, seed=0, side=8):
    """Return images whose mean is exact in any order of summation, and different prompts."""
    images = (
        torch.randint(0, 257, (count, 3, side, side), generator=torch.Generator().manual_seed(seed))
        / 256
    )
    clauses = (
        Clause(name="cup", color="red"),
        Clause(name="dog", count=2, position=("left of", 0)),
    )
    return images, [
        Prompt(text="x" * (i + seed), tag="t", include=clauses[: i % 3]) for i in range(count)
    ]


def service(reward=None, **changes):
    settings = {
        "name": "toy",
        "device": "cpu",
        "probe": {"text": "a"},
        "host": "127.0.0.1",
        "port": 0,
        "token": None,
        "batch": 64,
        "wait": 0.002,
        "connections": 100,
        "held": 16,
        "limit": 10**8,
        "timeout": 5.0,
    }
    return Service(reward=reward or Toy(seen=[]), **settings | changes)


def remote(*urls, **changes):
    settings = {
        "token": None,
        "batch": 4,
        "connections": 3,
        "timeout": 10.0,
        "retries": 1,
        "backoff": 0.01,
    }
    return Remote(urls=list(urls), served=Toy(seen=[]), **settings | changes)


@contextmanager
def run_server(*arguments, **changes):
    """Run a server in a thread; yields its address."""
    served = service(*arguments, **changes).open()
    thread = threading.Thread(target=served.run)
    thread.start()
    while not served.server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    yield served.url
    served.server.should_exit = True
    thread.join()


@contextmanager
def run_fake_server(reply, health=None):
    """Run a server that sends what `reply` returns, or nothing if `reply` writes the answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(200, pack_offer(OFFER) if health is None else health)

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            answer = reply(self)
            if answer is not None:
                self.answer(*answer)

        def answer(self, status, body, size=None):
            self.send_response(status)
            self.send_header("content-length", str(size or len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


OFFER = Offer(reward="toy", parts=("toy", "points"), weights={"toy": 1.0}, limit=10**8)


def assert_same(rewards, expected):
    """Compare bit by bit, with the names of parts and their order."""
    assert list(rewards.parts) == list(expected.parts)
    assert rewards.weights == expected.weights
    pairs = [(rewards.total, expected.total), (rewards.failed, expected.failed)]
    for one, other in [
        *pairs,
        *((rewards.parts[name], expected.parts[name]) for name in expected.parts),
    ]:
        assert one.dtype == other.dtype
        assert one.numpy().tobytes() == other.numpy().tobytes()


def assert_all_failed(rewards):
    assert rewards.failed.all()
    assert rewards.total.isnan().all()
    assert list(rewards.parts) == ["toy", "points"]
    assert all(part.isnan().all() for part in rewards.parts.values())


def score_locally(images, prompts):
    return Toy(seen=[]).load(CPU)(images, prompts)


def find_unused_address():
    """Return an address where no server is."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        return f"http://127.0.0.1:{door.getsockname()[1]}"


def host_and_port(url):
    """Return host and port."""
    return "127.0.0.1", int(url.rpartition(":")[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_requests_arrive_bit_by_bit(dtype):
    images = torch.randn(3, 3, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    images.view(-1)[:4] = torch.tensor([math.nan, math.inf, -0.0, 1e-7], dtype=dtype)
    prompts = (
        Prompt(text='ein "Über\nfall"', tag="x"),
        Prompt(
            text="",
            include=(Clause(name="a", count=0, color="red", position=("above", 1), text="q"),),
        ),
        Prompt(text="b", exclude=(Clause(name="c"), Clause(name="d"))),
    )
    arrived_images, arrived_prompts = unpack_request(pack_request(images.transpose(2, 3), prompts))
    assert arrived_images.dtype == dtype
    assert torch.equal(
        arrived_images.view(torch.uint8), images.transpose(2, 3).contiguous().view(torch.uint8)
    )
    assert repr(arrived_prompts) == repr(prompts)


def pack_prompt_fields(**fields):
    """Pack a request for one image whose prompt has these fields."""
    text = json.dumps({"prompts": [fields]}).encode()
    return save(
        {
            "images": torch.zeros(1, 3, 2, 2),
            "json": torch.frombuffer(bytearray(text), dtype=torch.uint8),
        }
    )


MALFORMED = {
    "nothing": b"",
    "text": b"<!DOCTYPE html>",
    "cut": pack_prompt_fields(text="a")[:-3],
    "text in bfloat16": save(
        {"images": torch.zeros(1, 3, 2, 2), "json": torch.zeros(4, dtype=torch.bfloat16)}
    ),
    "a pickle": torch.zeros(1).numpy().dumps(),
    "other tensors": save({"pictures": torch.zeros(1, 3, 2, 2)}),
    "grey": pack_request(torch.zeros(1, 3, 2, 2), [Prompt(text="a")]).replace(
        b"[1,3,2,2]", b"[3,1,2,2]"
    ),
    "a prompt too many": pack_request(torch.zeros(1, 3, 2, 2), [Prompt(text="a")] * 2),
    "no text": pack_prompt_fields(tag="a"),
    "a number": pack_prompt_fields(text=1),
    "unknown key": pack_prompt_fields(text="a", seed=1),
    "no clauses": pack_prompt_fields(text="a", include=3),
    "a bad clause": pack_prompt_fields(text="a", include=[{"name": "b", "position": ["above"]}]),
}  # fmt: skip


@pytest.mark.parametrize(("height", "width"), [(1, 33), (64, 1), (520, 16_640)])
def test_pictures_that_would_fill_the_memory_are_refused(height, width):
    """A scorer that enlarges the shorter side to 224 px would make far more of the other."""
    images = torch.zeros(1, 3, 1, 1, dtype=torch.float16).expand(1, 3, height, width)
    body = pack_request(images, [Prompt(text="a")])
    with pytest.raises(WireError, match=r"a side has at most 16384 px, and 32 times those of the"):
        unpack_request(body)


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed_requests_are_refused(body):
    with pytest.raises(WireError):
        unpack_request(body)


def test_a_total_that_is_no_number_has_failed():
    total = torch.tensor([1.0, math.inf, math.nan, 2.0])
    parts = {"toy": total, "points": total}
    sent = Rewards(
        total=total, parts=parts, weights={}, failed=torch.tensor([False, False, False, True])
    )
    received = unpack_rewards(pack_rewards(sent), 4, OFFER)
    assert received.failed.tolist() == [False, True, True, True]
    assert received.total.isnan().tolist() == [False, True, True, True]
    assert received.parts["toy"][1] == math.inf


def test_scores_are_the_local_ones():
    images, prompts = draw_images(11)
    images[5, 0, 0, 0] = math.nan
    with run_server() as url:
        rewards = remote(url).load(CPU)(images, prompts)
    expected = score_locally(images, prompts)
    assert_same(rewards, expected)
    assert expected.failed.sum() == 1
    assert len(expected.total.unique()) == 11


@component
class Talkative(Toy):
    """Notes the prompts of some images."""

    def load(self, device):
        quiet = Toy.load(self, device)

        def score(images, prompts):
            notes = tuple((p.text, "é\ud800" + "!" * 300) if p.tag else () for p in prompts)
            return replace(quiet(images, prompts), notes=notes)

        return score


def test_notes_arrive_with_their_images(caplog):
    """Each client gets its own notes, shortened; an image without a score has none."""
    calls = [draw_images(5 + seed, seed) for seed in range(6)]
    calls[0][1][4] = Prompt(text="bomb")
    with run_server(Talkative(seen=[]), wait=0.05) as url, ThreadPoolExecutor(6) as clients:
        results = list(clients.map(lambda call: remote(url, retries=0).load(CPU)(*call), calls))
    for one, (_, prompts) in zip(results, calls, strict=True):
        expected = [() if p.text == "bomb" else (p.text, "é?" + "!" * 198) for p in prompts]
        assert one.notes == tuple(expected)
    assert results[0].failed.tolist() == [False] * 4 + [True]


NOTES = {
    "no list": {"notes": 3},
    "no lists": {"notes": ["a", "b"]},
    "no text": {"notes": [["a"], [1]]},
    "of one image": {"notes": [["a"]]},
    "no object": ["a", "b"],
}  # fmt: skip


@pytest.mark.parametrize("content", NOTES.values(), ids=NOTES)
def test_malformed_notes_are_refused(content):
    two = {
        "total": torch.zeros(2),
        "failed": torch.zeros(2) > 0,
        "part/toy": torch.zeros(2),
        "part/points": torch.ones(2),
    }
    text = torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)
    assert unpack_rewards(save(two), 2, OFFER).notes == ()
    with pytest.raises(WireError):
        unpack_rewards(save(two | {"notes": text}), 2, OFFER)


def test_pickscore_is_the_local_one(choice):
    images, _ = draw_images(6, side=64)
    prompts = [Prompt(text=text) for text in ["a red circle", "two green stars", ""] * 2]
    reward = choice("reward", "pickscore")
    with run_server(reward, probe={"text": "a"}) as url:
        rewards = replace(remote(url), batch=6).load(CPU)(images, prompts)
    expected = reward.load(CPU)(images, prompts)
    assert_same(rewards, expected)
    assert expected.total.std() > 0.1


@component
class Company(Toy):
    """Score an image by the number of images of its text in the batch."""

    compares = True

    def load(self, device):
        def score(images, prompts):
            texts = [prompt.text for prompt in prompts]
            return rewards_from_parts(
                company=torch.tensor([float(texts.count(text)) for text in texts])
            )

        return score


def test_a_reward_that_compares_gets_whole_groups_and_no_others():
    prompts = [Prompt(text=text) for text in "aaaaabbcc"]
    images, company = torch.rand(9, 3, 4, 4), Company(seen=[])
    with run_server(company, wait=0.2) as url:
        ask = replace(remote(url, batch=4), served=company).load(CPU)
        with ThreadPoolExecutor(2) as both:
            totals = list(both.map(lambda _: ask(images, prompts).total.tolist(), range(2)))
    assert totals == [[5.0] * 5 + [2.0] * 4] * 2


@pytest.mark.parametrize("whole", [False, True])
@given(texts=st.lists(st.sampled_from("abc"), max_size=12), batch=st.integers(1, 5))
def test_chunks_hold_everything_once(texts, batch, whole):
    prompts = [Prompt(text=text) for text in texts]
    chunks = split_prompts(prompts, batch, whole)
    assert [i for part in chunks for i in range(part.start, part.stop)] == list(range(len(texts)))
    for part in chunks:
        assert part.stop - part.start <= batch or (whole and len(set(texts[part])) == 1)
    if whole:
        assert all(texts[part.start] != texts[part.start - 1] for part in chunks[1:])
    else:
        assert len(chunks) == -(-len(texts) // batch)


def test_big_images(caplog):
    images, prompts = draw_images(3, side=928)
    assert images[0].nbytes > 10**7
    with run_server(limit=25 * 10**6) as url:
        assert_same(remote(url, batch=2).load(CPU)(images, prompts), score_locally(images, prompts))
        assert caplog.records == []
        # It would wait for hours if it asked again.
        assert_all_failed(remote(url, batch=3, retries=9, backoff=60).load(CPU)(images, prompts))
        answer = httpx2.post(f"{url}/score", content=iter([b"x" * 10**7] * 3))
    assert "limit=25000000" in caplog.text
    assert (answer.status_code, "limit=25000000" in answer.text) == (413, True)


def test_many_clients_are_scored_together():
    seen, calls = [], [draw_images(3, seed) for seed in range(64)]
    with run_server(Toy(seen=seen), wait=0.05) as url, ThreadPoolExecutor(64) as clients:
        score = remote(url, timeout=60.0, retries=0).load(CPU)
        results = list(clients.map(lambda call: score(*call), calls))
    for one, call in zip(results, calls, strict=True):
        assert_same(one, score_locally(*call))
    assert sum(seen) == 1 + 3 * 64
    assert len(seen) < 64
    assert max(seen) <= 64


def test_what_fails_alone_fails_alone(caplog):
    seen, calls = [], [draw_images(2, seed) for seed in range(4)]
    calls[2][1][0] = Prompt(text="bomb")
    with run_server(Toy(seen=seen), wait=0.5) as url, ThreadPoolExecutor(4) as clients:
        score = remote(url, retries=0).load(CPU)
        results = list(clients.map(lambda call: score(*call), calls))
    assert_all_failed(results.pop(2))
    for one, call in zip(results, [*calls[:2], calls[3]], strict=True):
        assert_same(one, score_locally(*call))
    assert max(seen) > 2
    assert "AssertionError" in caplog.text


def test_only_alike_images_are_stacked():
    def job(count, side=2, dtype=torch.float32):
        return Job(
            images=torch.zeros(count, 3, side, side, dtype=dtype),
            prompts=(),
            is_disconnected=Mock(),
            result=Mock(spec=asyncio.Future),
        )

    jobs = [job(2), job(3), job(1, side=4), job(1), job(9), job(1, dtype=torch.float16), job(2)]
    groups = [[jobs.index(one) for one in group] for group in group_jobs(jobs, 6)]
    assert groups == [[0, 1, 3], [4], [6], [2], [5]]


BAD = {
    "an error": lambda _: (500, b"out of memory"),
    "a refusal": lambda _: (403, b""),
    "elsewhere": lambda _: (302, b""),
    "nothing": lambda _: (200, b""),
    "a page": lambda _: (200, b"<!DOCTYPE html>"),
    "too few": lambda _: (200, pack_rewards(score_locally(*draw_images(1)))),
    "other parts": lambda _: (200, pack_rewards(rewards_from_parts(other=torch.zeros(4)))),
    "whole numbers": lambda _: (
        200,
        save(dict.fromkeys(["total", "failed", "part/toy", "part/points"], FOUR)),
    ),
    "a broken reply": lambda handler: handler.answer(200, b"half", size=100),
    "an endless reply": lambda _: (200, bytes(2**24 + 1)),
}  # fmt: skip
FOUR = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize("reply", BAD.values(), ids=BAD)
def test_bad_replies_are_failures_unless_another_replica_helps(reply, caplog):
    images, prompts = draw_images(8)
    with run_fake_server(reply) as bad, run_server(limit=10**7) as good:
        rewards = remote(bad, retries=0).load(CPU)(images, prompts)
        assert_all_failed(rewards)
        assert [bad in line and line.startswith("8 of 8 images") for line in caplog.messages] == [
            True
        ]
        caplog.clear()
        assert_same(
            remote(bad, good, retries=0).load(CPU)(images, prompts), score_locally(images, prompts)
        )
        assert [line.startswith("0 of 8 images") for line in caplog.messages] == [True]
    assert "\n" not in caplog.messages[0]


@pytest.mark.parametrize("trickle", [False, True])
def test_a_slow_reply_is_a_failure(trickle, caplog):
    done = threading.Event()

    def slow(handler):
        handler.answer(200, b"", size=1000)
        while trickle and not done.wait(0.03):
            handler.wfile.write(b"x")
        done.wait()

    with run_fake_server(slow) as url:
        assert_all_failed(remote(url, timeout=0.3, retries=1).load(CPU)(*draw_images(4)))
        done.set()
    assert [
        ("4 of 4" in line, "2 requests" in line, "in 0.3 s" in line) for line in caplog.messages
    ] == [(True,) * 3]


@pytest.mark.parametrize(("rank", "requests"), [("0", [2, 1]), ("1", [1, 2])])
def test_batches_of_one_request_spread_over_the_replicas(rank, requests, monkeypatch):
    """A group is often one request, and all processes of a run ask the same replicas."""
    monkeypatch.setenv("RANK", rank)
    seen = [], []
    with run_server(Toy(seen=seen[0])) as one, run_server(Toy(seen=seen[1])) as other:
        score = remote(one, other).load(CPU)
        for seed in range(3):
            score(*draw_images(2, seed))
    probes = 1
    assert [len(calls) - probes for calls in seen] == requests


def test_a_dead_replica_loses_nothing(caplog):
    images, prompts = draw_images(12)
    with ExitStack() as stack, run_server() as alive:
        dying = stack.enter_context(run_server())
        score = remote(dying, alive).load(CPU)
        stack.close()
        assert_same(score(images, prompts), score_locally(images, prompts))
    assert [line.startswith("0 of 12") and dying in line for line in caplog.messages] == [True]


@component
class Stuck(Toy):
    """Never answers when it scores for the third time, and sets `is_stuck`."""

    is_stuck: object

    def load(self, device):
        score = super().load(device)

        def stuck(images, prompts):
            if len(self.seen) == 3:
                self.is_stuck.set()
                time.sleep(600)
            return score(images, prompts)

        return stuck


def test_kill_and_restart_lose_nothing(caplog):
    """A server process is killed while it scores, and another one takes its port."""
    fork = get_context("fork")
    stuck, port = fork.Event(), host_and_port(find_unused_address())[1]
    images, prompts = draw_images(24)

    def start(reward):
        process = fork.Process(target=lambda: service(reward, port=port, batch=1).open().run())
        process.start()
        return process

    first = start(Stuck(seen=[], is_stuck=stuck))
    score = remote(f"http://127.0.0.1:{port}", retries=10, backoff=0.1).load(CPU)
    with ThreadPoolExecutor(1) as client:
        future = client.submit(score, images, prompts)
        assert stuck.wait(60)
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        second = start(Toy(seen=[]))
        assert_same(future.result(), score_locally(images, prompts))
    second.terminate()
    second.join()
    assert second.exitcode in (0, -signal.SIGTERM)
    assert [line.startswith("0 of 24") for line in caplog.messages[-1:]] == [True]


def test_a_server_that_is_waited_for_is_named_at_once(caplog):
    down = find_unused_address()
    with pytest.raises(ConfigError, match="cannot be reached"):
        remote(down, retries=2, backoff=0.01).load(CPU)
    (line,) = [line for line in caplog.messages if "asking again" in line]
    assert line.startswith(down)
    assert line.endswith("asking again for 0.03 s")


@pytest.fixture
def tokens(monkeypatch):
    monkeypatch.setenv("RIGHT", "s3cret")
    monkeypatch.setenv("WRONG", "secret")
    monkeypatch.setenv("ODD", "s3 crét")
    monkeypatch.delenv("UNSET", raising=False)


def test_only_the_token_opens(tokens):
    images, prompts = draw_images(2)
    with run_server(token="RIGHT") as url:
        assert_same(
            remote(url, token="RIGHT").load(CPU)(images, prompts), score_locally(images, prompts)
        )
        for token in (None, "WRONG"):
            with pytest.raises(
                ConfigError, match=r"answers 401 the token is missing or wrong; give [^\n]+ token="
            ):
                remote(url, token=token).load(CPU)
        for header in ({}, {"authorization": "Bearer"}, {"authorization": "Bearer s3cre"}):
            body = pack_request(images, prompts)
            assert httpx2.post(f"{url}/score", content=body, headers=header).status_code == 401


def test_a_token_must_fit_a_header(tokens):
    with pytest.raises(ConfigError, match="token=ODD "):
        remote("http://127.0.0.1:1", token="ODD").load(CPU)
    with pytest.raises(ConfigError, match="token=ODD "):
        service(token="ODD").open()


@pytest.mark.parametrize("token", ["UNSET", "sk-4f9a", "a b", "é", "9F"])
def test_a_token_in_the_place_of_its_variable_is_not_printed(token, tokens):
    for use in (
        lambda: remote("http://127.0.0.1:1", token=token).load(CPU),
        lambda: service(token=token).open(),
    ):
        with pytest.raises(ConfigError, match=r"^token is the name of an environment") as refusal:
            use()
        assert token not in str(refusal.value)


def test_a_secret_is_refused_before_anything_is_loaded():
    with pytest.raises(ConfigError, match=r"^token is the name of an environment variable"):
        remote("http://127.0.0.1:1", token="sk-4f9a")


def test_bad_requests_are_refused():
    images, _ = draw_images(1)
    bodies = {
        400: MALFORMED["text"],
        422: pack_request(images, [Prompt(text="refused")]),
        500: pack_request(images, [Prompt(text="bomb")]),
        200: pack_request(images, [Prompt(text="a")]),
    }
    with run_server() as url:
        assert {
            code: httpx2.post(f"{url}/score", content=body).status_code
            for code, body in bodies.items()
        } == {code: code for code in bodies}
        assert json.loads(httpx2.get(f"{url}/health").content)["parts"] == ["toy", "points"]


def test_a_request_that_stalls_makes_way():
    """A request that never arrives gives up its only place after the timeout."""
    with (
        run_server(held=1, timeout=0.3) as url,
        socket.create_connection(host_and_port(url)) as stalled,
    ):
        stalled.sendall(b"POST /score HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nxx")
        assert_same(remote(url).load(CPU)(*draw_images(3)), score_locally(*draw_images(3)))
        assert b" 408 " in stalled.recv(100)


def test_more_connections_than_allowed_are_turned_away():
    """Clients that connect and say nothing do not fill the server's memory."""
    with run_server(connections=3) as url:
        silent = [socket.create_connection(host_and_port(url)) for _ in range(3)]
        assert httpx2.get(f"{url}/health").status_code == 503
        for connection in silent:
            connection.close()
        assert_same(
            remote(url, retries=5).load(CPU)(*draw_images(3)), score_locally(*draw_images(3))
        )


def test_servers_that_cannot_be_used_are_refused_at_once():
    with (
        run_server() as one,
        run_server(name="other") as other,
        run_fake_server(None, health=b"<html>") as page,
    ):
        for urls, words in {
            (one, other): "serve different rewards",
            (page,): f"urls={page} answers text that is not JSON; give",
            (find_unused_address(),): "; start scripts/serve_reward.py there, or leave it out",
            (f"{one}/nowhere",): "; give a server of rewards, and token= for its token",
        }.items():
            with pytest.raises(ConfigError, match=re.escape(words)) as caught:
                remote(*urls, retries=0).load(CPU)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (remote, {"urls": []}, "urls=[] is empty; give at least one"),
        (remote, {"urls": "http://a"}, "urls='http://a' is a str"),
        (remote, {"urls": ["a:8000"]}, "urls[0]='a:8000' is not an address"),
        (remote, {"urls": ["http://"]}, "urls=http:// is not an address"),
        (
            remote,
            {"urls": ["http://me:s3cret@a"]},
            "urls[0]='http://...@a' has a name or a password",
        ),
        (remote, {"urls": ["ftp://a"]}, "urls[0]='ftp://a' is not an address"),
        (remote, {"batch": 0}, "batch=0 is not positive"),
        (remote, {"retries": -1}, "retries=-1 is negative"),
        (service, {"host": "0.0.0.0"}, "host=0.0.0.0 lets other machines in; set token="),
        (service, {"host": "example.org"}, "host=example.org lets other machines in"),
        (service, {"device": "tpu"}, "device='tpu' is unknown; choose"),
        (service, {"port": 70000}, "port=70000 is outside"),
        (service, {"limit": 0}, "limit=0 is not positive"),
    ],
)
def test_settings_are_checked(make, changes, words):
    made = make() if make is service else make("http://a")
    with pytest.raises(ConfigError, match=re.escape(words)):
        replace(made, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"probe": {"text": "refused"}}, "probe.text='refused' is not accepted"),
        ({"probe": {"txt": "a"}}, "probe={'txt': 'a'} is not a prompt"),
    ],
)
def test_a_service_that_cannot_start(changes, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        service(**changes).open()


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"port={port} of host=127.0.0.1 cannot be used \(Address already"
        ):
            service(port=port).open()


def test_the_served_reward_says_what_is_accepted():
    assert remote("http://a").accepts(Prompt(text="a"))
    assert not remote("http://a").accepts(Prompt(text="refused"))


def test_a_notebook_scores_remotely():
    """A notebook runs an event loop, within which asyncio starts no other one."""
    images, prompts = draw_images(3)

    async def run_cell(url):
        return remote(url).load(CPU)(images, prompts)

    with run_server() as url:
        assert_same(asyncio.run(run_cell(url)), score_locally(images, prompts))


def test_training_is_as_with_the_reward_itself(tmp_path):
    (tmp_path / "remote").mkdir()
    (tmp_path / "local").mkdir()
    with run_server(Grey()) as url:
        train(experiment(tmp_path / "remote", reward=remote(url, batch=5)), {})
    train(experiment(tmp_path / "local"), {})
    for one, other in zip(
        read_metrics(tmp_path / "remote"), read_metrics(tmp_path / "local"), strict=True
    ):
        steady = {key for key in other if not key.startswith(("time/", "throughput/", "memory/"))}
        assert {key: one[key] for key in steady} == {key: other[key] for key in steady}


def test_training_stops_where_too_many_fail(tmp_path):
    with run_fake_server(BAD["a page"], health=pack_offer(replace_parts("grey"))) as url:
        lost = remote(url, retries=0)
        with pytest.raises(
            RunError, match=r"100.0% of the images could not be scored, over max_failed=0.1"
        ):
            train(experiment(tmp_path, reward=lost), {})


def replace_parts(name):
    return Offer(reward=name, parts=(name,), weights={name: 1.0}, limit=10**8)


def test_the_script_serves_what_is_configured(monkeypatch, capsys):
    met = []
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(
        ReadyService, "run", lambda ready: met.append(ready.offer) or ready.bound_socket.close()
    )
    monkeypatch.setattr(
        sys, "argv", ["serve_reward.py", "reward=statistics", "port=0", "limit=1000"]
    )
    cli.run(script.main)
    assert (met[0].reward, met[0].limit) == ("statistics", 1000)
    assert re.match(
        r"statistics at http://127.0.0.1:\d+: dark_fraction, edge", capsys.readouterr().out
    )
    GlobalHydra.instance().clear()


@pytest.mark.parametrize("name", ["pickscore", "ocr", "geneval", "world", "statistics", "mixture"])
def test_the_configured_probe_is_accepted(name, choice):
    from omegaconf import OmegaConf

    from grpo_guard.remote.wire import unpack_prompt

    probe = OmegaConf.to_container(OmegaConf.load(cli.ROOT / "conf/serve.yaml").probe)
    assert choice("reward", name).accepts(unpack_prompt(probe))


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.WARNING)
