# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules, chains, sets and objects of nf_tables, and sets of ipset, by the modules that they hold, from nfnetlink dumps.

Message types and attributes are those of linux/netfilter/nf_tables.h and linux/netfilter/ipset/ip_set.h. The kernel answers
only with CAP_NET_ADMIN in the namespace (nfnetlink_rcv in net/netfilter/nfnetlink.c). Of a rule, only the names of its
expressions and the sets and objects it refers to are read.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import field, replace
from typing import TypeVar

from kmodd.fast_dataclass import dataclass
from kmodd.kernel.users.extensions import further_aliases, modules_of_extension, referred_sets
from kmodd.kernel.users.netlink import attribute, attributes, big_endian, dump, text
from kmodd.kernel.users.tasks import Budget
from kmodd.model import Remedy, User
from kmodd.names import canonical
from kmodd.text import shown

_T = TypeVar("_T")

FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
OBJECTS = {
    1: "counter",
    2: "quota",
    3: "ct helper",
    4: "limit",
    5: "ct count",
    6: "tunnel",
    7: "ct timeout",
    8: "secmark",
    9: "ct expectation",
    10: "synproxy",
}
"""Types of objects, in nft's words (NFT_OBJECT_COUNTER and its like)."""
_NETFILTER = 12
"""NETLINK_NETFILTER of linux/netlink.h."""
_SUBSYSTEM = 10 << 8
_GETTABLE, _GETCHAIN, _GETRULE, _GETSET, _GETOBJ, _GETFLOWTABLE = 1, 4, 7, 10, 19, 23
_ANONYMOUS = 0x1
_COMPAT = {"match", "target"}
_REFERENCES = {"lookup": (1,), "dynset": (1,), "objref": (2, 4), "flow_offload": (1,)}
"""Attributes of an expression that name a set, an object or a flowtable of the rule's table."""
_TELLING = {*_COMPAT, *_REFERENCES, "log"}
"""Expressions of which more than the name is read."""
_TAKING = {"CT", "set", "SET"}
_DATA_MAX = 32
"""Bytes of an extension's arguments (NFTA_TARGET_INFO, NFTA_MATCH_INFO) that are kept, of those that tell of further modules."""
_EXPRESSIONS_MAX = 128
_COUNT_MAX = 8192
"""Things of one sort that are kept."""

_IPSET_LIST = 6 << 8 | 7
_IPSET_PROTOCOL, _IPSET_NAME, _IPSET_TYPE, _IPSET_FLAGS, _IPSET_INDEX = 1, 2, 3, 6, 11
_IPSET_VERSION = 7
"""Linux 4.20: from this version on, the index of a set is shown."""
_IPSET_DATA, _IPSET_REFERENCES = 7, 25
"""How many rules and sets of sets refer to it (linux/netfilter/ipset/ip_set.h)."""
_LIST_SET = "list:set"
"""The type of sets of other sets, which cannot be destroyed before."""
_IPSET_HEADERS_ONLY = 1 << 2
"""IPSET_FLAG_LIST_HEADER: without the members of the set."""


@dataclass(frozen=True, slots=True)
class Expression:
    """What is known of one expression: its name, and for `match` and `target` that of the extension of x_tables."""

    name: str
    extension: str = ""
    group: bool = False
    """A `log` that goes to a group of nfnetlink_log."""
    references: tuple[str, ...] = ()
    inner: tuple["Expression", ...] = ()
    """Those that the elements get which a `dynset` adds."""
    data: bytes = b""
    """The beginning of an extension's arguments, where they tell of further modules."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule."""

    family: int
    table: str
    chain: str
    handle: int
    expressions: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """A base chain, a named set, an object, a flowtable, or a table itself (with the name of the table)."""

    family: int
    table: str
    name: str
    type: str = ""
    """Type of a base chain, such as `nat`."""
    number: int = 0
    """Type of an object."""
    helper: str = ""
    """The conntrack helper of an object that is one."""
    expressions: tuple[Expression, ...] = ()
    """Those of a set's elements."""


