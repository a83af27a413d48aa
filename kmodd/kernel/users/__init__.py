# SPDX-License-Identifier: LGPL-2.1-or-later
"""What holds a module: mounts, devices, processes, sockets; the inspector process."""
