# SPDX-License-Identifier: LGPL-2.1-or-later
"""Converts records to journal fields and back: names, escaping and length limits of fields.

Lines are `FIELD=value`, as sd_journal_sendv(3) takes them; a field may be repeated (KMODD_MODULE, KMODD_KERNEL_LOG).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from zlib import crc32

from kmodd.model import HistoryEntry, Record
from kmodd.text import escape

IDENTIFIER = "kmodd"
VALUE_MAX = 1024
"""Bytes of one value as UTF-8."""
LINES_MAX = 32
"""Values of one field that may come several times."""

MESSAGE_IDS: Mapping[str, str] = {
    "module.loaded": "1380ccab429640da9d564b60b71f8e8e",
    "module.unloaded": "8d3fa0ee68a04717838b1915becec8aa",
    "module.reloaded": "dd215c4a6bb8441fba7079ab0a3ea73a",
    "parameter.set": "bdf099f4a478465ca28c33208f5e44e1",
    "module.appeared": "9a8fe519e76840fc8354f60590684bb0",
    "module.disappeared": "3253ebd4ee07471badbd0a9d63a6693e",
    "module.requested": "7c0e3a52f7b94f0c9a61d2b8d5a3e614",
    "module.refused": "d5b1c9f06e5a4c57a3a8f1b27e94c0da",
    "response.begun": "0c9f1d6b3e8a4f52b7d46a1e5c2f9038",
    "response.stopped": "e27b50a4c91d4836a5f08d3c6b74f1e9",
    "response.ended": "61d8f3a27c0b4e95932e5b8a4fd7c016",
    "module.unsigned": "4cc9384570954714935afc1586073dc7",
    "operation.failed": "2c282055a4e84962b9c3a15179c43ac5",
    "operation.stuck": "43eede83190045bc938e3d1122e1d967",
    "operation.crashed": "6866b240ebb34a09adc8486498126956",
    "operation.released": "315555640b5c49a689f1b806316ab36f",
    "operation.unchanged": "721c3358e73f4d269fe3f3fedffd8264",
    "batch.rolled-back": "88c32c7d5e4f453a9527ae2bb9d67a3f",
    "lease.granted": "5f2b8c1d7e0a4c6e9b3d4f7a1c8e2d60",
    "lease.ended": "c4a91e37f6d845b08d2e7b9f3a5c1e84",
    "failure.reset": "85790b62d72e4058926b1bb5e9b45474",
    "configuration.changed": "7d3ff54c74554158a8b6d3d7229f7d9c",
    "policy.applied": "3b9e5d0c7a614f0f8c2d41e6b7f85a92",
    "policy.locked": "be85e666842d43239f5395e4657b7097",
    "authorization.granted": "52358b66bd1b4cd585eec384761866e3",
    "authorization.denied": "4a02b579463b461ab2ce5416ccc081ba",
    "refusals.collapsed": "babe410431894328af160cac0971e6e1",
    "records.collapsed": "5b1e0c7f6d0a4c43a3b5f3f0a7a1d9c2",
    "store.imported": "9f10a07d3f3840a1bb890dc671df27cf",
    "store.activated": "39f3a720f8ea41b4a728622337d2a753",
    "store.deactivated": "a618398c2df545e78edcb88a9fdd1195",
    "store.removed": "8e5da19ecd6d45b2b70b81e74f717c35",
    "store.recovered": "187f0fd1f0774598b3f5f85fd1526587",
    "health.changed": "9a2dec00277940f286a23d7c92d3c977",
    "configuration.refused": "3c5fd3a4b2bb4c0a9d6e2f0e6c1b7a58",
    "desired.failed": "b0a9e0de57d14c5fa5c9a6a1c0f9f1d2",
    "desired.applied": "6f0c6d3fd6c44b8e8a3b40d5a98c1e77",
    "daemon.started": "18f026fb4a5b424ba0ba2373178c5af9",
    "daemon.stopped": "fc16b0d1edc34ecb978edaa1b1da716d",
    "daemon.reloaded": "7b7e11a9943148ff888e590a9b05d369",
    "daemon.trouble": "450de2029d1749469d8deff2a02c74e6",
    "daemon.bug": "2f59f83a9d3d40538058a8976842f703",
    "gateway.started": "24047adcda101d14a555734d69007e96",
    "gateway.stopped": "3e4db7d1793f88fee48061f16230c2ce",
    "gateway.operation": "4011ad673826bd5325a08994e15f148a",
    "gateway.refused": "50c103679b3983948e13fd532cfe677e",
    "gateway.trouble": "e616c27853b238ac8ad8147c7667c28f",
    "notifier.started": "92750b99505c424bb11bdd22f3047938",
    "notifier.trouble": "3b7342223b154bd29581bb49d0ccb1b1",
    "notifier.delayed": "7e55d361854041b1a65e290a0c51ace4",
    "notifier.recovered": "d11a2ac74d124e79b101ddf5e8cbd86c",
    "notifier.disabled": "9d5cf4a246d24dcfbbf1975ec8c2f202",
    "notifier.dropped": "fb30c000d1354a10a69d817bfa4f8f4f",
    "notifier.managed": "81a8d746c5ea48368cc56a2bbcaaddb3",
    "notifier.refused": "bd8f7bb7127147749930c263fda55aeb",
    "agent.started": "c2cf173fe77d42c7833d5c70878438c6",
    "agent.changed": "ab8ea4c62e6b48c19330d1dc75aece1a",
    "agent.failed": "3fe48bcf14df45ccb4280d6fd9237b80",
    "agent.refused": "bdfff1f6eae3418d820c549ee452f72d",
    "agent.trouble": "86fb408150ab4e26be0e6a3babc96fa4",
    "agent.recovered": "77315c555c124fb28cb007685cde4ee6",
    "coordinator.waiting": "ff2ac943f0734a2e9112b3fd4769393e",
    "coordinator.started": "8e625e4fc6fd44ba8ee98fa8b3dcfff7",
    "coordinator.stopped": "8fe4fda77032480a864f55bd58959576",
    "coordinator.metrics": "5a6c1dc1e77a40e0a9671a06ef94a84b",
    "coordinator.trouble": "a4de2832516e4f24b295e68191872f62",
    "journal.dropped": "e40c385361814eed937612baebbeb76e",
}
"""The stable identifier of each kind of event; systemd/kmodd.catalog explains every one of them."""

_TEXTS = {
    "KMODD_ACTION": "action",
    "KMODD_RESULT": "result",
    "KMODD_ERROR": "error",
    "KMODD_SENDER": "sender",
    "KMODD_EXE": "exe",
    "KMODD_REASON": "reason",
    "KMODD_JOB": "job",
    "KMODD_HINT": "hint",
    "KMODD_ON_BEHALF_OF": "on_behalf_of",
}
_NUMBERS = {
    "KMODD_UID": "uid",
    "KMODD_LOGINUID": "login_uid",
    "KMODD_DURATION_USEC": "duration_usec",
    "KMODD_ERRNO": "errno",
}
_OWN = frozenset({*_TEXTS, *_NUMBERS, "KMODD_EVENT", "KMODD_MODULE", "KMODD_KERNEL_LOG", "KMODD_KERNEL_LOG_ORDER"})
_ORDER = "KMODD_KERNEL_LOG_ORDER"
"""What each line of the kernel's log is known by, in order: a journal file has the fields of an entry in the order in which they
were first written to it by any entry, and equal ones once."""
_NAME_CHARS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


def clean(value: str) -> str:
    """Escape what a terminal or a person could be fooled by, and cut at 1 KiB."""
    value = escape(value[: VALUE_MAX + 1])
    if len(value) * 4 > VALUE_MAX:
        data = value.encode()
        if len(data) > VALUE_MAX:
            value = data[: VALUE_MAX - 3].decode(errors="ignore") + "…"
    return value


def to_lines(record: Record, identifier: str = IDENTIFIER) -> list[str]:
    """Spell a record of the program of this identifier; empty fields are left out."""
    lines = [
        f"MESSAGE={clean(record.message)}",
        f"PRIORITY={record.priority}",
        f"SYSLOG_IDENTIFIER={identifier}",
        f"KMODD_EVENT={clean(record.event)}",
    ]
    message_id = MESSAGE_IDS.get(record.event)
    if message_id is not None:
        lines.append(f"MESSAGE_ID={message_id}")
    # A record about several modules can be found by each of them.
    lines += [f"KMODD_MODULE={clean(name)}" for name in record.names[:LINES_MAX]]
    lines += [f"{field}={clean(text)}" for field, name in _TEXTS.items() if (text := getattr(record, name))]
    lines += [
        f"{field}={number:d}" for field, name in _NUMBERS.items() if (number := getattr(record, name)) is not None
    ]
    log = [clean(line) for line in record.kernel_log[:LINES_MAX]]
    lines += [f"KMODD_KERNEL_LOG={line}" for line in log]
    if len(log) > 1:
        lines.append(f"{_ORDER}={' '.join(map(_mark, log))}")
    lines += [f"KMODD_{name}={clean(text)}" for name, text in record.extra.items() if _is_extra(name)]
    return lines


def from_fields(fields: Mapping[str, object], time: int) -> HistoryEntry:
    """Rebuild a record from what a journal reader gives: values are texts, numbers, bytes, or lists of them."""
    record = Record(
        event=_text(fields.get("KMODD_EVENT")),
        message=_text(fields.get("MESSAGE")),
        kernel_log=_in_order(_texts(fields.get("KMODD_KERNEL_LOG")), _text(fields.get(_ORDER))),
        priority=_number(fields.get("PRIORITY")) or 6,
        extra={
            field.removeprefix("KMODD_"): _text(value)
            for field, value in fields.items()
            if field.startswith("KMODD_") and field not in _OWN
        },
    )
    texts: dict[str, str] = {name: _text(fields.get(field)) for field, name in _TEXTS.items()}
    record = replace(
        record,
        **texts,  # type: ignore[arg-type] # every name in the table is a text
        uid=_number(fields.get("KMODD_UID")),
        login_uid=_number(fields.get("KMODD_LOGINUID")),
        duration_usec=_number(fields.get("KMODD_DURATION_USEC")),
        errno=_number(fields.get("KMODD_ERRNO")),
    )
    return HistoryEntry(time, record.about(_texts(fields.get("KMODD_MODULE"))))


def _is_extra(name: str) -> bool:
    # A name is constant text of ours; this keeps a mistake from forging another field.
    return bool(name) and _NAME_CHARS.issuperset(name) and f"KMODD_{name}" not in _OWN


def _texts(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str | bytes):
        return (_text(value),)
    if isinstance(value, Sequence):
        return tuple(_text(each) for each in value)
    return (str(value),)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list | tuple):
        return _text(value[-1]) if value else ""
    return "" if value is None else str(value)


def _mark(line: str) -> str:
    return f"{crc32(line.encode()):08x}"


def _in_order(lines: tuple[str, ...], order: str) -> tuple[str, ...]:
    lines_by_mark = {_mark(line): line for line in lines}
    wanted = order.split()
    # Anything else is an older record, or none of ours: as it is.
    return tuple(lines_by_mark[mark] for mark in wanted) if set(wanted) == set(lines_by_mark) else lines


def _number(value: object) -> int | None:
    try:
        return int(_text(value))
    except ValueError:
        return None