@dataclass(slots=True)
class Firewall:
    """What is set up in a network namespace."""

    tables: list[Item] = field(default_factory=list)
    chains: list[Item] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    sets: list[Item] = field(default_factory=list)
    objects: list[Item] = field(default_factory=list)
    flowtables: list[Item] = field(default_factory=list)
    crowded: bool = False
    """There is more of something than is kept."""
    changed: bool = False
    """It was changed while it was read, so something may be missing."""


def firewall(in_time: Callable[[], bool]) -> Firewall:
    """The tables of nf_tables, as much as there is time for; OSError when the kernel does not answer.

    Call it only while nf_tables is loaded: the request would make the kernel load it.
    """
    tables = Firewall()
    tables.tables = _all(_GETTABLE, read_table, tables, in_time)
    if not tables.tables and not tables.changed:
        return tables  # everything else is in one
    tables.chains = _all(_GETCHAIN, read_chain, tables, in_time)
    tables.rules = _all(_GETRULE, read_rule, tables, in_time)
    tables.sets = _all(_GETSET, read_set, tables, in_time)
    tables.objects = _all(_GETOBJ, read_object, tables, in_time)
    tables.flowtables = _all(_GETFLOWTABLE, read_flowtable, tables, in_time)
    return tables


def _all(number: int, read: Callable[[bytes], _T | None], firewall: Firewall, in_time: Callable[[], bool]) -> list[_T]:
    things: list[_T] = []
    try:
        for message, body in dump(_NETFILTER, _SUBSYSTEM | number, _nfgenmsg()):
            # A message that carries something has the number before that of the question (NFT_MSG_NEWTABLE and its like).
            if message != _SUBSYSTEM | number - 1:
                continue
            firewall.crowded = firewall.crowded or len(things) >= _COUNT_MAX
            if firewall.crowded or not in_time():
                break
            if (thing := read(body)) is not None:
                things.append(thing)
    except BlockingIOError:
        firewall.changed = (
            True  # what was read is there; nf_tables marks every dump of rules that another change runs into
        )
    return things


@dataclass(frozen=True, slots=True)
class IpSet:
    """A set of ipset."""

    name: str
    type: str
    """Such as `hash:ip`."""
    index: int = -1
    """What rules call it; -1 where the kernel does not say."""
    references: int = 0
    """Rules and sets of sets that refer to it: it cannot be destroyed before them."""


def ip_sets() -> tuple[IpSet, ...]:
    """The sets of ipset; call it only while ip_set is loaded, as `firewall`."""
    request = _nfgenmsg() + attribute(_IPSET_PROTOCOL, bytes([_IPSET_VERSION]))
    request += attribute(_IPSET_FLAGS | 0x4000, _IPSET_HEADERS_ONLY.to_bytes(4, "big"))
    sets: dict[IpSet, None] = {}
    for message, body in dump(_NETFILTER, _IPSET_LIST, request):
        if message >> 8 == _IPSET_LIST >> 8 and len(sets) < _COUNT_MAX and (each := read_ip_set(body)):
            sets[each] = None
    return tuple(sets)


def read_table(body: bytes) -> Item | None:
    """One message; None for what is none of a family that nft knows. The other readers are alike."""
    family, values = _values(body)
    return Item(family, name, name) if family and (name := text(values.get(1, b""))) else None


def read_chain(body: bytes) -> Item | None:
    """A base chain; None for others, which hold no module."""
    family, values = _values(body)
    if not family or 7 not in values:
        return None
    return Item(family, text(values.get(1, b"")), text(values.get(3, b"")), type=text(values[7]))


def read_rule(body: bytes) -> Rule | None:
    """A rule with its expressions."""
    family, values = _values(body)
    if not family:
        return None
    table, chain = text(values.get(1, b"")), text(values.get(2, b""))
    return Rule(family, table, chain, big_endian(values.get(3, b"")), tuple(_expressions(values.get(4, b""))))


