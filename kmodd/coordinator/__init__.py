# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodd-coordinator: decides which ModuleSets each node gets, and when; a plain client of the Kubernetes API."""
