# SPDX-License-Identifier: LGPL-2.1-or-later
"""Module files and indexes: ELF, signatures, modinfo, depmod, the trees of each kernel."""
