# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The command line: a run with its bounds, its phases from standard input, its table and its line of JSON."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import ssl
import sys
from collections.abc import Sequence
from typing import Any

from plainkube_load.clients import Load, Settings
from plainkube_load.outcomes import table
from plainkube_load.targets import Refused, Target, parse

LONGEST_SECONDS = 900


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line says."""
    usual = Settings()
    parser = argparse.ArgumentParser(
        description=__import__("plainkube_load").__doc__,
        epilog="Ends with 0 when nothing was lost, 1 when something was, 2 when it did not begin.",
    )
    parser.add_argument("targets", nargs="+", metavar="URL", help="http(s)://ADDRESS[:PORT]; clients take turns")
    parser.add_argument("--name", default=usual.name, help="host name of all requests (default: %(default)s)")
    parser.add_argument("--trust", metavar="FILE", help="the authority of https targets, PEM")
    for field, text in (
        ("gets", "keep-alive clients that GET"),
        ("posts", "keep-alive clients that POST"),
        ("fresh", "clients that open a connection for each request"),
        ("websockets", "websockets that live through the run"),
        ("events", "listeners to server-sent events"),
    ):
        parser.add_argument(f"--{field}", type=int, default=getattr(usual, field), metavar="COUNT", help=text)
    parser.add_argument("--slow-seconds", type=float, default=0, help="length of one upload and one answer; 0: none")
    parser.add_argument(
        "--stream-seconds", type=float, default=0, help="streams leave by themselves after this; 0: at the end"
    )
    parser.add_argument("--seconds", type=float, default=30, help="length of the run (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=usual.most_requests, help="the run ends after so many")
    parser.add_argument(
        "--pauses", default="20-50", metavar="FROM-TO", help="milliseconds between requests of a client"
    )
    parser.add_argument("--phase", default="all", help="name of the first phase")
    parser.add_argument(
        "--control", action="store_true", help="read lines from standard input: 'phase NAME'; its end stops the run"
    )
    return parser.parse_args(words)


def settings_of(options: argparse.Namespace) -> Settings:
    """Return a run's settings. Raises OSError and ValueError."""
    trust = ssl.create_default_context(cafile=options.trust)
    shortest, _dash, longest = options.pauses.partition("-")
    return Settings(
        name=options.name,
        trust=trust,
        gets=options.gets,
        posts=options.posts,
        fresh=options.fresh,
        websockets=options.websockets,
        events=options.events,
        slow_seconds=options.slow_seconds,
        shortest_pause=float(shortest) / 1000,
        longest_pause=float(longest or shortest) / 1000,
        stream_seconds=options.stream_seconds,
        most_requests=options.requests,
    )


async def _follow(load: Load) -> None:
    """Begin phases as standard input says; its end is the end of the run."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().strip():
        word, _space, name = line.partition(" ")
        if word == "phase":
            load.outcomes.begin_phase(name, load.now)
    load.stopping.set()


async def run(targets: list[Target], settings: Settings, seconds: float, phase: str, control: bool) -> dict[str, Any]:
    """Run a load to its end and return its figures."""
    load = Load(targets, settings, phase)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, load.stopping.set)
    ending = loop.call_later(min(seconds, LONGEST_SECONDS), load.stopping.set)
    following = asyncio.create_task(_follow(load)) if control else None
    print("The clients begin.", flush=True)
    await load.run()
    ending.cancel()
    if following:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
    used = os.times()
    return {
        **load.outcomes.figures(load.now),
        "targets": [target.url for target in targets],
        "processor_seconds": round(used.user + used.system, 1),
        "longest_stall_ms": round(load.longest_stall * 1000),
    }


def main(words: Sequence[str] | None = None) -> int:
    """Run a load, and say what was lost."""
    options = arguments(words)
    try:
        targets = [parse(url) for url in options.targets]
        settings = settings_of(options)
    except (Refused, OSError, ValueError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 2
    figures = asyncio.run(run(targets, settings, options.seconds, options.phase, options.control))
    print(table(figures))
    print("\n".join(f"  {sample}" for sample in figures["samples"]))
    print(
        f"{figures['requests']} requests in {figures['seconds']} s, {figures['failed']} failed "
        f"({figures['strict_failed']} for clients that do not look before they send); this program used "
        f"{figures['processor_seconds']} s of a processor and stood still for {figures['longest_stall_ms']} ms at most"
    )
    print(json.dumps(figures))
    return 1 if figures["failed"] else 0
