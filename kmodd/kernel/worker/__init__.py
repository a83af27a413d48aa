# SPDX-License-Identifier: LGPL-2.1-or-later
"""What runs as root: the worker process that calls the kernel, and who starts it."""
