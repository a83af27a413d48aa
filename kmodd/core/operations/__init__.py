# SPDX-License-Identifier: LGPL-2.1-or-later
"""Doing it: execution of plans, rollback, locks, jobs, stuck calls, live parameters."""
