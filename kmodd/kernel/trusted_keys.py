# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose keys the kernel holds: the X.509 certificates that /proc/keys lists (crypto/asymmetric_keys/asymmetric_type.c).

The list tells names and not which keyring a key is in, and root may not verify with these keys: it serves to say which key is
missing after the kernel refused, and no more. Signatures name the issuer of the certificate, keys the subject; for keys that
people make for their own modules the two are one.
"""

import re
from pathlib import Path

from kmodd.kernel.smallfile import read_bytes, shown

KEYS_MAX = 64
_SIZE_MAX = 1 << 20
# Serial, flags, uses, expiry, permissions, uid, gid, type (cut to nine letters), name, key id, algorithm.
_CERTIFICATE = re.compile(r"^(?:\S+\s+){7}asymmetri\s+(.*): [0-9a-f]{8,}: X509\.\S+ ", re.MULTILINE)


def trusted_keys(root: Path) -> tuple[str, ...]:
    """Names of the certificates, each once, safe to show; empty where root may not see them."""
    text = (read_bytes(root / "proc/keys", _SIZE_MAX) or b"").decode("utf-8", "replace")
    names = (shown(name.strip(), 128) for name in _CERTIFICATE.findall(text))
    return tuple(dict.fromkeys(names))[:KEYS_MAX]
