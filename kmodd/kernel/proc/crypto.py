# SPDX-License-Identifier: LGPL-2.1-or-later
"""Algorithms of the kernel's crypto API that something uses, from /proc/crypto, and what is known to use which.

An algorithm that nothing uses has one reference, that of its registration; each use holds its module. Who uses it the kernel does
not say.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from kmodd.fast_dataclass import dataclass
from kmodd.kernel.files import read_text
from kmodd.names import canonical

_TABLE_MAX = 1 << 20
_WORD = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*")
_PARTS = frozenset({"ecb", "ctr", "ghash", "cbcmac", "cryptd"})
"""What templates make of by themselves: gcm(aes) of ctr(aes) and ghash."""
_HASHES = frozenset({"shash", "ahash"})
_ANY = {
    "algif_skcipher": frozenset({"skcipher"}),
    "algif_aead": frozenset({"aead"}),
    "algif_hash": _HASHES,
    "algif_rng": frozenset({"rng"}),
    "dm_crypt": frozenset({"skcipher", "aead", "cipher"}),
    "dm_verity": _HASHES,
    "dm_integrity": _HASHES | {"skcipher"},
}
"""Modules whose users choose any algorithm of these types."""
_CONSUMERS = {
    "bluetooth": "cmac aes ecdh ecdh-nist-p256",
    "cifs": "aes arc4 ccm cmac gcm hmac md4 md5 sha256 sha512",
    "encrypted_keys": "aes cbc hmac sha256",
    "esp4": "authenc aes cbc ccm gcm hmac md5 rfc4106 rfc4309 rfc7539 seqiv sha1 sha256 sha384 sha512 echainiv",
    "esp6": "authenc aes cbc ccm gcm hmac md5 rfc4106 rfc4309 rfc7539 seqiv sha1 sha256 sha384 sha512 echainiv",
    "ah4": "aes cmac hmac md5 sha1 sha256 sha384 sha512 xcbc",
    "ah6": "aes cmac hmac md5 sha1 sha256 sha384 sha512 xcbc",
    "ksmbd": "aes ccm cmac gcm hmac md5 sha256 sha512",
    "libceph": "aes cbc gcm hmac sha256",
    "mac80211": "aes arc4 ccm cmac gcm",
    "macsec": "aes gcm",
    "nfsd": "md5 sha256",
    "nvme_auth": "dh hmac sha256 sha384 sha512",
    "rpcsec_gss_krb5": "aes camellia cbc cmac cts des3_ede hmac md5 sha1 sha256 sha384",
    "rxrpc": "fcrypt pcbc",
    "sctp": "hmac md5 sha1 sha256",
    "tls": "aes ccm chacha20 gcm poly1305 rfc7539 sm4",
    "libcrc32c": "crc32c",
    "ext4": "crc32c",
    "jbd2": "crc32c",
    "btrfs": "blake2b-256 crc32c sha256 xxhash64",
}
"""Modules that use algorithms of the kernel, with the words of which their names are made (crypto_alloc_ in their sources)."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One that is in use."""

    name: str
    driver: str
    module: str
    type: str
    uses: int

    @property
    def words(self) -> frozenset[str]:
        """The templates and algorithms of which it is made: `xts(aes)` of `xts` and `aes`."""
        return frozenset(_WORD.findall(self.name))


class Algorithms:
    """The table is read when it is first needed."""

    def __init__(self, root: Path, loaded: Mapping[str, int], crowded: Callable[[], None] = lambda: None) -> None:
        """`loaded` are the modules that are looked for, with the references that no module holds; `crowded` is called where there are
        more algorithms than are read.
        """
        self._root = root
        self._loaded = loaded
        self._crowded = crowded

    @cached_property
    def used(self) -> tuple[Algorithm, ...]:
        """Those that something uses, of modules and of the kernel itself."""
        table = read_text(self._root / "proc/crypto", _TABLE_MAX) or ""
        if len(table) >= _TABLE_MAX - 1:
            self._crowded()
        algorithms: list[Algorithm] = []
        for entry in table.split("\n\n"):
            lines = (line.partition(":") for line in entry.splitlines())
            fields = {key.strip(): value.strip() for key, _, value in lines}
            count, module = fields.get("refcnt", ""), canonical(fields.get("module", ""))
            if count.isdecimal() and int(count) > 1:
                name, driver, type_ = (fields.get(key, "") for key in ("name", "driver", "type"))
                algorithms.append(Algorithm(name, driver, module, type_, int(count) - 1))
        return tuple(algorithms)

    @property
    def of_modules(self) -> Iterator[Algorithm]:
        """Those of the modules that are looked for."""
        return (each for each in self.used if each.module in self._loaded)

    def made_of(self, words: Iterable[str]) -> frozenset[str]:
        """Modules of what is in use and made of these words alone."""
        words = frozenset(words)
        return self._modules(each for each in self.used if each.words <= words | _PARTS) if words else frozenset()

    def of_driver(self, driver: str) -> frozenset[str]:
        """The module of a driver that is in use."""
        return self._modules(each for each in self.used if each.driver == driver)

    def of_user(self, consumer: str, *, once: bool = False) -> frozenset[str]:
        """Modules of what is in use and can be so by users of this module alone, which choose any algorithm of its types.

        With `once`, of what is used once: nothing else uses it as well.
        """
        types = _ANY.get(consumer, frozenset())
        fitting = (each for each in self.used if each.type in types and self.consumers(each) == (consumer,))
        return self._modules(each for each in fitting if each.uses == 1 or not once)

    def is_one(self, consumer: str) -> bool:
        """All of what it can use is one module's: each user of the consumer holds it."""
        types = _ANY.get(consumer, frozenset())
        # What begins like this is a part of another that cannot be chosen (CRYPTO_ALG_INTERNAL).
        fitting = (each for each in self.used if each.type in types and not each.name.startswith("__"))
        return len({each.module for each in fitting if self.consumers(each) == (consumer,)}) == 1

    def _modules(self, algorithms: Iterable[Algorithm]) -> frozenset[str]:
        return frozenset(each.module for each in algorithms if each.module in self._loaded)

    def consumers(self, algorithm: Algorithm) -> tuple[str, ...]:
        """The loaded modules that may use it."""
        words = algorithm.words - _PARTS or algorithm.words
        of_names = [name for name, text in _CONSUMERS.items() if name in self._loaded and words <= set(text.split())]
        return (
            *of_names,
            *(name for name, types in _ANY.items() if self._loaded.get(name, 0) > 0 and algorithm.type in types),
        )
