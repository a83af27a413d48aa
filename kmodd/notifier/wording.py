# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notices as people read them: a line for a chat, a subject and a text for a mail."""

from collections.abc import Sequence
from datetime import UTC, datetime

from kmodd.notifier.notice import SEVERITIES, Notice

SUBJECT_MAX = 160
_MARKS = {"info": "\N{INFORMATION SOURCE}", "notice": "\N{INFORMATION SOURCE}", "warning": "\N{WARNING SIGN}"}
_ERROR = "\N{CROSS MARK}"


def chat(notice: Notice, host: str) -> str:
    """A message for a chat service. What comes from elsewhere can neither mention somebody nor link: Slack and others
    take `<…>` and `&` as markup (https://api.slack.com/reference/surfaces/formatting), many take `@word` as a mention."""
    lines = [f"{_MARKS.get(notice.severity, _ERROR)} {host}: {notice.message}"]
    lines += [f"reason: {notice.reason}"] if notice.reason else []
    lines += [f"kernel: {line}" for line in notice.kernel_log[:5]]
    lines += [f"hint: {notice.hint}"] if notice.hint and notice.error else []
    text = "\n".join(printable(line) for line in lines)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("@", "@\N{ZERO WIDTH SPACE}")


def subject(notices: Sequence[Notice], host: str) -> str:
    """One line: the gravest, and how many more."""
    worst = max(notices, key=lambda notice: SEVERITIES.index(notice.severity))
    more = f" (and {len(notices) - 1} more)" if len(notices) > 1 else ""
    text = printable(f"[kmodd] {host}: {worst.message}")
    room = SUBJECT_MAX - len(more)
    return (text if len(text) <= room else text[: room - 1] + "…") + more


def letter(notices: Sequence[Notice], host: str) -> str:
    """A mail's text: one paragraph for each notice, oldest first."""
    return "\n".join(line for notice in notices for line in (*_paragraph(notice), "")) + f"\n-- \nkmodd on {host}\n"


def _paragraph(notice: Notice) -> list[str]:
    when = datetime.fromtimestamp(notice.time / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    facts = [
        ("event", f"{notice.event} ({notice.severity})"),
        ("error", notice.error),
        ("user", "" if notice.uid is None else f"uid {notice.uid}"),
        ("for", notice.on_behalf_of),
        ("reason", notice.reason),
        *(("kernel", line) for line in notice.kernel_log),
        ("hint", notice.hint),
    ]
    return [f"{when}  {printable(notice.message)}", *(f"    {name}: {printable(text)}" for name, text in facts if text)]


def printable(text: str) -> str:
    """Control characters, line breaks and bidirectional marks become spaces."""
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)
