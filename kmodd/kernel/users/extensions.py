# SPDX-License-Identifier: LGPL-2.1-or-later
"""What matches and targets of x_tables hold besides their own module, by what a rule says about them.

The structures are those of linux/netfilter/xt_CT.h and linux/netfilter/xt_set.h; their first fields are alike in all revisions.
"""

import struct
import sys
from collections.abc import Callable, Collection

_BRIDGE = "ebt"
_LOGGERS = {"LOG": 0, "NFLOG": 1}
"""NF_LOG_TYPE_LOG and NF_LOG_TYPE_ULOG: nf_logger_find_get in net/netfilter/nf_log.c takes the logger's module."""
_INET, _IP, _IP6 = 1, 2, 10
_HELPER = struct.Struct("@12x16s")
"""struct xt_ct_target_info: flags, zone, events, expected events, name of the helper."""
_SET_SIZE = 4
"""struct xt_set_info: index, dimension, flags."""
_NO_SET = 0xFFFF
_SETS = {"set": 1, "SET": 3}
"""How many of them a match and a target begin with."""


def modules_of_extension(
    extension: str, prefixes: Collection[str], loaded_of: Callable[[str], frozenset[str]]
) -> frozenset[str]:
    """The modules that may have a match or target of this name; `loaded_of` answers the loaded ones with an alias or a name.

    One of the bridge's own goes before one that is for all families (xt_find_match in net/netfilter/x_tables.c): for the others
    one module has those of several.
    """
    own = frozenset[str]().union(*(loaded_of(f"{prefix}_{extension}") for prefix in prefixes))
    return own if own and _BRIDGE in prefixes else own | loaded_of(f"xt_{extension}")


def further_aliases(extension: str, family: int, data: bytes) -> tuple[str, ...]:
    """Aliases of the modules that an extension takes by its arguments; `family` is a number of netfilter."""
    if extension in _LOGGERS:
        families = (_IP, _IP6) if family == _INET else (family,)
        return tuple(f"nf-logger-{each}-{_LOGGERS[extension]}" for each in families)
    if extension == "CT" and len(data) >= _HELPER.size:
        name = _HELPER.unpack_from(data)[0].split(b"\0", 1)[0].decode(errors="replace")
        return (f"nfct-helper-{name}",) if name else ()
    return ()


def referred_sets(extension: str, data: bytes) -> tuple[int, ...]:
    """The indices of the sets of ipset that a rule refers to, which cannot be destroyed before it."""
    parts = [data[place * _SET_SIZE :][:2] for place in range(_SETS.get(extension, 0))]
    indices = (int.from_bytes(part, sys.byteorder) for part in parts if len(part) == 2)
    return tuple(index for index in indices if index != _NO_SET)
