# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which key is missing for a module that the kernel does not trust, and how it gets one."""

from collections.abc import Collection

from kmodd.model.store import ENROL

SIGNER_MAX = 64
KEYS_TOLD = 4


def key_hint(signer: str, keys: Collection[str]) -> str:
    """What to do, with the signer's name and the names of the keys that the kernel holds; both may be unknown (empty)."""
    if not signer:
        return ENROL
    name = "".join(char if char.isprintable() else "\ufffd" for char in signer)[:SIGNER_MAX]
    if signer in keys:
        return (
            f"the kernel has the key of its signer, '{name}': another key of this name signed it, or the file was changed "
            "after signing; sign it again or reinstall its package"
        )
    told = [f"'{key[:SIGNER_MAX]}'" for key in list(keys)[:KEYS_TOLD]]
    more = f" and {len(keys) - KEYS_TOLD} more" if len(keys) > KEYS_TOLD else ""
    known = f"; it has {', '.join(told)}{more}" if told else ""
    return (
        f"the key of its signer, '{name}', is not among the kernel's{known}; enrol its certificate with "
        "`mokutil --import CERT` (in DER form), reboot and confirm, or sign the module with a key the kernel has"
    )
