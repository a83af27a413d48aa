# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server side of D-Bus and nothing else."""
