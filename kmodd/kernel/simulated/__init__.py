# SPDX-License-Identifier: LGPL-2.1-or-later
"""A simulated kernel, for tests and `--simulate`."""
