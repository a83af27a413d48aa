# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who asks the kernel for modules, and who loads them: the watcher process and the daemon's side of it."""