def read_set(body: bytes) -> Item | None:
    """A named set; None for one that ends with its rule."""
    family, values = _values(body)
    if not family or big_endian(values.get(3, b"")) & _ANONYMOUS:
        return None
    expressions = [*_expressions(values.get(18, b"")), *filter(None, [_expression(values.get(17, b""))])]
    return Item(family, text(values.get(1, b"")), text(values.get(2, b"")), expressions=tuple(expressions))


def read_object(body: bytes) -> Item | None:
    """A counter, a limit, a helper and its like."""
    family, values = _values(body)
    if not family:
        return None
    number = big_endian(values.get(3, b""))
    helper = text(dict(attributes(values.get(4, b""))).get(1, b"")) if OBJECTS.get(number) == "ct helper" else ""
    return Item(family, text(values.get(1, b"")), text(values.get(2, b"")), number=number, helper=helper)


def read_flowtable(body: bytes) -> Item | None:
    """A flowtable."""
    family, values = _values(body)
    return Item(family, text(values.get(1, b"")), text(values.get(2, b""))) if family else None


def read_ip_set(body: bytes) -> IpSet | None:
    """One message; None for what is no set."""
    values = dict(attributes(body[4:]))
    name, type_ = text(values.get(_IPSET_NAME, b"")), text(values.get(_IPSET_TYPE, b""))
    index = big_endian(values[_IPSET_INDEX]) if _IPSET_INDEX in values else -1
    data = dict(attributes(values.get(_IPSET_DATA, b"")))
    references = big_endian(data[_IPSET_REFERENCES]) if _IPSET_REFERENCES in data else 0
    return IpSet(name, type_, index, references) if name and type_ else None


def _nfgenmsg() -> bytes:
    return bytes(4)  # struct nfgenmsg: of every family


def _values(body: bytes) -> tuple[int, dict[int, bytes]]:
    """Family and attributes; family 0 for one that nft has no word for."""
    family = body[0] if len(body) >= 4 and body[0] in FAMILIES else 0
    return family, dict(attributes(body[4:]))


def _expressions(data: bytes, depth: int = 0) -> Iterator[Expression]:
    for count, (_, element) in enumerate(attributes(data)):
        if count == _EXPRESSIONS_MAX:
            return
        if (expression := _expression(element, depth)) is not None:
            yield expression


def _expression(data: bytes, depth: int = 0) -> Expression | None:
    values = dict(attributes(data))
    name = text(values.get(1, b""))
    if not name:
        return None
    # There can be a hundred thousand of them: of most, the name is all.
    if name not in _TELLING:
        return Expression(name)
    inside = dict(attributes(values.get(2, b"")))
    references = tuple(text(inside[number]) for number in _REFERENCES.get(name, ()) if number in inside)
    inner: tuple[Expression, ...] = ()
    if name == "dynset" and not depth:
        single = _expression(inside.get(7, b""), 1)
        inner = (*_expressions(inside.get(10, b""), 1), *filter(None, [single]))
    return Expression(
        name,
        extension=text(inside.get(1, b"")) if name in _COMPAT else "",
        data=inside.get(3, b"")[:_DATA_MAX] if name in _COMPAT and text(inside.get(1, b"")) in _TAKING else b"",
        group=name == "log" and 1 in inside,
        references=references,
        inner=inner,
    )


_ARP, _BRIDGE, _INET, _IP, _IP6 = 3, 7, 1, 2, 10
_XTABLES = {_IP: ("ipt",), _IP6: ("ip6t",), _INET: ("ipt", "ip6t"), _BRIDGE: ("ebt",), _ARP: ("arpt",)}
"""Prefixes of the aliases of x_tables' extensions, by family."""
_NFT, _IP_SET = "nf_tables", "ip_set"


