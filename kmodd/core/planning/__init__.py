# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an operation would do: the plan, policy (blacklist, install lines), parameters."""
