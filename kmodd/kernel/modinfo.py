# SPDX-License-Identifier: LGPL-2.1-or-later
"""From the strings of a .modinfo section to `ModuleInfo`."""

from collections.abc import Iterable

from kmodd.kernel.modprobe_d import softdep_names
from kmodd.model import ModuleInfo, ParameterInfo
from kmodd.names import ModuleName, canonical


def parse_modinfo(
    name: ModuleName,
    filename: str,
    strings: Iterable[bytes],
    *,
    builtin: bool = False,
    signed: bool = False,
    signer: str = "",
) -> ModuleInfo:
    """Gather `key=value` strings; text that is not UTF-8 gets replacement characters, unknown keys count for nothing.

    Several authors or licenses are joined by `, `; of other single facts the first counts, and `intree` is true for
    what is built in.
    """
    facts: dict[str, list[str]] = {}
    for string in strings:
        key, _, value = string.decode("utf-8", "replace").partition("=")
        facts.setdefault(key, []).append(value)

    def first(key: str) -> str:
        return facts[key][0].strip() if key in facts else ""

    pre: list[str] = []
    post: list[str] = []
    for line in facts.get("softdep", ()):
        before, after = softdep_names(line)
        pre += before
        post += after
    return ModuleInfo(
        name=name,
        filename=filename,
        description=first("description"),
        license=", ".join(dict.fromkeys(facts.get("license", ()))),
        author=", ".join(facts.get("author", ())),
        version=first("version"),
        srcversion=first("srcversion"),
        vermagic=first("vermagic"),
        signer=signer,
        signed=signed,
        intree=builtin or first("intree") == "Y",
        firmware=tuple(facts.get("firmware", ())),
        depends=tuple(canonical(needed) for needed in first("depends").split(",") if needed),
        softdep_pre=tuple(pre),
        softdep_post=tuple(post),
        aliases=tuple(facts.get("alias", ())),
        parameters=_parameters(facts.get("parm", ()), facts.get("parmtype", ())),
    )


def _parameters(descriptions: Iterable[str], types: Iterable[str]) -> tuple[ParameterInfo, ...]:
    """Merge `parm` (NAME:DESCRIPTION) and `parmtype` (NAME:TYPE), in the order in which names are first met.

    Either may stand alone: descriptions are optional, and some describe a parameter the build left out, which
    then has no type.
    """
    described = dict(_split(text) for text in descriptions)
    typed = dict(_split(text) for text in types)
    return tuple(
        ParameterInfo(name, typed.get(name, ""), described.get(name, ""))
        for name in dict.fromkeys((*typed, *described))
    )


def _split(text: str) -> tuple[str, str]:
    name, _, rest = text.partition(":")
    return name.strip().replace("-", "_"), rest.strip()
