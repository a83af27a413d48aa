# SPDX-License-Identifier: LGPL-2.1-or-later
"""A notice, made from a record of the daemon's history or from a condition, and its text for chat and mail.

Most text in a notice comes from others: a caller's reason, an alias, a line of the kernel log with the name a user gave a
process. Receivers turn such text into links, mentions and formatting, each service in its own way, so it is escaped in a way
that works for all of them, and a caller's text is quoted and attributed.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any, Self

from kmodd.fast_dataclass import dataclass
from kmodd.text import escape

SEVERITIES = ("info", "notice", "warning", "error")
KINDS = (
    "load",
    "unload",
    "failure",
    "crash",
    "stuck",
    "health",
    "drift",
    "unsigned",
    "store",
    "denied",
    "refused",
    "response",
    "test",
)
"""What a rule may name under `events`; `test` is sent by hand."""

_KINDS: Mapping[str, tuple[str, str]] = {
    "module.loaded": ("load", "info"),
    "module.reloaded": ("load", "info"),
    "module.appeared": ("load", "info"),
    "module.unloaded": ("unload", "info"),
    "module.disappeared": ("unload", "info"),
    "module.unsigned": ("unsigned", "warning"),
    "operation.failed": ("failure", "warning"),
    "operation.crashed": ("crash", "error"),
    "operation.stuck": ("stuck", "error"),
    "operation.released": ("stuck", "notice"),
    "desired.failed": ("failure", "warning"),
    "health.changed": ("health", "warning"),
    "authorization.denied": ("denied", "warning"),
    "module.refused": ("refused", "notice"),
    "refusals.collapsed": ("denied", "warning"),
    "policy.locked": ("health", "notice"),
    "response.begun": ("response", "notice"),
    "response.stopped": ("response", "warning"),
    "response.ended": ("response", "notice"),
}
"""Kind and severity by the event's name in the journal."""
_HEALTH = {"ok": "notice", "degraded": "warning", "failing": "error"}
_UNAUTHORIZED = frozenset({"authorization.denied", "module.refused", "operation.failed", "refusals.collapsed"})
"""Events of requests that end before authorization, unless they belong to a job or are root's."""
_IDENTITY = frozenset(
    {"time", "event", "message", "module", "action", "result", "error", "uid", "sender", "exe", "reason", "job", "duration-usec",
     "errno", "kernel-log", "hint", "on-behalf-of", "login-uid"}
)  # fmt: skip
"""Keys of a record that tell it from others: what a newer daemon adds to its answer makes no new record of it."""
LOG_MAX = 20
"""Lines of the kernel's log that are passed on."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One event, in plain values: it is kept as JSON until everyone has it."""

    id: str
    """Stays the same over retries, restarts and endpoints."""
    time: int
    """Microseconds since the epoch."""
    kind: str
    severity: str
    event: str
    """As in the journal, such as `module.loaded`."""
    message: str
    module: str = ""
    """The module, or the requested alias; of several modules their names, separated by spaces, for people."""
    action: str = ""
    result: str = ""
    error: str = ""
    uid: int | None = None
    on_behalf_of: str = ""
    reason: str = ""
    job: str = ""
    """Empty for what was refused before it became an operation."""
    errno: int | None = None
    kernel_log: tuple[str, ...] = ()
    hint: str = ""
    names: tuple[str, ...] = ()
    """Of several modules each."""

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules it is about, or the alias."""
        return self.names or ((self.module,) if self.module else ())

    def dump(self) -> str:
        """As JSON, without what is empty."""
        values = {key: value for key, value in asdict(self).items() if value not in ("", None, ())}
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Undo `dump`. What a newer version wrote besides is passed over: a queue outlives the return to an older one."""
        names = {field.name for field in fields(cls)}
        values = {name: value for name, value in json.loads(text).items() if name in names}
        values["kernel_log"] = tuple(values.get("kernel_log", ()))
        values["names"] = tuple(values.get("names", ()))
        return cls(**{"message": "", **values})


def identifier(key: str) -> str:
    """The id of a message, from what makes the event this one and no other."""
    return "msg_" + hashlib.sha256(key.encode()).hexdigest()[:32]


