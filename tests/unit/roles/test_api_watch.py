# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What units share that follow the API: objects by name, as its events say."""

from __future__ import annotations

from typing import Any

import api_watch


def thing(name: str, version: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": version}}


def test_objects_follow_events() -> None:
    items = {name: thing(name, "1") for name in "abc"}
    assert api_watch.apply_event(items, {"type": "DELETED", "object": thing("b", "7")}) == "7"
    assert api_watch.apply_event(items, {"type": "ADDED", "object": thing("d", "8")}) == "8"
    assert api_watch.apply_event(items, {"type": "MODIFIED", "object": thing("a", "9")}) == "9"
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "10"}}}
    assert api_watch.apply_event(items, bookmark) == "10"
    assert items == {"a": thing("a", "9"), "c": thing("c", "1"), "d": thing("d", "8")}


def test_an_error_event_asks_for_the_list_anew() -> None:
    items = {"a": thing("a", "1")}
    gone = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "metadata": {}}}
    assert api_watch.apply_event(items, gone) is None
    assert items == {"a": thing("a", "1")}
