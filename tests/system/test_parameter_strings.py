# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tests' account of how the kernel reads a string of parameters, and kmodd's own reading, against a real kernel."""

import errno
import json
import random

from kmodd.core.planning.parameters import expectation, parse_number, takes_no_value
from kmodd.model.arguments import encoded, read
from tests.kernel.kernel_arguments import KernelArguments
from tests.vm.machine import Machine

KINDS = {"a_charp": "charp", "an_int": "int", "a_bool": "bool", "an_invbool": "invbool"}
SCRIPT = "/tmp/parameter_strings.py"
# Loads the module with each string and answers [errno, a_charp, an_int] of each, the text in hexadecimal.
GUEST = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
FINIT_MODULE = {"x86_64": 313, "aarch64": 273}[os.uname().machine]
answers = []
for text in json.load(sys.stdin):
    file = os.open(sys.argv[1], os.O_RDONLY)
    failed = libc.syscall(FINIT_MODULE, file, ctypes.c_char_p(bytes.fromhex(text)), 0)
    number = ctypes.get_errno() if failed else 0
    os.close(file)
    values = []
    if not failed:
        for name in ("a_charp", "an_int"):
            with open("/sys/module/kmodd_test_params/parameters/" + name, "rb") as value:
                values.append(value.read()[:-1].hex())
        while libc.delete_module(b"kmodd_test_params", 0):
            pass
    answers.append([number, *values])
print(json.dumps(answers))
"""
CHOSEN = [
    "a_charp=x\u2020an_int=7".encode(),
    "a_charp=\xe0an_int=7".encode(),
    "a_charp=x\u2003an_int=7".encode(),
    b"a_charp=x\xa0an_int=7",
    b"a_charp=x\x85an_int=7",
    b"a_charp=x\x1can_int=7",
    b"a_charp=x\x0ban_int=7",
    b'a_charp="x an_int=7"',
    b'"a_charp=x an_int=7"',
    b'a_charp="x an_int=7',
    b'a_charp="x "an_int=7',
    b'a_charp=x"y z"',
    b'a_charp=""',
    b'a_charp="',
    b'"a_charp="x""',
    b"a_charp=",
    b"a_charp",
    b"an_int",
    b"an_int = 7",
    b"an_int= 7",
    b"a_bool",
    b"an_invbool",
    b"a_bool=",
    b"an_int=7 --",
    b"an_int=7 -- a_charp=x",
    b'an_int=7 "--" a_charp=x',
    b"an_int=7 --=1 a_charp=x",
    b"an-int=7 a-charp=x",
    b"=an_int=7",
    b"an_int=7 an_int=8 a_charp=x a_charp=y",
    b"a_charp=x#y # an_int=7",
    b"a_charp=\xe4\xff",
    b"an_int=0x1f",
    b"an_int=017",
    b"an_int=08",
    b"an_int=eight",
    b"an_int=7#",
    b'an_int="7 "',
]
PIECES = [
    b"a_charp",
    b"an_int",
    b"a_bool",
    b"an_invbool",
    b"=",
    b"=",
    b"=",
    b'"',
    b'"',
    b" ",
    b" ",
    b"\xa0",
    b"\t",
    b"\v",
]
PIECES += [b"-", b"--", b"1", b"7", b"x", b"\xc3", b"#", b"\n"]


def strings() -> list[bytes]:
    chance = random.Random(160)  # noqa: S311 - no secret
    made = [b"".join(chance.choices(PIECES, k=chance.randrange(1, 14))) for _ in range(400)]
    return [*CHOSEN, *made]


def as_kmodd_reads(text: bytes) -> list[tuple[bytes, bytes | None]]:
    found = []
    for word in read(text):
        if word.ends:
            break
        found.append((encoded(word.name), None if word.value is None else encoded(word.value)))
    return found


def expected(pairs: list[tuple[bytes, bytes | None]]) -> list[int | str]:
    """What the module answers when the kernel reads these parameters."""
    charp, number = b"nothing", "-3"
    for raw, value in pairs:
        name = raw.replace(b"-", b"_").decode("latin-1")
        kind = KINDS.get(name)
        if kind is None:
            continue
        text = None if value is None else value.decode("latin-1")
        if not takes_no_value(kind) if text is None else expectation(kind, text):
            return [errno.EINVAL]
        if name == "a_charp":
            charp = value or b""
        elif name == "an_int":
            number = str(parse_number(text or ""))
    return [0, charp.hex(), number.encode().hex()]


def test_the_kernel_reads_strings_of_parameters_so(clean_vm: Machine) -> None:
    texts = strings()
    clean_vm.write_file(SCRIPT, GUEST)
    clean_vm.write_file(f"{SCRIPT}.json", json.dumps([text.hex() for text in texts]))
    path = clean_vm.check("modinfo -n kmodd_test_params").strip()
    seen = json.loads(clean_vm.check(f"python3 {SCRIPT} {path} < {SCRIPT}.json", timeout=400))
    for reading in (KernelArguments().read, as_kmodd_reads):
        assert [(text, answer) for text, answer in zip(texts, seen, strict=True)] == [
            (text, expected(reading(text))) for text in texts
        ]
