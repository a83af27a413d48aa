# SPDX-License-Identifier: LGPL-2.1-or-later
"""Modules of the simulated kernel that do what no module should."""

import errno
from dataclasses import replace

from kmodd.kernel.simulated_modules import RELEASE, Fault, FaultKind, SimulatedModule, parameter
from kmodd.kernel.simulated_parameters import SimulatedParameter
from kmodd.model import User


def fault_modules() -> tuple[SimulatedModule, ...]:
    """One module for every fault, and some for what tests need besides."""
    error = SimulatedParameter("error", "int", "what init() answers: 0, or a negative errno", "-5")
    oops = (
        "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "#PF: supervisor write access in kernel mode",
        "Oops: 0002 [#1] PREEMPT SMP PTI",
    )
    modules = (
        SimulatedModule("good", "Loads and unloads; needs nothing, does nothing"),
        SimulatedModule("dep_a", "The bottom of a chain"),
        SimulatedModule("dep_b", "The middle of a chain", depends=("kmodd_test_dep_a",)),
        SimulatedModule("dep_c", "The top of a chain", depends=("kmodd_test_dep_b",)),
        SimulatedModule("soft_pre", "Loaded before soft by its soft dependency"),
        SimulatedModule("soft_post", "Loaded after soft by its soft dependency"),
        SimulatedModule(
            "soft", "Soft dependencies", softdep_pre=("kmodd_test_soft_pre",), softdep_post=("kmodd_test_soft_post",)
        ),
        SimulatedModule("alias_twin", "Shares an alias", aliases=("kmodd-test-shared",)),
        SimulatedModule("alias_twin2", "Shares an alias", aliases=("kmodd-test-shared",)),
        SimulatedModule(
            "fail",
            "init() says why in the kernel log and answers the errno of the parameter error",
            parameters=(error,),
            init=Fault(from_parameter="error", log=("kmodd_test_fail: the flux capacitor is not charged",)),
        ),
        SimulatedModule("needs_fail", "Needs fail", depends=("kmodd_test_fail",)),
        SimulatedModule("nodev", "init() answers ENODEV without a word", init=Fault(errno=errno.ENODEV)),
        SimulatedModule(
            "opnotsupp",
            "init() answers EOPNOTSUPP",
            init=Fault(errno=errno.EOPNOTSUPP, log=("kmodd_test_opnotsupp: the processor lacks a feature",)),
        ),
        SimulatedModule("init_hang", "init() hangs for ever", init=Fault(FaultKind.HANG, for_ever=True)),
        SimulatedModule(
            "init_wait",
            "init() hangs until it is released",
            parameters=(SimulatedParameter("error", "int", "what init() answers in the end", "0"),),
            init=Fault(FaultKind.HANG, from_parameter="error"),
        ),
        SimulatedModule("init_oops", "init() writes through a null pointer", init=Fault(FaultKind.OOPS, log=oops)),
        SimulatedModule("exit_hang", "exit() hangs for ever", exit=Fault(FaultKind.HANG, for_ever=True)),
        SimulatedModule("exit_wait", "exit() hangs until it is released", exit=Fault(FaultKind.HANG)),
        SimulatedModule("exit_oops", "exit() writes through a null pointer", exit=Fault(FaultKind.OOPS, log=oops)),
        SimulatedModule("permanent", "Has no exit()", permanent=True),
        SimulatedModule(
            "self_ref",
            "Holds a reference to itself while its parameter hold is true",
            parameters=(parameter("hold", "bool", "Y", "hold a reference", 0o644),),
            held_by="hold",
        ),
        SimulatedModule(
            "slow",
            "init() takes ms milliseconds, exit() takes exit_ms",
            parameters=(
                parameter("ms", "uint", "1000", "milliseconds init() takes"),
                parameter("exit_ms", "uint", "0", "milliseconds exit() takes", 0o644),
            ),
            slept_in=("ms", "exit_ms"),
        ),
        SimulatedModule(
            "mounted",
            "In use by a mount as soon as it is live",
            users=(User("mount", "/mnt", "/dev/kmodd_test_blk0"),),
        ),
        SimulatedModule(
            "params",
            "A parameter of every type and mode; level accepts 0 to 9 only and keeps even numbers",
            parameters=(
                parameter("a_bool", "bool", "N", "a bool", 0o644),
                parameter("an_invbool", "invbool", "N", "a bool that is kept inverted", 0o644),
                parameter("a_byte", "byte", "1", "a byte", 0o644),
                parameter("a_short", "short", "-2", "a short", 0o644),
                parameter("a_ushort", "ushort", "2", "an unsigned short", 0o644),
                parameter("an_int", "int", "-3", "an int", 0o644),
                parameter("a_uint", "uint", "3", "an unsigned int", 0o644),
                parameter("a_long", "long", "-4", "a long", 0o644),
                parameter("a_ulong", "ulong", "4", "an unsigned long", 0o644),
                parameter("a_ullong", "ullong", "5", "an unsigned long long", 0o644),
                parameter("a_hexint", "hexint", "0x1f", "an unsigned int shown in hexadecimal", 0o644),
                parameter("a_charp", "charp", "nothing", "a text of any length", 0o644),
                parameter("a_string", "string", "short", "a text of at most 15 characters", 0o644, 15),
                parameter("an_array", "array of int", "1,2", "one to four ints", 0o644, 4),
                parameter("charps", "array of charp", "", "up to three texts", 0o444, 3),
                parameter("read_only", "int", "6", "can be given when loading, not changed later"),
                parameter("secret", "int", "7", "for root's eyes only", 0o600),
                parameter("root_read_only", "int", "8", "for root's eyes only, not changed later", 0o400),
                parameter("hidden", "int", "9", "has no file", 0),
                parameter("without_description", "int", "10", "", 0o644),
                SimulatedParameter("level", "int", "0 to 9, kept even", "4", 0o644, limit=(0, 9), multiple_of=2),
            ),
        ),
        SimulatedModule(
            "bad_symbol",
            "Needs a symbol the kernel does not have",
            init=Fault(
                errno=errno.ENOENT,
                log=("kmodd_test_bad_symbol: Unknown symbol kmodd_nowhere (err -2)",),
                before_init=True,
            ),
        ),
        SimulatedModule(
            "bad_file",
            "A file that is cut short",
            init=Fault(errno=errno.ENOEXEC, log=("Invalid ELF section header overflow",), before_init=True),
        ),
        SimulatedModule(
            "bad_signature",
            "A file whose signature does not fit",
            init=Fault(errno=errno.EKEYREJECTED, before_init=True),
        ),
        SimulatedModule(
            "wrong_kernel",
            "A file for a kernel with other flags",
            init=Fault(
                errno=errno.ENOEXEC,
                log=(
                    (
                        f"kmodd_test_wrong_kernel: version magic '{RELEASE} SMQ preempt mod_unload modversions ' should be "
                        f"'{RELEASE} SMP preempt mod_unload modversions '"
                    ),
                ),
                before_init=True,
            ),
        ),
    )
    # The names are those of the modules that the tests build for the real kernel, so that one test can serve both.
    return tuple(
        replace(module, name=f"kmodd_test_{module.name}", folder="updates/kmodd-test", signed=False, intree=False)
        for module in modules
    )
