# SPDX-License-Identifier: LGPL-2.1-or-later
"""The evidence of one failed call into the kernel: errno, kernel log, state and facts."""

import re
from collections.abc import Sequence

from kmodd.core.diagnosis.advice import advised
from kmodd.errors import Evidence, errno_name
from kmodd.fast_dataclass import dataclass
from kmodd.model import KernelFacts, LoadedModule, Outcome, Rule, Step, User

LOG_LINES = 32
"""Lines of the kernel's that are kept; the journal takes no more of one record."""
_TAINTS = ("taints kernel", "tainting kernel", "module license")
"""What check_modinfo, module_sig_check and set_license log while a module is loaded (kernel/module/main.c)."""
_OOPS = ("BUG: ", "Oops", "general protection fault", "kernel BUG at", "Unable to handle kernel", "invalid opcode")
"""How a report of an oops begins (arch/x86/mm/fault.c, arch/x86/kernel/traps.c, arch/arm64/mm/fault.c)."""
_OOPS_END = "---[ end trace"
_USER_FAULT = re.compile(r"^traps: |\[\d+\]: (?:segfault|unhandled)")
"""A fault of some process (show_signal_msg and show_signal in arch/x86, arm64_show_signal). It begins with the process's name,
which that process chose, so that it may read as the words of a module."""
_PID = re.compile(r"\bpid(?:: |=)(\d+)", re.IGNORECASE)
"""Of an oops `CPU: 0 PID: 7 Comm: …`, of a security module `pid=7`."""
_LOADER = re.compile(
    r"oading of .* is rejected|Invalid (?:ELF|architecture|module)|ELF Spec|Module len|Lockdown:.* module|decompress|relocation"
    r"|firmware|LoadPin|avc:\s+denied|apparmor=\"DENIED\"|\bima\b|integrity:|Yama|SMACK",
    re.IGNORECASE,
)
"""What the loader and security modules say without the module's name (kernel/module/main.c, security/)."""


@dataclass(frozen=True, slots=True)
class StepEvidence:
    """The input of diagnosis, collected immediately after the call."""

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
        return tuple(
            line for line in self.log if line.partition(":")[0].split(" ")[-1] in names and not _USER_FAULT.search(line)
        )

    @property
    def init_lines(self) -> tuple[str, ...]:
        """The module's own words: what the loader says of every unsigned or foreign module is left out."""
        return tuple(line for line in self.own_lines if not any(word in line for word in _TAINTS))

    @property
    def kept_lines(self) -> tuple[str, ...]:
        """The lines about the call that say most: its oops from where that begins, otherwise the last ones.

        Whatever else the kernel logged meanwhile, such as another process's fault, is not about the call.
        """
        lines = [line for line in self.log if not _USER_FAULT.search(line)]
        oops = self._oops(lines)
        if oops:
            return tuple(oops[:LOG_LINES])
        return tuple(line for line in lines if self._is_about_call(line))[-LOG_LINES:]

    def _oops(self, lines: Sequence[str]) -> Sequence[str]:
        """The first oops that is not another process's; empty when there is none."""
        begin = 0
        while begin < len(lines):
            if any(word in lines[begin] for word in _OOPS):
                rest = range(begin, len(lines))
                end = next((n + 1 for n in rest if _OOPS_END in lines[n]), len(lines))
                block = lines[begin:end]
                if all(map(self._is_ours, block)):
                    return block
                begin = end
            else:
                begin += 1
        return ()

    def _is_ours(self, line: str) -> bool:
        """The line names no process, or the worker that made the call."""
        pid = _PID.search(line)
        return pid is None or pid[1] == str(self.outcome.worker)

    def _is_about_call(self, line: str) -> bool:
        name = "[-_]".join(map(re.escape, self.step.module.split("_")))
        named = re.search(rf"(?<![\w-]){name}(?![\w-])", line)
        return bool(named or _LOADER.search(line)) and self._is_ours(line)

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
            users=advised(self.users),
            file=rule.file if rule is not None else "",
            line=rule.line if rule is not None else 0,
            rule=rule.told if rule is not None else "",
            rule_kind=rule.kind if rule is not None else "",
            symbols=symbols,
            parameter=parameter,
        )
