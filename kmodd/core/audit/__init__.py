# SPDX-License-Identifier: LGPL-2.1-or-later
"""Audit records of requests and their results, their limit per user, redaction."""
