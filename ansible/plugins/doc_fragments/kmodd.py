# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the documentation of every module of this collection says."""

from __future__ import annotations


class ModuleDocFragment:
    """Requirements, and the attributes of modules that change something."""

    DOCUMENTATION = r"""
attributes:
  platform:
    description: Systems that it can be used on.
    platforms: linux
    support: full
requirements:
  - kmodd on the managed node, and its Python library (the Debian package C(python3-kmodd), or that of C(kmodd) itself)
  - Python 3.11 or newer on the managed node
notes:
  - kmodd asks polkit whether the user of the task may do this. Root always may.
  - Ansible logs the arguments of a task, values of parameters and contents of files among them, in the node's journal, and prints
    diffs. C(no_log=true) and C(diff=false) at the task keep secrets out.
  - A failed task returns kmodd's sentence as C(msg), and beside it C(error), C(hint) and C(evidence).
"""

    CHANGES = r"""
options:
  reason:
    description: Why, as one line for kmodd's audit records in the journal, and for a comment beside a rule.
    type: str
    default: set by Ansible
attributes:
  check_mode:
    description: Can run in C(check_mode) and return what would change, without changing it.
    support: full
  diff_mode:
    description: Returns what changed, or would change, in diff mode.
    support: full
"""
