# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The load's pure parts: what may be loaded, how outcomes are counted, messages and frames."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from plainkube_load import messages, websocket
from plainkube_load.messages import BrokenOff, Malformed, parse_head
from plainkube_load.outcomes import Outcomes, Tally, percentile, table
from plainkube_load.targets import Refused, Target, parse


def reading(data: bytes, work: Any) -> Any:
    """Do work on a reader to which these bytes came before the end."""

    async def run() -> Any:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        outcome: Coroutine[Any, Any, Any] = work(reader)
        return await outcome

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1", Target("http", "127.0.0.1", 80)),
        ("https://127.1.2.3:8443/", Target("https", "127.1.2.3", 8443)),
        ("https://10.89.77.11", Target("https", "10.89.77.11", 443)),
    ],
)
def test_loopback_and_labs_may_be_loaded(url: str, target: Target) -> None:
    assert parse(url, lambda address: "10.89.77.1") == target


@pytest.mark.parametrize(
    ("url", "source", "words"),
    [
        ("http://192.0.2.1", "192.0.2.9", "neither loopback nor in the network of a lab"),
        ("http://10.89.77.11", "198.51.100.4", "neither loopback nor in the network of a lab"),
        ("http://10.89.77.11", "", "neither loopback nor in the network of a lab"),
        ("http://localhost", "127.0.0.1", "wanted an IPv4 address instead of a name"),
        ("http://www.example.org", "192.0.2.9", "wanted an IPv4 address instead of a name"),
        ("ftp://127.0.0.1", "127.0.0.1", "wanted http://ADDRESS"),
        ("http://127.0.0.1/path", "127.0.0.1", "without a path"),
        ("http://127.0.0.1:99999", "127.0.0.1", "wanted an IPv4 address"),
    ],
)
def test_nothing_else_is_loaded(url: str, source: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        parse(url, lambda address: source)


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [([], 0.5, 0.0), ([7.0], 0.99, 7.0), ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0), ([1.0, 2.0, 3.0, 4.0], 0.51, 3.0)]
    + [([float(number) for number in range(1, 1001)], share, wanted) for share, wanted in ((0.99, 990.0), (1, 1000.0))],
)
def test_percentiles_are_values_that_were_seen(values: list[float], share: float, wanted: float) -> None:
    assert percentile(values, share) == wanted


def test_strict_counts_what_a_client_loses_that_does_not_look() -> None:
    assert Tally(done=10, failed=2, stale=3).strict == 5


def test_outcomes_are_counted_where_they_end() -> None:
    outcomes = Outcomes("before")
    outcomes.done("get", 0.010)
    outcomes.begin_phase("after", 2.0)
    outcomes.failed("get", "time-out", 3.0, "note")
    outcomes.failed("get", "time-out", 3.5)
    outcomes.of("get").stale += 1
    figures = outcomes.figures(5.0)
    assert [(phase["phase"], phase["seconds"]) for phase in figures["phases"]] == [("before", 2.0), ("after", 3.0)]
    before, after = (phase["kinds"]["get"] for phase in figures["phases"])
    assert (before["done"], before["failed"], before["p99_ms"]) == (1, 0, 10.0)
    assert (after["done"], after["failed"], after["strict_failed"], after["reasons"]) == (0, 2, 3, {"time-out": 2})
    assert (figures["failed"], figures["strict_failed"]) == (2, 3)
    assert figures["samples"] == ["   3.00 s after: get: time-out (note)", "   3.50 s after: get: time-out"]
    assert table(figures).splitlines()[2].split()[:5] == ["after", "get", "0", "2", "3"]
    assert table(figures).endswith("time-out 2")


@pytest.mark.parametrize(
    ("head", "closes"),
    [
        ("HTTP/1.1 200 OK\r\n\r\n", False),
        ("HTTP/1.1 200 OK\r\nConnection: keep-alive, Close\r\n\r\n", True),
        ("HTTP/1.0 200 OK\r\n\r\n", True),
        ("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n\r\n", False),
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", True),
    ],
)
def test_an_announced_end_is_understood(head: str, closes: bool) -> None:
    assert parse_head(head.encode()).says_close is closes


@pytest.mark.parametrize(
    "raw", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", b"\x16\x03\x01\r\n\r\n"]
)
def test_what_is_no_http_is_said_to_be_none(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse_head(raw)


@pytest.mark.parametrize(
    ("head", "rest", "body"),
    [
        ("Content-Length: 5", b"hello...", b"hello"),
        ("Transfer-Encoding: chunked", b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n...", b"hello"),
        ("Server: x", b"hello", b"hello"),
    ],
)
def test_bodies_end_where_the_message_says(head: str, rest: bytes, body: bytes) -> None:
    message = parse_head(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode())
    assert reading(rest, lambda reader: messages.read_all(reader, message)) == body


@pytest.mark.parametrize(("head", "rest"), [("Content-Length: 5", b"hell"), ("Transfer-Encoding: chunked", b"5\r\nhe")])
def test_a_body_that_breaks_off_is_noticed(head: str, rest: bytes) -> None:
    message = parse_head(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode())
    with pytest.raises(BrokenOff):
        reading(rest, lambda reader: messages.read_all(reader, message))


@pytest.mark.parametrize(("raw", "begun"), [(b"", False), (b"HTTP/1.1 200", True)])
def test_it_is_known_whether_an_answer_had_begun(raw: bytes, begun: bool) -> None:
    with pytest.raises(BrokenOff) as caught:
        reading(raw, messages.read_head)
    assert caught.value.begun is begun


def test_the_handshake_is_that_of_the_standard() -> None:
    assert websocket.accept_of("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize("payload", [b"", b"Hello", b"x" * 126, b"x" * 5000])
@pytest.mark.parametrize("mask", [b"", b"\x37\xfa\x21\x3d"])
def test_frames_come_back_as_they_were(payload: bytes, mask: bytes) -> None:
    frame = websocket.Frame(websocket.TEXT, payload)
    assert reading(websocket.render(frame, mask), websocket.read) == frame


def test_a_masked_frame_is_that_of_the_standard() -> None:
    frame = websocket.Frame(websocket.TEXT, b"Hello")
    assert websocket.render(frame, b"\x37\xfa\x21\x3d") == bytes.fromhex("818537fa213d7f9f4d5158")


def test_a_closing_frame_says_why() -> None:
    assert websocket.closing(1001).reason == "1001"
    with pytest.raises(BrokenOff):
        reading(websocket.render(websocket.closing(1001))[:-1], websocket.read)
