# SPDX-License-Identifier: LGPL-2.1-or-later
"""A stranger's words become no link, no mention and no formatting, whichever service shows them."""

import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kmodd.notifier.notice import Notice, chat, from_record, letter, plain, subject, unlinked

# What each service makes something of, as its own documentation or parser has it.
LINKS = {
    "an address with a scheme": r"(?i)\b[a-z][a-z0-9+.-]*://",
    "a scheme without slashes": r"(?i)\b(mailto|tel|sip|xmpp|javascript|data):[^\s\u200b]",
    "a bare host": r"(?i)(?<![\w/.-])(?:[\w-]+[.\u3002\uff0e\uff61])+[a-z]{2,}\b",
    "an e-mail address": r"[\w.+-]+@[\w-]+",
}
MARKUP = {
    "Slack: <…>": r"<[^>\n]+>",
    "Slack: entities": r"&(?:[a-z]+|#\d+);",
    "Slack: *bold*": r"\*[^*\s][^*\n]*\*",
    "Slack: ~struck~": r"~[^~\n]+~",
    "Slack, CommonMark: code": r"`[^`\n]+`",
    "Slack, Mattermost: _italic_": r"(?<![^\W_])_[^_\s][^\n]*?_(?![^\W_])",
    "Slack, Mattermost, Discord: @mention": r"@[\w.-]",
    "CommonMark: [text](target)": r"\[[^\]\n]*\]\s*[(\[:]",
    "CommonMark: image": r"!\[",
    "CommonMark: **bold**": r"\*\*|__(?=\S)",
    "CommonMark: heading": r"(?m)^\s{0,3}#{1,6}\s",
    "CommonMark: quotation": r"(?m)^\s{0,3}>",
    "CommonMark: rule": r"(?m)^\s{0,3}(?:[-*_=]\s*){3,}$",
    "CommonMark: escape": r"\\\\[!-/:-@\[-`{-~]",
    "HTML": r"</?[a-zA-Z]",
    "Mattermost: #tag": r"(?:^|\W)#[^\W\d]",
    "Mattermost: ~channel": r"~\w",
    "Discord: ||spoiler||": r"\|\|",
    "tables": r"\|",
    "emoji": r":[\w+-]+:",
}
PIECES = [
    "https://evil.example/login", "http://1.2.3.4/x", "//evil.example", "www.evil.example", "evil.example", "mailto:a@evil.example",
    "tel:112", "javascript:alert(1)", "a@evil.example", "evil\u3002example", "[click](https://evil.example)", "[x][y]", "![i](//e.x/i)",
    "<https://evil.example|click>", "<!channel>", "<@U123>", "<@&99>", "@here", "@everyone", "@channel", "#general", "~town-square",
    "**IT security**", "*bold*", "_italic_", "__x__", "~~gone~~", "`code`", "```", "||spoiler||", "# heading", "> quote", "---", "===",
    ":warning:", "&lt;b&gt;", "<b>x</b>", "\\*", "\n", "\r\n", "\u202e", "\u200b", "“", "”", "\u2028", " ", "_", "*", ":", "/", ".",
    "/etc/x.conf", "/www.evil.example", "/usr/evil.example", "nf_tables", "x" * 30,
]  # fmt: skip
hostile = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=8).map("".join)


def notice(text: str, **changes: Any) -> Notice:
    values: dict[str, Any] = {
        "message": text,
        "reason": text,
        "on_behalf_of": text,
        "hint": text,
        "error": "NoSuchModule",
        "kernel_log": (text, text),
        "module": "dummy",
    }
    return Notice("msg_1", 1_700_000_000_000_000, "failure", "warning", "operation.failed", **{**values, **changes})


def matches(patterns: dict[str, str], text: str) -> list[str]:
    return [f"{name}: {match[0]!r}" for name, pattern in patterns.items() if (match := re.search(pattern, text))]


@pytest.mark.parametrize("piece", [piece for piece in PIECES if matches(LINKS | MARKUP, piece)])
def test_what_a_service_would_make_something_of(piece: str) -> None:
    """The patterns see each of these, and none of them afterwards."""
    assert not matches(LINKS | MARKUP, plain(piece))


def test_the_patterns_are_worth_something() -> None:
    seen = {found.partition(": '")[0] for piece in PIECES for found in matches(LINKS | MARKUP, f"{piece}")}
    assert len(seen) >= len(LINKS | MARKUP) - 3, "each is met by some piece, alone or beside another"


@settings(max_examples=1500, deadline=None)
@example("---.https://evil.example/login")
@given(text=hostile)
def test_a_chat_links_mentions_and_formats_nothing(text: str) -> None:
    shown = chat(notice(text), "web1")
    assert not matches(LINKS | MARKUP, shown)
    assert len(shown.splitlines()) == 1 + 1 * bool(text) * 2 + 2 + 1 * bool(text)


@settings(max_examples=500, deadline=None)
@given(text=hostile)
def test_a_mail_links_nothing(text: str) -> None:
    assert not matches(LINKS, letter([notice(text)], "web1").replace("event: operation.failed", ""))
    assert not matches(LINKS, subject([notice(text)], "web1"))


@given(text=hostile.filter(bool))
def test_a_reason_is_quoted_and_cannot_end_the_quotation(text: str) -> None:
    (line,) = [line for line in chat(notice(text), "web1").splitlines() if line.startswith("reason: ")]
    assert line.startswith("reason: “")
    assert line.endswith("”")
    assert line.count("“") == line.count("”") == 1


def test_names_paths_and_versions_can_still_be_read_and_copied() -> None:
    for text in (
        "nf_tables is in use by nft_ct",
        "see /etc/modprobe.d/kmodd-blacklist.conf:3",
        "kmodctl unload nf_tables --dependents",
        "kernel 6.1.0-18",
    ):
        assert plain(text, paths=True) == text
        assert unlinked(text, paths=True) == text


@pytest.mark.parametrize("event", ["operation.failed", "authorization.denied"])
def test_the_reason_of_an_unauthorized_call_is_not_passed_on(event: str) -> None:
    row = {
        "event": event,
        "message": "there is no module nosuch",
        "uid": 1000,
        "reason": "[URGENT](https://evil.example)",
    }
    refused = from_record(row, "k")
    assert refused is not None
    assert refused.reason == ""
    for authorized in ({"job": "7"}, {"uid": 0}, {"event": "module.loaded"}):
        passed = from_record({**row, **authorized}, "k")
        assert passed is not None
        assert passed.reason == row["reason"]
