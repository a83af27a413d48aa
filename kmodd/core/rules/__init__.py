# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rules of modprobe.d and modules-load.d: findings, and the files that kmodd writes."""
