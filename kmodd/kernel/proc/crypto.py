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
_INTERNAL = "__"
"""What the name of a part of another begins with that cannot be chosen (CRYPTO_ALG_INTERNAL)."""
_CIPHERS = frozenset({"skcipher", "lskcipher"})
_HASHES = frozenset({"shash", "ahash"})
_ANY = {
    "algif_skcipher": _CIPHERS,
    "algif_aead": frozenset({"aead"}),
    "algif_hash": _HASHES,
    "algif_rng": frozenset({"rng"}),
    "dm_crypt": _CIPHERS | {"aead", "cipher"},
    "dm_verity": _HASHES,
    "dm_integrity": _HASHES | _CIPHERS,
}
"""Modules whose users choose any algorithm of these types."""
_CHOOSING = {
    name: types - {"cipher"} for name, types in _ANY.items() if name.startswith("algif_") or name == "dm_crypt"
}
"""Those of which each user holds at least one algorithm of these types."""
_AUTHENTICATION = "aes cmac hmac md5 rmd160 sha1 sha256 sha384 sha512 sm3 xcbc"
_ESP = (
    f"{_AUTHENTICATION} aria authenc authencesn blowfish camellia cast5 cbc ccm chacha20 cipher_null des des3_ede digest_null echainiv "
    "ecb gcm poly1305 rfc3686 rfc4106 rfc4309 rfc4543 rfc7539 rfc7539esp seqiv serpent sm4 twofish"
)
"""net/xfrm/xfrm_algo.c."""
_CONSUMERS = {
    "bluetooth": "cmac aes ecdh ecdh-nist-p256",
    "cifs": "aes arc4 ccm cmac gcm hmac md4 md5 sha256 sha512",
    "encrypted_keys": "aes cbc hmac sha256",
    "esp4": _ESP,
    "esp6": _ESP,
    "ah4": _AUTHENTICATION,
    "ah6": _AUTHENTICATION,
    "ksmbd": "aes ccm cmac gcm hmac md5 sha256 sha512",
    "libceph": "aes cbc gcm hmac sha256",
    "mac80211": "aes arc4 ccm cmac gcm",
    "mac802154": "aes ccm",
    "macsec": "aes gcm",
    "nfsd": "md5 sha256",
    "nvme_auth": "dh hmac sha256 sha384 sha512",
    "rpcsec_gss_krb5": "aes camellia cbc cmac cts des3_ede hmac md5 sha1 sha256 sha384",
    "rxrpc": "fcrypt pcbc",
    "sctp": "hmac md5 sha1 sha256",
    "tipc": "aes gcm",
    "tls": "aes aria ccm chacha20 gcm poly1305 rfc7539 sm4",
    "libcrc32c": "crc32c",
    "ext4": "crc32c",
    "jbd2": "crc32c",
    "btrfs": "blake2b-256 crc32c sha256 xxhash64",
}
"""Modules that use algorithms of the kernel, with the words of which their names are made (crypto_alloc_ in their sources). Users that
are part of the kernel, such as fscrypt, are not among them.
"""
_COUNTED = frozenset({"tls", "esp4", "esp6", "ah4", "ah6"})
"""Those that each user holds: without a reference none of them uses an algorithm."""


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

    def is_part_of(self, other: "Algorithm") -> bool:
        """The other one is made of it: `gcm_base(ctr-aes-x,ghash-y)` of `ctr-aes-x`."""
        whole = rf"(?<![^(,]){re.escape(self.driver)}(?![^),])"
        return self != other and re.search(whole, f"{other.driver},cryptd(__{other.driver})") is not None


class Algorithms:
    """The table is read when it is first needed."""

    def __init__(self, root: Path, loaded: Mapping[str, int], crowded: Callable[[], None] = lambda: None) -> None:
        """`loaded` are the modules that are looked for, with the references that no module holds; `crowded` is called where there are
        more algorithms than are read.
        """
        self._root = root
        self._loaded = loaded
        self._crowded = crowded
        self._complete = True

    @cached_property
    def used(self) -> tuple[Algorithm, ...]:
        """Those that something uses, of modules and of the kernel itself."""
        table = read_text(self._root / "proc/crypto", _TABLE_MAX) or ""
        if len(table) >= _TABLE_MAX - 1:
            self._crowded()
            self._complete = False
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

    def of_name(self, name: str) -> frozenset[str]:
        """Modules that each user of this algorithm holds: those of its only driver in use, and of what that is made of."""
        drivers = [each for each in self.used if each.name == name]
        if len(drivers) != 1 or not self._complete:
            return frozenset()
        return self._with_parts(drivers[0])

    def is_with(self, algorithm: Algorithm, name: str) -> bool:
        """It has this name, or one that has is made of it."""
        return any(each.name == name and (each == algorithm or algorithm.is_part_of(each)) for each in self.used)

    def of_driver(self, driver: str) -> frozenset[str]:
        """The module of a driver that is in use."""
        return self._modules(each for each in self.used if each.driver == driver)

    def of_user(self, consumer: str) -> frozenset[str]:
        """Modules of what is in use and no other module is known to use: users of this one choose any algorithm of its types."""
        types = _ANY.get(consumer, frozenset())
        return self._modules(each for each in self.used if each.type in types and self.consumers(each) == (consumer,))

    def of_only_user(self, consumer: str) -> frozenset[str]:
        """Modules that the one user of this module holds: one algorithm alone is in use that it can have chosen, and only once.

        Who may use it otherwise does not matter, part of the kernel or not: the user must have chosen one.
        """
        types = _CHOOSING.get(consumer, frozenset())
        chosen = [each for each in self.used if each.type in types and not self._is_part(each)]
        if self._loaded.get(consumer, 0) != 1 or len(chosen) != 1 or chosen[0].uses != 1 or not self._complete:
            return frozenset()
        return self._with_parts(chosen[0])

    def _is_part(self, algorithm: Algorithm) -> bool:
        """All of its uses are by another that is made of it, each use of which is one of it; or it cannot be chosen."""
        wholes = (each.uses for each in self.used if algorithm.is_part_of(each))
        return algorithm.name.startswith(_INTERNAL) or algorithm.uses <= max(wholes, default=0)

    def _with_parts(self, algorithm: Algorithm) -> frozenset[str]:
        return self._modules(each for each in self.used if each == algorithm or each.is_part_of(algorithm))

    def _modules(self, algorithms: Iterable[Algorithm]) -> frozenset[str]:
        return frozenset(each.module for each in algorithms if each.module in self._loaded)

    def consumers(self, algorithm: Algorithm) -> tuple[str, ...]:
        """The loaded modules that may use it."""
        words = algorithm.words - _PARTS or algorithm.words
        of_names = [
            name
            for name, text in _CONSUMERS.items()
            if self._loaded.get(name, -1) >= (name in _COUNTED) and words <= set(text.split())
        ]
        return (
            *of_names,
            *(name for name, types in _ANY.items() if self._loaded.get(name, 0) > 0 and algorithm.type in types),
        )