class NetfilterUsers:
    """Looks for users among what `firewall` and `sets` answer; each raises OSError where the kernel does not."""

    def __init__(
        self,
        loaded: Collection[str],
        resolve: Callable[[str], tuple[str, ...]],
        firewall: Callable[[Callable[[], bool]], Firewall],
        sets: Callable[[], Iterable[IpSet]],
    ) -> None:
        """`loaded` are the modules that are looked for, `resolve` answers the modules with an alias."""
        self._expressions: dict[tuple[int, Expression], frozenset[str]] = {}
        self._of_index: dict[int, frozenset[str]] = {}
        """Modules of the sets of ipset, by their indices."""
        self._loaded = loaded
        self._resolve = resolve
        self._firewall = firewall
        self._sets = sets

    def users(self, budget: Budget) -> Iterator[tuple[frozenset[str], User]]:
        """Rules before what they refer to, and everything of a table before the table, which nf_tables itself is held by."""
        sets: Iterable[IpSet] = ()
        if _IP_SET in self._loaded:
            try:
                sets = self._sets()
            except OSError:
                budget.met("the sets of ipset cannot be read")
        self._of_index = {each.index: self._loaded_of(f"ip_set_{each.type}") for each in sets if each.index >= 0}
        named: Counter[int] | None = Counter()
        if _NFT in self._loaded:
            try:
                firewall = self._firewall(budget.in_time_for_rules)
            except OSError:
                budget.met("the rules of nf_tables cannot be read")
                named = None
            else:
                if firewall.crowded:
                    budget.met("nf_tables has more rules than are examined")
                if firewall.changed:
                    budget.met("the rules of nf_tables changed while they were read")
                yield from self._of_tables(firewall)
                expressions = [each for rule in firewall.rules for each in rule.expressions]
                named = Counter(index for each in expressions for index in referred_sets(each.extension, each.data))
                if firewall.crowded or firewall.changed:
                    named = None
        yield from self._of_sets(sets, named)

    def _of_tables(self, firewall: Firewall) -> Iterator[tuple[frozenset[str], User]]:
        held: dict[tuple[int, str, str], frozenset[str]] = {}
        """Modules of sets, objects, flowtables and base chains by family, table and name."""
        items = [
            *((Remedy.DELETE_SET, "set", each) for each in firewall.sets),
            *((Remedy.DELETE_OBJECT, OBJECTS.get(each.number, "object"), each) for each in firewall.objects),
            *((Remedy.DELETE_FLOWTABLE, "flowtable", each) for each in firewall.flowtables),
        ]
        for remedy, _, item in items:
            key = (item.family, item.table, item.name)
            held[key] = held.get(key, frozenset()) | self._of_item(remedy, item)
        for rule in firewall.rules:
            for each in rule.expressions:
                # Elements that a rule has added keep their expressions when the rule is gone.
                for reference in each.references if each.inner else ():
                    key = (rule.family, rule.table, reference)
                    held[key] = held.get(key, frozenset()).union(*(self._of(rule.family, one) for one in each.inner))
        chains = {
            (each.family, each.table, each.name): self._loaded_of(f"nft-chain-{each.family}-{each.type}")
            for each in firewall.chains
        }
        for rule in firewall.rules:
            modules = chains.get((rule.family, rule.table, rule.chain), frozenset())
            for each in rule.expressions:
                modules |= self._of(rule.family, each)
                for reference in each.references:
                    modules |= held.get((rule.family, rule.table, reference), frozenset())
            if modules:
                yield modules, _rule(rule)
        for remedy, word, item in items:
            if modules := held.get((item.family, item.table, item.name), frozenset()):
                words = (*word.split(), *_words(item)) if remedy is Remedy.DELETE_OBJECT else _words(item)
                yield modules, User(*_shown(word, item), remedy=remedy, words=words)
        for item in firewall.chains:
            if modules := chains[item.family, item.table, item.name]:
                yield modules, User(*_shown("chain", item, item.type), remedy=Remedy.DELETE_CHAIN, words=_words(item))
        for item in firewall.tables:
            family = FAMILIES[item.family]
            words = (family, item.name)
            detail = f"{sum((each.family, each.table) == (item.family, item.name) for each in firewall.rules)} rules"
            yield (
                frozenset({_NFT}),
                User("table", shown(" ".join(words)), detail, remedy=Remedy.DELETE_TABLE, words=words),
            )

    def _of_item(self, remedy: Remedy, item: Item) -> frozenset[str]:
        if remedy is Remedy.DELETE_FLOWTABLE:
            return self._loaded_of(f"nf-flowtable-{item.family}")
        modules: frozenset[str] = frozenset()
        if remedy is Remedy.DELETE_OBJECT:
            modules = self._loaded_of(f"nft-obj-{item.number}", f"nft-obj-{item.family}-{item.number}")
        if item.helper:
            modules |= self._loaded_of(f"nfct-helper-{item.helper}")
        return modules.union(*(self._of(item.family, each) for each in item.expressions))

    def _of(self, family: int, expression: Expression) -> frozenset[str]:
        key = (family, expression)
        if key not in self._expressions:
            self._expressions[key] = self._find(family, expression)
        return self._expressions[key]

    def _find(self, family: int, expression: Expression) -> frozenset[str]:
        modules = self._loaded_of(f"nft-expr-{expression.name}", f"nft-expr-{family}-{expression.name}")
        if expression.name == "log":
            families = (_IP, _IP6) if family == _INET else (family,)
            modules |= self._loaded_of(*(f"nf-logger-{each}-{int(expression.group)}" for each in families))
        if extension := expression.extension:
            modules |= modules_of_extension(extension, _XTABLES.get(family, ()), self._loaded_of)
            modules |= self._loaded_of(*further_aliases(extension, family, expression.data))
            for index in referred_sets(extension, expression.data):
                modules |= self._of_index.get(index, frozenset())
        return modules.union(*(self._of(family, each) for each in expression.inner))

    def _loaded_of(self, *aliases: str) -> frozenset[str]:
        """The loaded modules with one of these aliases or names."""
        names = (name for alias in aliases for name in (canonical(alias), *self._resolve(alias)))
        return frozenset(name for name in names if name in self._loaded)

    def _of_sets(self, sets: Iterable[IpSet], named: Mapping[int, int] | None) -> Iterator[tuple[frozenset[str], User]]:
        """`named` is how often the rules that are users too refer to each set, by its index; None where not all are known."""
        for each in sorted(sets, key=lambda each: each.type != _LIST_SET):
            if modules := self._loaded_of(f"ip_set_{each.type}"):
                missing = each.references if named is None else max(0, each.references - named[each.index])
                user = User(
                    *("set", shown(each.name), shown(each.type)),
                    remedy=Remedy.DESTROY_SET,
                    words=(each.name,),
                    sets=(each.index,) if each.index >= 0 else (),
                    references=missing,
                )
                if missing and named is None:
                    # Rules that were not read may be among those that refer to it.
                    detail = f"{user.detail}, which something refers to"
                    user = replace(user, detail=detail, remedy=Remedy.NONE, words=(), sets=(), references=0)
                yield modules, user


def _rule(rule: Rule) -> User:
    family = FAMILIES[rule.family]
    names = (f"{each.name} {each.extension}".rstrip() for each in rule.expressions)
    return User(
        "rule",
        shown(f"{family} {rule.table} {rule.chain} handle {rule.handle}"),
        shown(", ".join(dict.fromkeys(names))),
        remedy=Remedy.DELETE_RULE,
        words=(family, rule.table, rule.chain, "handle", str(rule.handle)),
    )


def _words(item: Item) -> tuple[str, ...]:
    return FAMILIES[item.family], item.table, item.name


def _shown(word: str, item: Item, detail: str = "") -> tuple[str, str, str]:
    """Kind, name and detail."""
    kind = word if word in {"set", "chain"} else "object"
    return kind, shown(" ".join(_words(item))), shown(detail or word)
