# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who asks, as far as the gateway knows, and what that is good for."""

from collections.abc import Iterable
from dataclasses import dataclass

from kmodd.errors import AccessDenied


@dataclass(frozen=True, slots=True)
class Principal:
    """The bearer of a valid token."""

    name: str
    """For the journal: `token backup (1f0c…)`, `jwt alice@https://issuer`."""
    scopes: frozenset[str]
    modules: frozenset[str] = frozenset()
    """The modules it may change; empty for all."""

    def may(self, scope: str) -> bool:
        """It has the scope."""
        return scope in self.scopes or "admin" in self.scopes

    def require(self, scope: str) -> None:
        """AccessDenied unless it has the scope."""
        if not self.may(scope):
            raise AccessDenied(f"this token lacks the scope '{scope}'")

    def require_modules(self, names: Iterable[str]) -> None:
        """AccessDenied unless it may change all of these (canonical names)."""
        if self.modules and (outside := sorted(set(names) - self.modules)):
            raise AccessDenied(f"this token is not for {', '.join(outside[:8])}")
