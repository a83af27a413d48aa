# SPDX-License-Identifier: LGPL-2.1-or-later
"""The notifier's command line and what systemd hands over in the environment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmodd.settings import UsageError

DEFAULT_CONFIG = Path("/etc/kmodd/notify.toml")
DEFAULT_STATE = Path("/var/lib/kmodd-notifier")

USAGE = """\
usage: kmodd-notifier [--config FILE] [--state FOLDER] [--address ADDRESS]
       kmodd-notifier --check [--config FILE]
       kmodd-notifier --desktop

kmodd-notifier sends what happens to kernel modules to webhooks and by e-mail. See kmodd-notifier(8), notify.toml(5).

  --config FILE      read this instead of /etc/kmodd/notify.toml
  --state FOLDER     keep queue and added endpoints here instead of /var/lib/kmodd-notifier
  --address ADDRESS  D-Bus address instead of the system bus, for tests
  --check            read the configuration, say what is wrong with it, and leave
  --desktop          show desktop notifications instead, for the user who runs it
  --version          print the version
  --help             print this
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """What was said."""

    config: Path = DEFAULT_CONFIG
    state: Path = DEFAULT_STATE
    address: str = ""
    """D-Bus address; empty for the system bus."""
    check: bool = False
    desktop: bool = False
    help: bool = False
    version: bool = False

    @classmethod
    def parse(cls, arguments: Sequence[str], environment: Mapping[str, str]) -> "Settings":
        """Read it; UsageError."""
        flags = {"--check": "check", "--desktop": "desktop", "--help": "help", "-h": "help", "--version": "version"}
        texts = {"--config": "config", "--state": "state", "--address": "address"}
        said = {
            "config": str(DEFAULT_CONFIG),
            "state": environment.get("STATE_DIRECTORY", "").split(":")[0],
            "address": "",
        }
        true: dict[str, bool] = {}
        rest = iter(arguments)
        for argument in rest:
            name, equals, value = argument.partition("=")
            if argument in flags:
                true[flags[argument]] = True
            elif name in texts:
                said[texts[name]] = value if equals else next(rest, "")
                if not said[texts[name]]:
                    raise UsageError(f"{name} needs a value")
            else:
                raise UsageError(f"unknown argument {argument!r}")
        state = Path(said["state"] or DEFAULT_STATE)
        return cls(config=Path(said["config"]), state=state, address=said["address"], **true)
