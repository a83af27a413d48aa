# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kmodd-agent and kmodd-coordinator share: the fleet's two resources, and their access to the Kubernetes API."""
