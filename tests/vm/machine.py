"""A test's own virtual machine: commands, files, journal, reboot."""

from __future__ import annotations

import io
import os
import tarfile
import time
from typing import TYPE_CHECKING

from tests.clock import clock
from tests.vm.channel import Channel, Command, OnOutput, Result
from tests.vm.qemu import GuestDeadError, Options, Qemu, State
from tests.vm.qmp import connect

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from tests.vm.image import Image

# A cold boot takes 15 to 25 s under emulation; a machine that runs other things as well may take much longer.
BOOT_SECONDS = 240.0


class Machine:
    """A machine that has booted, or was restored from a saved state; use it in a ``with`` statement.

    With a command that hangs in the kernel, an orderly reboot takes systemd three minutes: ``reboot(force=True)``.

    Every method raises :class:`tests.vm.qemu.GuestDeadError`, with the end of the console, when the guest is dead.
    """

    def __init__(
        self,
        image: Image,
        options: Options | None = None,
        *,
        state: State | None = None,
        disk: Path | None = None,
        keep_in: Path | None = None,
        forward: dict[int, int] | None = None,
        reach: dict[int, int] | None = None,
    ) -> None:
        self.image, self.options = image, options or Options()
        # Where this boot begins in the console's log.
        self._console_start = 0
        self.qemu = Qemu(image, self.options, state=state, disk=disk, keep_in=keep_in, forward=forward, reach=reach)
        try:
            self._channel = Channel(connect(self.qemu.folder / "agent", timeout=20.0), self._why_dead, self._tail)
            if state:
                self._set_clock()
            else:
                self._wait_for_boot(1)
        except BaseException:
            self.close()
            raise

    def start(
        self,
        command: str | Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        window: tuple[int, int] | None = None,
        on_output: OnOutput | None = None,
    ) -> Command:
        """Start a command and go on; a string goes to the shell. ``window`` (rows, columns) gives it a terminal."""
        argv = ("/bin/bash", "-c", command) if isinstance(command, str) else tuple(command)
        return self._channel.start(argv, user=user, env=dict(env or {}), cwd=cwd, window=window, on_output=on_output)

    def run(
        self,
        command: str | Sequence[str],
        *,
        user: str = "root",
        timeout: float = 60.0,
        input: bytes | str = b"",  # noqa: A002 - the name subprocess.run has for it
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        check: bool = False,
    ) -> Result:
        """Run a command to its end, within ``timeout`` seconds; ``check`` demands exit code 0."""
        started = self.start(command, user=user, env=env, cwd=cwd)
        if input:
            started.write(input.encode() if isinstance(input, str) else input)
        started.end_input()
        result = started.wait(timeout)
        return result.check() if check else result

    def check(self, command: str | Sequence[str], *, user: str = "root", timeout: float = 60.0) -> str:
        """Standard output of a command that has to succeed."""
        return self.run(command, user=user, timeout=timeout, check=True).stdout

    def write_file(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file of root's, with the folders it needs."""
        script = 'mkdir -p "$(dirname "$1")" && cat > "$1" && chmod "$2" "$1"'
        self.run(["sh", "-c", script, "sh", path, f"{mode:o}"], input=content, check=True)

    def read_file(self, path: str) -> bytes:
        return self.run(["cat", path], check=True).out

    def copy_in(self, source: Path, target: str) -> None:
        """Copy a file, or what is in a folder, into a folder of the guest's."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for path in sorted(source.iterdir()) if source.is_dir() else [source]:
                archive.add(path, arcname=path.name)
        self.unpack(buffer.getvalue(), target)

    def unpack(self, archive: bytes, target: str) -> None:
        """Unpack a tar archive into a folder of the guest's; all of it belongs to root then."""
        script = 'mkdir -p "$1" && tar -C "$1" --no-same-owner -xf -'
        self.run(["sh", "-c", script, "sh", target], input=archive, check=True, timeout=180)

    def copy_out(self, source: str, target: Path) -> None:
        """Copy a file or folder of the guest's into a folder of the host's."""
        folder, name = os.path.split(source.rstrip("/"))
        packed = self.run(["tar", "-C", folder or "/", "-cf", "-", "--", name], check=True, timeout=180).out
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            # Debian 12's own Python has no filters yet.
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(target, **safely)  # type: ignore[arg-type]  # noqa: S202 - one keyword or none; our own guest

    def journal(self, *matches: str) -> str:
        """The journal of this boot, limited by journalctl's own arguments (``-u kmodd``, ``KMODD_MODULE=loop``)."""
        return self.run(["journalctl", "-b", "--no-pager", "-o", "short-monotonic", *matches], timeout=120).stdout

    def kernel_log(self) -> str:
        return self.run(["dmesg"]).stdout

    def console(self) -> str:
        """All that the serial console showed."""
        return self.qemu.console()

    def ping(self, timeout: float = 20.0) -> bool:
        """Whether the agent in the guest answers."""
        return self._channel.ping(timeout)

    def check_alive(self) -> None:
        """Raise when QEMU has ended."""
        reason = self._why_dead()
        if reason:
            raise GuestDeadError(reason)

    def reboot(self, *, force: bool = False, timeout: float = BOOT_SECONDS) -> None:
        """Start again with the same disk. ``force`` is the reset button: nothing is stopped, nothing synced."""
        greetings = self._channel.greetings
        self._console_start = len(self.console())
        if force:
            self.qemu.qmp.execute("system_reset")
        else:
            self.start(["systemctl", "reboot"])
        self._wait_for_boot(greetings + 1, timeout)

    def power_off(self, timeout: float = 120.0) -> None:
        """Shut down in order, and wait for it."""
        self.start(["systemctl", "poweroff"])
        self.qemu.process.wait(timeout)

    def save(self) -> None:
        """Write its state where ``keep_in`` said and end it."""
        # Udev may still be loading modules for the hardware it found.
        self.run("udevadm settle --timeout=60 && journalctl --sync && sync", timeout=120, check=True)
        self._channel.close()
        self.qemu.save()
        self.close()

    def close(self) -> None:
        """End it at once; may be called again."""
        if hasattr(self, "_channel"):
            self._channel.close()
        self.qemu.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait_for_boot(self, greetings: int, timeout: float = BOOT_SECONDS) -> None:
        deadline = clock() + timeout
        if not self._channel.greeted(timeout, times=greetings):
            raise GuestDeadError(f"the machine did not boot within {timeout:.0f} s\n{self._tail()}")
        self._channel.abandon_commands()
        self.run(["systemctl", "is-system-running", "--wait"], timeout=max(1.0, deadline - clock()))

    def _set_clock(self) -> None:
        if not self._channel.set_clock(time.time(), os.urandom(64)):
            raise GuestDeadError(f"the restored machine does not answer\n{self._tail()}")

    def _why_dead(self) -> str | None:
        if not self.qemu.running:
            return f"QEMU ended with {self.qemu.process.returncode}: {self.qemu.log()}\n{self._tail()}"
        if "Kernel panic - not syncing" in self.console()[self._console_start :]:
            return f"the kernel panicked\n{self._tail()}"
        return None

    def _tail(self) -> str:
        return "console:\n" + "\n".join(self.console().splitlines()[-60:])