def record_key(row: Mapping[str, Any], nth: int = 0) -> str:
    """What tells one record of the history from all others; `nth` counts equal ones."""
    keys = {key: value for key, value in row.items() if key in _IDENTITY}
    return json.dumps([nth, keys], sort_keys=True, separators=(",", ":"))


def from_record(row: Mapping[str, Any], key: str) -> Notice | None:
    """The notice that a row of `GetHistory` is worth; None for most of the daemon's own affairs."""
    event = _text(row, "event")
    kind, severity = _KINDS.get(event, ("", ""))
    if event.startswith("store."):
        kind, severity = "store", "notice"
    elif event.startswith("drift."):
        kind, severity = "drift", "warning"
    if not kind:
        return None
    if kind == "health":
        severity = _HEALTH.get(_text(row, "result"), severity)
    return Notice(
        id=identifier(key),
        time=_number(row, "time") or 0,
        kind=kind,
        severity=severity,
        event=event,
        message=_text(row, "message"),
        module=_text(row, "module"),
        action=_text(row, "action"),
        result=_text(row, "result"),
        error=_text(row, "error"),
        uid=_number(row, "uid"),
        on_behalf_of=_text(row, "on-behalf-of"),
        # Any local user can have such a request refused, and what it says would be read by every administrator.
        reason=_text(row, "reason") if _is_authorized(row) else "",
        job=_text(row, "job"),
        errno=_number(row, "errno"),
        kernel_log=_texts(row, "kernel-log")[:LOG_MAX],
        hint=_text(row, "hint"),
        names=modules if len(modules := _texts(row, "modules")) > 1 else (),
    )


def _is_authorized(row: Mapping[str, Any]) -> bool:
    return _text(row, "event") not in _UNAUTHORIZED or _text(row, "job") != "" or _number(row, "uid") == 0


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key, "")
    return value if isinstance(value, str) else ""


