# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decisions: pure asyncio, no D-Bus, no subprocess, no fixed path."""
