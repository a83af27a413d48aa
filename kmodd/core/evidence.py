# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything that was found out about one failed call into the kernel."""

from dataclasses import dataclass

from kmodd.errors import Evidence, errno_name
from kmodd.model import KernelFacts, LoadedModule, Outcome, Rule, Step, User

LOG_LINES = 32
"""Lines of the kernel's that are kept; the journal takes no more of one record."""
_TAINTS = ("taints kernel", "tainting kernel", "module license")
"""What check_modinfo, module_sig_check and set_license log while a module is loaded (kernel/module/main.c)."""
_OOPS = ("BUG: ", "Oops", "general protection fault", "kernel BUG at", "Unable to handle kernel", "invalid opcode")
"""How a report of an oops begins (arch/x86/mm/fault.c, arch/x86/kernel/traps.c, arch/arm64/mm/fault.c)."""


@dataclass(frozen=True, slots=True)
class StepEvidence:
    """What diagnosis judges by; gathered at once after the call."""

    step: Step
    outcome: Outcome
    facts: KernelFacts
    log: tuple[str, ...] = ()
    """What the kernel logged during the call, oldest first."""
    module: LoadedModule | None = None
    """The module as /proc/modules shows it now."""
    users: tuple[User, ...] = ()
    options: tuple[Rule, ...] = ()
    """`options` lines about the module."""
    given: tuple[str, ...] = ()
    """Names of the parameters that the caller gave."""
    signed: bool = True
    """The file carries a signature, whatever it is worth."""
    signer: str = ""
    """Whose, as the file says."""
    keys: tuple[str, ...] = ()
    """Names of the certificates that the kernel holds, where they may matter."""
    file_missing: bool = False
    """The index names a file that cannot be read."""
    file_fault: str = ""
    """A sentence on what is wrong with the file, where it cannot be parsed."""
    capable: bool = True
    """The worker that made the call holds CAP_SYS_MODULE."""

    @property
    def errno(self) -> int:
        """The kernel's answer; 0 when there was none."""
        return self.outcome.errno

    @property
    def errno_name(self) -> str:
        """Its symbol, such as `EINVAL`."""
        return errno_name(self.errno)

    @property
    def own_lines(self) -> tuple[str, ...]:
        """Lines that begin with the module's name: its own words, or the kernel's about it."""
        names = (self.step.module, self.step.module.replace("_", "-"))
        return tuple(line for line in self.log if line.partition(":")[0].split(" ")[-1] in names)

    @property
    def init_lines(self) -> tuple[str, ...]:
        """The module's own words: what the loader says of every unsigned or foreign module is left out."""
        return tuple(line for line in self.own_lines if not any(word in line for word in _TAINTS))

    @property
    def kept_lines(self) -> tuple[str, ...]:
        """The lines that say most: an oops from where it begins, otherwise the last ones."""
        begins = next((n for n, line in enumerate(self.log) if any(word in line for word in _OOPS)), None)
        if begins is None:
            return self.log[-LOG_LINES:]
        return self.log[begins : begins + LOG_LINES]

    def line(self, *words: str) -> str:
        """The first line that contains all these words; empty when there is none."""
        return next((line for line in self.log if all(word in line for word in words)), "")

    def facts_for(
        self, hint: str, *, symbols: tuple[str, ...] = (), parameter: str = "", rule: Rule | None = None
    ) -> Evidence:
        """Put the evidence into the shape that errors carry."""
        return Evidence(
            errno=self.errno or None,
            kernel_log=self.kept_lines,
            hint=hint,
            holders=tuple(self.module.holders) if self.module is not None else (),
            users=tuple((user.kind, user.name, user.detail) for user in self.users),
            file=rule.file if rule is not None else "",
            line=rule.line if rule is not None else 0,
            rule=rule.told if rule is not None else "",
            symbols=symbols,
            parameter=parameter,
        )