def _texts(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = row.get(key, ())
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()


def _number(row: Mapping[str, Any], key: str) -> int | None:
    value = row.get(key)
    return value if isinstance(value, int) else None


SUBJECT_MAX = 160
_MARKS = {"info": "\N{INFORMATION SOURCE}", "notice": "\N{INFORMATION SOURCE}", "warning": "\N{WARNING SIGN}"}
_ERROR = "\N{CROSS MARK}"

# No escape is understood by all of them (Slack has no backslash, the others no entities), so each character that one of them gives a
# meaning becomes one that looks like it. Slack: docs.slack.dev/messaging/formatting-message-text; Mattermost, Rocket.Chat and
# Teams: CommonMark with `@`, `#` and `~` mentions; Discord: CommonMark with `||` and `<…>`.
_LOOKALIKES = str.maketrans(
    {
        "[": "\N{FULLWIDTH LEFT SQUARE BRACKET}",
        "]": "\N{FULLWIDTH RIGHT SQUARE BRACKET}",
        "(": "\N{FULLWIDTH LEFT PARENTHESIS}",
        ")": "\N{FULLWIDTH RIGHT PARENTHESIS}",
        "*": "\N{ASTERISK OPERATOR}",
        "~": "\N{TILDE OPERATOR}",
        "`": "\N{MODIFIER LETTER GRAVE ACCENT}",
        "|": "\N{DIVIDES}",
        "<": "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}",
        ">": "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}",
        "@": "\N{FULLWIDTH COMMERCIAL AT}",
        "#": "\N{FULLWIDTH NUMBER SIGN}\N{ZERO WIDTH SPACE}",
        "&": "\N{FULLWIDTH AMPERSAND}",
        "!": "\N{FULLWIDTH EXCLAMATION MARK}",
        "\\": "\N{SET MINUS}",
    }
)
_GAP = "\N{ZERO WIDTH SPACE}"
# Between two letters or digits `_` has no meaning to any of them, and module names are full of it.
_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
_EMOJI = re.compile(r":(?=[\w+-]+:)")
_SCHEME = re.compile(r"(?i)(?<=[a-z])([a-z0-9+.-]*:)(?=[^\s\d])|(\btel:)|(:)(?=/)")
_RULE = re.compile(r"[-=+]{3,}")
_SLASHES = re.compile(r"/(?=/)")
# `name.example` is a link to many. A path below folders of root's is none, and is copied from what kmodd itself says.
_DOTS = "[.\\u3002\\uff0e\\uff61]"
_DOMAIN = re.compile(rf"(?<=[\w-]){_DOTS}(?=[^\W\d])")
_PATHS = re.compile(r"(?<!\S)(/(?:etc|usr|lib|sys|proc)(?:/[\w.+-]+)+)(?![^\s:,;])")


def chat(notice: Notice, host: str) -> str:
    """A message for a chat service: nothing in it can link, mention users, or be formatted."""
    lines = [f"{_MARKS.get(notice.severity, _ERROR)} {plain(host)}: {plain(notice.message, paths=True)}"]
    lines += [f"for: {quoted(plain(notice.on_behalf_of))}"] if notice.on_behalf_of else []
    lines += [f"reason: {quoted(plain(notice.reason))}"] if notice.reason else []
    lines += [f"kernel: {plain(line)}" for line in notice.kernel_log[:5]]
    lines += [f"hint: {plain(notice.hint, paths=True)}"] if notice.hint and notice.error else []
    return "\n".join(lines)


def plain(text: str, *, paths: bool = False) -> str:
    """The text with nothing left that a chat service links, takes as a mention or formats; `paths` as for `unlinked`."""
    text = unlinked(text, paths=paths).translate(_LOOKALIKES)
    text = _UNDERSCORE.sub("\N{MODIFIER LETTER LOW MACRON}", text)
    text = _EMOJI.sub(f":{_GAP}", text)
    return _RULE.sub(lambda run: _GAP.join(run[0]), text)


def unlinked(text: str, *, paths: bool = False) -> str:
    """The text in one line, with nothing left that mail programs and chat services take as an address to be followed.

    With `paths`, absolute paths in folders of root's stay as they are: for sentences of kmodd's own.
    """
    parts = _PATHS.split(escape(text)) if paths else [escape(text)]
    parts[::2] = map(_broken, parts[::2])
    return "".join(parts)


def _broken(text: str) -> str:
    text = _SCHEME.sub(lambda match: f"{match[0]}{_GAP}", text)
    text = _SLASHES.sub(f"/{_GAP}", text)
    text = _DOMAIN.sub(lambda match: f"{match[0]}{_GAP}", text)
    return text.replace("@", f"{_GAP}@{_GAP}")


def quoted(text: str) -> str:
    """Foreign text; it cannot end the quotation."""
    for mark in "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}":
        text = text.replace(mark, "'")
    return f"\N{LEFT DOUBLE QUOTATION MARK}{text}\N{RIGHT DOUBLE QUOTATION MARK}"


def subject(notices: Sequence[Notice], host: str) -> str:
    """One line: the gravest, and how many more."""
    worst = max(notices, key=lambda notice: SEVERITIES.index(notice.severity))
    more = f" (and {len(notices) - 1} more)" if len(notices) > 1 else ""
    text = f"[kmodd] {escape(host)}: {unlinked(worst.message)}"
    room = SUBJECT_MAX - len(more)
    return (text if len(text) <= room else text[: room - 1] + "…") + more


def letter(notices: Sequence[Notice], host: str) -> str:
    """A mail's text: one paragraph for each notice, oldest first. Nothing that comes from elsewhere becomes a link."""
    return "\n".join(line for notice in notices for line in (*_paragraph(notice), "")) + f"\n-- \nkmodd on {host}\n"


def _paragraph(notice: Notice) -> list[str]:
    when = datetime.fromtimestamp(notice.time / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    facts = [
        ("event", f"{notice.event} ({notice.severity})"),
        ("error", unlinked(notice.error)),
        ("user", "" if notice.uid is None else f"uid {notice.uid}"),
        ("for", quoted(unlinked(notice.on_behalf_of)) if notice.on_behalf_of else ""),
        ("reason", quoted(unlinked(notice.reason)) if notice.reason else ""),
        *(("kernel", unlinked(line)) for line in notice.kernel_log),
        ("hint", unlinked(notice.hint, paths=True)),
    ]
    return [f"{when}  {unlinked(notice.message, paths=True)}", *(f"    {name}: {text}" for name, text in facts if text)]
