# SPDX-License-Identifier: LGPL-2.1-or-later
"""Configuration files in TOML: which are read, the line of every key, and typed access to their tables."""
