# SPDX-License-Identifier: LGPL-2.1-or-later
"""Desired state: the files of modules.d, drift, applying."""
